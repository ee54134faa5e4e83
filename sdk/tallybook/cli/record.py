"""
``tallybook record``: one event, the way that an application's go.

It is recorded on a real `Meter`, so it is on disk before anything is sent, and a server that
is away costs no event. Delivery is what `Meter.flush` speaks of; what the server decided
about the event is overheard on the Meter's transport.
"""

from __future__ import annotations

import logging
from argparse import Namespace
from contextlib import suppress
from dataclasses import asdict, dataclass
from decimal import Decimal
from typing import Literal

from tallybook.cli.connection import DEFAULT_ENDPOINT, add_endpoint, settings_of
from tallybook.cli.output import Exit, Failure, plain, print_json, say
from tallybook.cli.parser import Commands, add_command, add_tags, moment, seconds, tags_of
from tallybook.errors import DurabilityUnknown, MessageDamaged, QueueFull
from tallybook.event import format_value, read_value
from tallybook.meter import FlushResult, Meter, Stats
from tallybook.settings import Settings
from tallybook.transport import HttpTransport, Response, Transport
from tallybook.wire import Receipt, read_answer, read_request

__all__ = ["register"]

Status = Literal["counted", "duplicate", "rejected", "conflict", "refused", "kept"]


def register(commands: Commands) -> None:
    """Declare ``record``."""
    parser = add_command(
        commands,
        "record",
        _record,
        summary="record one event and send it",
        words="The event is on disk before it is sent. If the server is away it stays there, and\n"
        "`tallybook queue flush`, or the next `record`, sends it.",
        examples=[
            "tallybook record http.requests --tenant acme",
            "tallybook record tokens.output 812 --tenant acme --tag model=small",
            "tallybook record storage.gb 12.5 --source nightly --key acme-2026-11-21",
        ],
    )
    parser.add_argument("dimension", metavar="DIMENSION", help="what was used: http.requests")
    parser.add_argument(
        "value", metavar="VALUE", nargs="?", default="1", help="how much; 1 when left out"
    )
    parser.add_argument("--tenant", help="who used it; without one the event is unattributed")
    add_tags(parser, "something to slice by")
    parser.add_argument(
        "--time",
        type=moment,
        help="when, with its time zone: 2026-11-21T09:00:00Z; now when left out",
    )
    parser.add_argument(
        "--key", help="the event counts once per source, dimension and key; needs --source"
    )
    parser.add_argument(
        "--source", help="the application that it is from; by default TALLYBOOK_SOURCE"
    )
    add_endpoint(parser)
    parser.add_argument(
        "--directory",
        metavar="DIR",
        help="the queue's directory; by default TALLYBOOK_DIRECTORY, else the user's state "
        "directory",
    )
    parser.add_argument(
        "--timeout",
        type=seconds,
        default=10.0,
        metavar="SECONDS",
        help="wait for the server at most this long; 10",
    )


@dataclass(frozen=True, slots=True)
class _Outcome:
    """
    What became of the event.

    Attributes:
        status: ``counted``; ``duplicate``: it had been counted before; ``rejected`` or
            ``conflict``: the server keeps it and does not count it; ``refused``: set aside
            on disk; ``kept``: on disk, and not yet at the server.
        reason: The server's stable word for it, or None.
        position: The ledger's entry that holds it, or None.
        error: Why it is not at the server, or None.
    """

    status: Status
    reason: str | None = None
    position: int | None = None
    error: str | None = None


def _record(arguments: Namespace) -> int:
    settings = settings_of(
        source=arguments.source, endpoint=arguments.endpoint, directory=arguments.directory
    )
    if arguments.key is not None and settings.source is None:
        raise Failure(
            "--key needs --source, since a key counts once per source: --source api-gateway",
            Exit.USAGE,
        )
    tags = tags_of(arguments.tag, "--tag")
    value = format_value(*read_value(str(arguments.value)))
    # Its warnings would say a second time what is said below.
    logging.getLogger("tallybook").setLevel(logging.ERROR)
    ear = _Ear(settings)
    meter = _meter(settings, ear)
    try:
        with suppress(DurabilityUnknown):  # It is kept, and it is about to be sent.
            meter.record(
                arguments.dimension,
                Decimal(value),
                tenant=arguments.tenant,
                tags=tags,
                time=arguments.time,
                key=arguments.key,
            )
        result = meter.flush(arguments.timeout)
        stats = meter.stats()
    except QueueFull as error:
        raise Failure(
            f"nothing was recorded: {error}; choose another place with --directory", Exit.USAGE
        ) from None
    finally:
        meter.close()
    outcome = _outcome(result, stats, ear)
    if arguments.json:
        print_json(
            {
                "dimension": arguments.dimension,
                "value": value,
                "tenant": arguments.tenant,
                "tags": tags,
                "producer": stats.producer,
                **asdict(outcome),
            }
        )
    what = f"{arguments.dimension} {value} for {arguments.tenant or 'no tenant'}"
    say(plain(f"{what}: {_words(outcome, ear.endpoint, settings)}"))
    if outcome.status in ("counted", "duplicate"):
        return Exit.OK
    return Exit.UNREACHABLE if outcome.status == "kept" else Exit.FINDING


def _meter(settings: Settings, ear: _Ear) -> Meter:
    return Meter(
        settings.source,
        endpoint=ear.endpoint,
        directory=settings.directory,
        # One event: a confirmed sync costs less than starting Python did.
        durability="power",
        on_full="raise",
        transport=ear,
    )


class _Ear:
    """The HTTP transport, and what the server said of one producer's blocks."""

    def __init__(self, settings: Settings) -> None:
        self.endpoint = settings.endpoint or DEFAULT_ENDPOINT
        self._transport: Transport = HttpTransport(
            self.endpoint, settings.api_key, settings.request_timeout_seconds
        )
        self._receipts: list[Receipt] = []

    def send(
        self, body: bytes, content_type: str, timeout_seconds: float | None = None
    ) -> Response:
        response = self._transport.send(body, content_type, timeout_seconds)
        if response.status == 200:
            _, blocks = read_request(body)
            with suppress(MessageDamaged):  # Then it is no answer, and the flusher says so.
                self._receipts += read_answer(response.body, [bytes(b) for b in blocks]).receipts
        return response

    def close(self) -> None:
        self._transport.close()

    def heard(self, producer: str | None) -> Receipt | None:
        """The last word on a block of *producer* that was taken."""
        taken = [r for r in self._receipts if r.producer == producer and r.position is not None]
        return taken[-1] if taken else None


def _outcome(result: FlushResult, stats: Stats, ear: _Ear) -> _Outcome:
    receipt = ear.heard(stats.producer)
    if stats.aside:
        return _Outcome("refused", error=result.error or stats.last_error)
    if receipt is None or not result.ok:
        return _Outcome("kept", error=result.error)
    for run in receipt.exceptions:
        if run.verdict != "flagged":
            return _Outcome(run.verdict, run.reason, run.reference)
    return _Outcome("counted", position=receipt.position)


def _words(outcome: _Outcome, endpoint: str, settings: Settings) -> str:
    match outcome.status:
        case "counted":
            return f"counted, in the ledger at {endpoint}"
        case "duplicate":
            return f"counted before under the same {outcome.reason}; it is not counted twice"
        case "rejected":
            return (
                f"the server keeps it and does not count it, because of its {outcome.reason}; "
                f"see {endpoint}/v1/rejections"
            )
        case "conflict":
            return (
                f"the server keeps it and does not count it: another event has the same "
                f"{outcome.reason}; see {endpoint}/v1/rejections"
            )
        case "refused":
            return (
                f"the server refuses it for good; it is set aside in {settings.directory}, "
                "see tallybook queue status"
            )
        case "kept":
            return (
                f"kept in {settings.directory}, nothing is lost; not yet at {endpoint}: "
                f"{outcome.error or 'the time was over'}; "
                "tallybook queue flush sends it"
            )
