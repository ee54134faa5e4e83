"""
``tallybook queue flush``: drain what dead producers left, now.

It is the SDK's own adoption and sending, driven from the shell: each queue goes to the
endpoint that it names, under its own identity, and a living producer's queue is its own.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
from argparse import Namespace
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tallybook.adoption import Adopter
from tallybook.cli.connection import settings_of
from tallybook.cli.output import (
    Exit,
    Failure,
    Progress,
    number_of,
    plain,
    print_json,
    print_line,
    say,
    table,
)
from tallybook.cli.parser import Commands, add_command, seconds
from tallybook.cli.queue import add_directory, directory_of, read_queues
from tallybook.clock import Clock, SystemClock, SystemIds
from tallybook.flusher import Flusher
from tallybook.queue import QueueDamaged
from tallybook.settings import Settings
from tallybook.transport import HttpTransport, Response, Transport

__all__ = ["register"]


def register(queues: Commands) -> None:
    """Declare ``queue flush``."""
    parser = add_command(
        queues,
        "flush",
        _flush,
        summary="send what dead producers left, and wait for the server's word",
        words="Each queue goes to the endpoint that it names. The API key goes only to an\n"
        "endpoint that is named here or in TALLYBOOK_ENDPOINT.",
        examples=[
            "tallybook queue flush",
            "tallybook queue flush --endpoint http://127.0.0.1:8255 --retry-aside",
        ],
    )
    add_directory(parser)
    parser.add_argument(
        "--endpoint",
        metavar="URL",
        help="only the queues that are for this server, and those that name none; by default "
        "TALLYBOOK_ENDPOINT, else each queue's own",
    )
    parser.add_argument(
        "--retry-aside",
        action="store_true",
        help="send also what the server has refused for good before",
    )
    parser.add_argument(
        "--timeout",
        type=seconds,
        default=60.0,
        metavar="SECONDS",
        help="go on trying at most this long; 60",
    )


@dataclass(slots=True)
class _Outcome:
    """
    What draining came to, over every endpoint.

    Attributes:
        sent: Events that the server has now.
        duplicates: Of them, those that it had already.
        pending: Producer, and how many of its events wait.
        held: Producer, and why its queue is left as it is.
        errors: Endpoint, and why it does not take events.
        refused: A server answered, and somebody has to mend the key or the address.
    """

    sent: int = 0
    duplicates: int = 0
    pending: dict[str, int] = field(default_factory=dict[str, int])
    held: dict[str, str] = field(default_factory=dict[str, str])
    errors: dict[str, str] = field(default_factory=dict[str, str])
    refused: bool = False

    @property
    def code(self) -> Exit:
        """The exit code."""
        if self.errors and not self.refused:
            return Exit.UNREACHABLE
        return Exit.FINDING if self.pending or self.held or self.errors else Exit.OK


def _flush(arguments: Namespace) -> int:
    directory = directory_of(arguments)
    settings = settings_of(endpoint=arguments.endpoint, directory=arguments.directory)
    # What it warns of while sending is said once, at the end.
    logging.getLogger("tallybook").setLevel(logging.ERROR)
    clock = SystemClock()
    deadline = clock.monotonic() + arguments.timeout
    meant = {q.producer: q.endpoint for q in read_queues(directory) if q.alive is False}
    outcome = _Outcome()
    endpoints = _endpoints(settings.endpoint, meant.values())
    for endpoint in endpoints:
        drain = _Drain(
            directory,
            endpoint,
            settings,
            clock,
            deadline,
            unaddressed=arguments.endpoint is not None,
        )
        held = drain.run(outcome, retry_aside=arguments.retry_aside)
        # A queue that is for another endpoint of this list is no finding: its turn comes.
        others = set(endpoints) - {endpoint}
        outcome.held |= {
            name: why.removeprefix(f"{name} is ")
            for name, why in held.items()
            if meant.get(name) not in others
        }
    if not settings.endpoint:
        outcome.held |= {
            name: "it names no endpoint; say where it goes with --endpoint"
            for name, endpoint in meant.items()
            if endpoint is None
        }
    _report(directory, outcome, as_json=arguments.json)
    return outcome.code


def _endpoints(named: str | None, meant: Iterable[str | None]) -> list[str]:
    """Where queues go: to the endpoint that is named, else each to its own."""
    own = {endpoint for endpoint in meant if endpoint}
    if named is None:
        return sorted(own)
    # Queues are adopted by the very text of their endpoint; a slash at its end is no other server.
    spelt = {endpoint for endpoint in own if endpoint.rstrip("/") == named.rstrip("/")}
    return sorted(spelt | {named})


class _Drain:
    """The queues that go to one endpoint."""

    def __init__(
        self,
        directory: Path,
        endpoint: str,
        settings: Settings,
        clock: Clock,
        deadline: float,
        *,
        unaddressed: bool,
    ) -> None:
        self._endpoint = endpoint
        self._clock = clock
        self._deadline = deadline
        named = settings.endpoint is not None
        self._transport = _Watched(
            endpoint, settings.api_key if named else None, settings.request_timeout_seconds
        )
        self._flusher = Flusher(self._transport, clock, SystemIds())
        self._adopter = Adopter(directory, endpoint, self._flusher, clock, unaddressed=unaddressed)

    def run(self, outcome: _Outcome, *, retry_aside: bool) -> Mapping[str, str]:
        """
        Send until nothing waits or the time is over; what is held, and why.

        Raises:
            Failure: The disk refuses what has to be written down.
        """
        try:
            self._adopter.look()
            if retry_aside:
                for orphan in self._adopter.orphans:
                    orphan.queue.retry_aside()
            self._send()
            self._add_to(outcome)
        except (sqlite3.Error, QueueDamaged) as error:
            raise Failure(
                f"a queue cannot be written: {error}; nothing is lost, see tallybook doctor",
                Exit.FINDING,
            ) from None
        finally:
            self._adopter.close()
            self._flusher.close()
        return self._adopter.held

    def _send(self) -> None:
        progress = Progress()
        while self._adopter.orphans:
            self._adopter.step()
            wait = self._flusher.wait_seconds()
            left = self._deadline - self._clock.monotonic()
            if not self._adopter.orphans or left <= wait or self._transport.refused:
                break
            progress.show(
                f"{self._endpoint}: {number_of(self._flusher.acknowledged, 'event')} sent"
                + (f"; {self._flusher.last_error}; trying again" if wait else "")
            )
            threading.Event().wait(wait)
        progress.end()

    def _add_to(self, outcome: _Outcome) -> None:
        outcome.sent += self._flusher.acknowledged
        outcome.duplicates += self._flusher.duplicates
        outcome.refused = outcome.refused or self._transport.refused
        for orphan in self._adopter.orphans:
            outcome.pending[orphan.id.hex()] = orphan.queue.counts().pending_events
        if self._adopter.orphans:
            outcome.errors[self._endpoint] = self._flusher.last_error or "the time was over"


class _Watched:
    """The HTTP transport; it sees when trying again would be in vain."""

    def __init__(self, endpoint: str, api_key: str | None, timeout_seconds: float) -> None:
        self._transport: Transport = HttpTransport(endpoint, api_key, timeout_seconds)
        self.refused = False

    def send(
        self, body: bytes, content_type: str, timeout_seconds: float | None = None
    ) -> Response:
        response = self._transport.send(body, content_type, timeout_seconds)
        # The key or the address is wrong, and waiting mends neither.
        self.refused = 300 <= response.status < 400 or response.status in (401, 403, 404, 405, 410)
        return response

    def close(self) -> None:
        self._transport.close()


def _report(directory: Path, outcome: _Outcome, *, as_json: bool) -> None:
    left = [
        *(
            (name, number_of(events, "event"), "waiting")
            for name, events in outcome.pending.items()
        ),
        *((name, "held", plain(why)) for name, why in outcome.held.items()),
    ]
    if as_json:
        document = asdict(outcome)
        del document["refused"]
        print_json({"directory": str(directory), **document})
    elif left:
        for line in table(["producer", "left", "why"], left):
            print_line(line)
    for endpoint, why in outcome.errors.items():
        say(plain(f"{endpoint} has not taken everything: {why}; nothing is lost"))
    again = f", {outcome.duplicates} of them had been there already" if outcome.duplicates else ""
    say(
        f"{directory}: {number_of(outcome.sent, 'event')} sent{again}; "
        + (f"{number_of(len(left), 'queue')} left" if left else "nothing left of dead producers")
    )
