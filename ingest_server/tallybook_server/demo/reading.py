"""
The ledger, event by event and by id, held against what was sent and what was answered.

Sums would not do: one event lost and another counted twice make a total that is right.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Final, NamedTuple

from tallybook_server.demo.traffic import Request

if TYPE_CHECKING:
    import httpx

__all__ = [
    "REQUESTS",
    "TOKENS",
    "Counted",
    "Dimension",
    "Event",
    "Usage",
    "compare",
    "read",
    "sums",
    "usage",
]

REQUESTS: Final = "http.requests"
"""What the middleware records of every request."""

TOKENS: Final = "tokens.output"
"""What the endpoint for completions records, by hand."""

_PAGE_ROWS: Final = 1_000
_NAMED_MAX: Final = 10
_NOBODY: Final = "(unattributed)"

Usage = dict[str, dict[str, str]]
"""By tenant and dimension, exact decimal text."""


class Event(NamedTuple):
    """An event of the ledger, as far as the demo cares."""

    dimension: str
    request: str
    tenant: str | None
    value: Decimal


@dataclass(frozen=True, slots=True)
class Dimension:
    """The count of one dimension: requests, of those that are to be recorded in it."""

    sent: int
    answered: int
    recorded: int
    missing: int
    duplicates: int


@dataclass(frozen=True, slots=True)
class Counted:
    """
    The count of a whole run.

    Attributes:
        sent: Requests that were sent.
        answered: Of them, those whose whole answer arrived.
        recorded: Of them, those that are in the ledger.
        missing: Answered requests that the ledger lacks, in one of its dimensions, or holds
            with another tenant or value than what the answer said.
        duplicates: Requests that it holds twice in one dimension.
        strangers: Ids in the ledger that nobody sent.
        named: Some of the ids that are missing, twice there, or strangers.
        dimensions: The same for each dimension.
    """

    sent: int
    answered: int
    recorded: int
    missing: int
    duplicates: int
    strangers: int
    named: list[str]
    dimensions: dict[str, Dimension]

    @property
    def well(self) -> bool:
        """Every answered request is there exactly once, and nothing else."""
        in_order = all(
            count.answered <= count.recorded <= count.sent for count in self.dimensions.values()
        )
        return in_order and not self.missing and not self.duplicates and not self.strangers

    def document(self) -> dict[str, object]:
        """The keys for ``--json``."""
        return asdict(self)


def compare(sent: Mapping[str, Request], events: Iterable[Event]) -> Counted:
    """Count *events* against the requests that were *sent*, id by id."""
    held: dict[str, Counter[str]] = {REQUESTS: Counter(), TOKENS: Counter()}
    contents: set[Event] = set()
    for event in events:
        held[event.dimension][event.request] += 1
        contents.add(event)
    missing: set[str] = set()
    duplicates: set[str] = set()
    dimensions: dict[str, Dimension] = {}
    for dimension, ids in held.items():
        due = [r for r in sent.values() if dimension == REQUESTS or r.words]
        lacking = {r.id for r in due if r.answered and _event(dimension, r) not in contents}
        twice = {id for id, times in ids.items() if times > 1}
        dimensions[dimension] = Dimension(
            sent=len(due),
            answered=sum(r.answered for r in due),
            recorded=len(ids),
            missing=len(lacking),
            duplicates=len(twice),
        )
        missing |= lacking
        duplicates |= twice
    requests = dimensions[REQUESTS]
    strangers = {id for ids in held.values() for id in ids} - sent.keys()
    return Counted(
        sent=requests.sent,
        answered=requests.answered,
        recorded=requests.recorded,
        missing=len(missing),
        duplicates=len(duplicates),
        strangers=len(strangers),
        named=sorted(missing | duplicates | strangers)[:_NAMED_MAX],
        dimensions=dimensions,
    )


def _event(dimension: str, request: Request) -> Event:
    """What an answered request has to have left."""
    value = 1 if dimension == REQUESTS else request.tokens or 0
    return Event(dimension, request.id, request.tenant, Decimal(value))


def read(client: httpx.Client) -> Iterator[Event]:
    """Every counted event of the ledger, in its order."""
    parameters: dict[str, str | int] = {"limit": _PAGE_ROWS}
    while True:
        page = client.get("/v1/events", params=parameters).raise_for_status().json()
        for row in page["data"]:
            yield Event(
                row["dimension"],
                row["tags"].get("request", ""),
                row["tenant"],
                Decimal(row["value"]),
            )
        if page["next"] is None:
            return
        parameters["after"] = page["next"]


def usage(client: httpx.Client) -> Usage:
    """What an invoice would be made from: the server's own answer, per tenant."""
    answer: defaultdict[str, dict[str, str]] = defaultdict(dict)
    for dimension in (REQUESTS, TOKENS):
        parameters = {"dimension": dimension, "group_by": "tenant"}
        response = client.get("/v1/usage", params=parameters)
        if response.status_code == 404:
            continue  # A dimension is there from its first event on.
        for row in response.raise_for_status().json()["data"]:
            answer[row["tenant"] or _NOBODY][dimension] = row["value"]
    return dict(answer)


def sums(events: Iterable[Event]) -> Usage:
    """The same from the events themselves, added up here."""
    totals: defaultdict[str, defaultdict[str, Decimal]] = defaultdict(lambda: defaultdict(Decimal))
    for event in events:
        totals[event.tenant or _NOBODY][event.dimension] += event.value
    return {
        tenant: {dimension: str(total) for dimension, total in dimensions.items()}
        for tenant, dimensions in totals.items()
    }
