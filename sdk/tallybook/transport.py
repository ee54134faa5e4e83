"""
The seam to the network: bytes out, a response back. The httpx one, and nothing else.

httpx is imported by the thread that sends, never by ``import tallybook``: it takes 100 ms.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple, Protocol

from tallybook.errors import ServerUnreachable
from tallybook.limits import ANSWER_BYTES_MAX

if TYPE_CHECKING:
    import httpx

__all__ = ["HttpTransport", "Response", "Transport"]


class Response(NamedTuple):
    """
    What came back.

    Attributes:
        status: The HTTP status.
        body: The whole body.
        retry_after_seconds: What ``Retry-After`` asked for, or None.
    """

    status: int
    body: bytes
    retry_after_seconds: float | None = None


class Transport(Protocol):
    """How a request gets to the server."""

    def send(
        self, body: bytes, content_type: str, timeout_seconds: float | None = None
    ) -> Response:
        """
        ``POST`` *body* to ``/v1/events``; one attempt.

        Args:
            body: The request.
            content_type: Its type.
            timeout_seconds: Wait no longer for this one than so; None: as configured.

        Raises:
            ServerUnreachable: No response: refused, timed out, or cut off. The server may
                have stored everything all the same.
        """
        ...

    def close(self) -> None:
        """Let go of connections. Idempotent."""
        ...


class HttpTransport:
    """
    HTTP by httpx, one connection kept open.

    Redirects are not followed: a key must not go to a host that the user did not name.
    """

    def __init__(self, endpoint: str, api_key: str | None, timeout_seconds: float) -> None:
        self._url = endpoint.rstrip("/") + "/v1/events"
        self._api_key = api_key
        self._timeout_seconds = timeout_seconds
        self._client: httpx.Client | None = None
        self._inherited: list[httpx.Client] = []
        self._pid = os.getpid()

    def send(
        self, body: bytes, content_type: str, timeout_seconds: float | None = None
    ) -> Response:
        import httpx

        headers = {"Content-Type": content_type, "Accept": "application/json"}
        if self._api_key:
            headers["Authorization"] = f"Bearer {self._api_key}"
        seconds = self._timeout_seconds
        if timeout_seconds is not None:
            seconds = min(seconds, timeout_seconds)
        client = self._opened()
        try:
            with client.stream(
                "POST", self._url, content=body, headers=headers, timeout=seconds
            ) as response:
                return Response(
                    response.status_code,
                    _read(response),
                    _retry_after_seconds(response.headers),
                )
        except httpx.HTTPError as error:
            # A connection that failed once is not trusted with the next attempt.
            self.close()
            raise ServerUnreachable(f"{self._url}: {error or type(error).__name__}") from None

    def _opened(self) -> httpx.Client:
        import httpx

        if self._pid != os.getpid():
            # A child of fork: the connection is its parent's, and two who talk on it get
            # each other's answers.
            if self._client is not None:
                self._inherited.append(self._client)
            self._client, self._pid = None, os.getpid()
        if self._client is None:
            self._client = httpx.Client(timeout=self._timeout_seconds, follow_redirects=False)
        return self._client

    def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            if self._pid == os.getpid():
                client.close()
            else:
                self._inherited.append(client)


def _read(response: httpx.Response) -> bytes:
    body = bytearray()
    for part in response.iter_bytes():
        body += part
        if len(body) > ANSWER_BYTES_MAX:
            raise ServerUnreachable(
                f"an answer of more than {ANSWER_BYTES_MAX} bytes; is this a tallybook server?"
            )
    return bytes(body)


def _retry_after_seconds(headers: httpx.Headers) -> float | None:
    text = headers.get("retry-after")
    if not text:
        return None
    try:
        return float(text) if text.strip().isdigit() else _until(text, headers.get("date"))
    except (ValueError, TypeError, OverflowError):
        return None


def _until(text: str, date: str | None) -> float | None:
    # The server's own Date, not this host's clock: both ends of the wait by one clock.
    if date is None:
        return None
    from email.utils import parsedate_to_datetime

    wait = parsedate_to_datetime(text) - parsedate_to_datetime(date)
    return wait.total_seconds()
