"""``tallybook demo``: its options, what it prints, and its exit code."""

from __future__ import annotations

import argparse
import signal
import sys
from argparse import Namespace
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import TYPE_CHECKING, Final

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
from tallybook.cli.parser import Commands, add_command
from tallybook.clock import Clock, SystemClock, SystemIds

if TYPE_CHECKING:
    from tallybook_server.demo.children import Children
    from tallybook_server.demo.show import Outcome

__all__ = ["register"]

_SECONDS: Final = 10.0
_SECONDS_MAX: Final = 3_600.0
_LINE_SECONDS: Final = 5.0
"""How often a line is written where there is no terminal."""

Needs = Callable[[str], None]


def register(commands: Commands, needs_server: Needs) -> None:
    """
    Declare ``demo``.

    Args:
        commands: Where.
        needs_server: Raises where the libraries of the server are missing.
    """

    def run(arguments: Namespace) -> int:
        needs_server("demo")
        return _demo(arguments)

    parser = add_command(
        commands,
        "demo",
        run,
        summary="run a server and a sample SaaS, break them, and count every request",
        words="Everything runs on this machine, in a temporary directory, and is gone afterwards.",
        examples=["tallybook demo", "tallybook demo --seconds 20 --chaos"],
    )
    parser.add_argument(
        "--seconds",
        type=_duration,
        default=_SECONDS,
        metavar="N",
        help=f"send traffic for so long; {_SECONDS:.0f}",
    )
    parser.add_argument(
        "--chaos",
        action="store_true",
        help="kill workers in the middle of requests, and the server for a while",
    )


def _duration(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 1 <= value <= _SECONDS_MAX:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no length of a demo; expected seconds, 1 to {_SECONDS_MAX:.0f}"
        )
    return value


def _demo(arguments: Namespace) -> int:
    from tallybook_server.demo.children import Children
    from tallybook_server.demo.show import run

    clock = SystemClock()
    lines = _Lines(clock)
    with (
        _signals_that_end(),
        TemporaryDirectory(prefix="tallybook-demo-", ignore_cleanup_errors=True) as directory,
        Children(Path(directory)) as children,
    ):
        try:
            outcome = run(
                Path(directory),
                children,
                seconds=arguments.seconds,
                chaos=arguments.chaos,
                clock=clock,
                ids=SystemIds(),
                say=lines.show,
            )
        except Failure:
            lines.end()
            _say_all(children)
            raise
        lines.end()
        if outcome.findings:
            _say_all(children)
    if arguments.json:
        _print_document(outcome, arguments.seconds)
    else:
        _print_table(outcome)
    for finding in outcome.findings:
        say(f"tallybook: {plain(finding)}")
    return Exit.FINDING if outcome.findings else Exit.OK


@contextmanager
def _signals_that_end() -> Generator[None]:
    """SIGTERM and SIGHUP leave every block on their way out, as Ctrl-C does."""

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    numbers = (signal.SIGTERM, signal.SIGHUP)
    # One that is ignored, as under nohup, stays ignored.
    heeded = [number for number in numbers if signal.getsignal(number) is signal.SIG_DFL]
    before = {number: signal.signal(number, end) for number in heeded}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Lines:
    """How it stands: one line that changes on a terminal, elsewhere a line now and then."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._progress = Progress()
        self._due_at = clock.monotonic()

    def show(self, words: str) -> None:
        if sys.stderr.isatty():
            self._progress.show(words)
        elif self._clock.monotonic() >= self._due_at:
            self._due_at = self._clock.monotonic() + _LINE_SECONDS
            say(words)

    def end(self) -> None:
        self._progress.end()


def _say_all(children: Children) -> None:
    for line in children.said():
        say(plain(line))


def _print_document(outcome: Outcome, seconds: float) -> None:
    print_json(
        {
            **outcome.counted.document(),
            "kills": outcome.kills,
            "outages": outcome.outages,
            "seconds": seconds,
            "usage": outcome.usage,
            "findings": outcome.findings,
        },
        indent=None,
    )


def _print_table(outcome: Outcome) -> None:
    dimensions = list(outcome.counted.dimensions)
    rows = [
        [tenant, *(f"{int(values.get(name, '0')):,}" for name in dimensions)]
        for tenant, values in sorted(outcome.usage.items())
    ]
    for line in table(["tenant", *dimensions], rows, right=dimensions):
        print_line(line)
    print_line()
    counted = outcome.counted
    print_line(
        f"sent {counted.sent:,}, answered {counted.answered:,}, recorded {counted.recorded:,}, "
        f"missing {counted.missing:,}, duplicates {counted.duplicates:,}"
    )
    say(_story(outcome))


def _story(outcome: Outcome) -> str:
    """What happened, in one sentence."""
    if not outcome.kills:
        return "Nothing was killed; tallybook demo --chaos does that."
    unanswered = outcome.counted.sent - outcome.counted.answered
    return (
        f"{number_of(outcome.kills, 'worker')} died of SIGKILL in the middle of requests, "
        f"{number_of(unanswered, 'request')} got no answer, and the server was killed and away "
        f"{number_of(outcome.outages, 'time')}."
    )
