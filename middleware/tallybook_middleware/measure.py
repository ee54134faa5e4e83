"""
What one request and its response are, as numbers and tags. Pure: no clock, no Meter.

A value is counted as it is seen, whatever a header says: Content-Length is a promise, and
HEAD, 304 and a client that leaves break it.
"""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal
from typing import Final, Literal

__all__ = ["MEASURES", "Measure", "Usage", "seconds"]

Measure = Literal["request_bytes", "response_bytes", "duration"]

MEASURES: Final = frozenset({"request_bytes", "response_bytes", "duration"})

# The same str objects for every request. What a client invents as a method would be free
# text in the ledger, and up to 64 KiB of it, so it becomes OTHER.
_METHODS: Final = {
    method: method
    for method in "GET HEAD POST PUT PATCH DELETE OPTIONS TRACE CONNECT QUERY".split()
}
_STATUSES: Final = {status: str(status) for status in range(100, 600)}
# RFC 9110, 6.4.1: these have no content, so servers drop what an application sends with them.
_WITHOUT_CONTENT: Final = frozenset({204, 304})


class Usage:
    """
    One request, as far as it has come.

    Attributes:
        method: As the client sent it.
        dimension: ``http.requests``, or what it became.
        status: What the application decided; None before that.
        code: What a websocket was closed with.
        route: The template of the route: ``"/items/{id}"``; None when it is not known.
        request_bytes: Of the body, as far as the application has read it.
        response_bytes: Of the body, as far as it was handed on.
        aborted: The response did not come to its end.
        began: The monotonic clock at the beginning, in seconds.
    """

    __slots__ = (
        "aborted",
        "began",
        "code",
        "dimension",
        "method",
        "request_bytes",
        "response_bytes",
        "route",
        "status",
    )

    def __init__(self, method: str, began: float) -> None:
        self.method = method
        self.began = began
        self.dimension = "http.requests"
        self.status: int | None = None
        self.code: int | None = None
        self.route: str | None = None
        self.request_bytes = 0
        self.response_bytes = 0
        self.aborted = False

    def tags(self) -> dict[str, str]:
        """Method and status, or a closed connection's code; route; outcome: what is known."""
        tags: dict[str, str] = {}
        if self.dimension == "http.requests":
            tags["method"] = _METHODS.get(self.method, "OTHER")
        status = self.status
        if status is not None:
            tags["status"] = _STATUSES.get(status) or str(int(status))
        if self.code is not None:
            tags["code"] = str(int(self.code))
        if self.route is not None:
            tags["route"] = self.route
        if self.aborted:
            tags["outcome"] = "aborted"
        return tags

    def without_content(self) -> bool:
        """Whether the protocol gives this response no body, whatever the application sends."""
        return self.method == "HEAD" or self.status in _WITHOUT_CONTENT

    def values(self, measures: Iterable[str], now: float) -> list[tuple[str, int | Decimal]]:
        """Each dimension that was asked for beside ``http.requests``, with its value."""
        values: list[tuple[str, int | Decimal]] = []
        for measure in measures:
            if measure == "request_bytes":
                values.append(("http.request.bytes", self.request_bytes))
            elif measure == "response_bytes":
                values.append(
                    ("http.response.bytes", 0 if self.without_content() else self.response_bytes)
                )
            else:
                values.append(("http.duration", seconds(now - self.began)))
        return values


def seconds(elapsed: float) -> Decimal:
    """
    *elapsed* in whole microseconds, exactly: never a float in the ledger.

    Made from text, because arithmetic would be rounded, or refused, by the host's context.
    """
    whole, micros = divmod(max(0, round(elapsed * 1_000_000)), 1_000_000)
    return Decimal(f"{whole}.{micros:06d}")
