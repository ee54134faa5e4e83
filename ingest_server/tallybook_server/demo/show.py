"""
One run: start everything, send traffic while things break, drain, and count.

The order at the end matters. Traffic stops first, then the server is brought back, then the
workers end as a deploy would end them, and then what the dead have left is sent by
``tallybook queue flush``, as an operator would do it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tallybook.cli.output import Exit, Failure, number_of
from tallybook.clock import Clock, Ids
from tallybook_server.demo.chaos import Chaos, Plan, plan
from tallybook_server.demo.children import Children
from tallybook_server.demo.reading import Counted, Usage, compare, read, sums, usage
from tallybook_server.demo.services import Saas, Server, free_port
from tallybook_server.demo.traffic import Traffic

__all__ = ["Outcome", "run"]

_WORKERS: Final = 2
_TICK_SECONDS: Final = 0.02
_START_SECONDS_MAX: Final = 30.0
_STOP_SECONDS_MAX: Final = 8.0
_DRAIN_SECONDS_MAX: Final = 60.0
_ANSWER_SECONDS_MAX: Final = 30.0

Say = Callable[[str], None]
"""Told how it stands, several times a second."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """
    What came of it.

    Attributes:
        counted: The count.
        usage: The server's answer, per tenant and dimension.
        kills: Workers that were killed.
        outages: How often the server was killed and away for a while.
        findings: What is not as it should be, in sentences; none when all is well.
    """

    counted: Counted
    usage: Usage
    kills: int
    outages: int
    findings: list[str]


def run(
    directory: Path,
    children: Children,
    *,
    seconds: float,
    chaos: bool,
    clock: Clock,
    ids: Ids,
    say: Say,
) -> Outcome:
    """
    Run the demo in *directory*.

    Args:
        directory: Empty; the ledger and the queues go there.
        children: Who runs the processes, and ends them.
        seconds: How long traffic is sent.
        chaos: Kill workers and the server meanwhile.
        clock: The time.
        ids: Chance, for the choice of a port.
        say: Told how it stands.

    Raises:
        Failure: Something does not start, or ends by itself.
    """
    say("starting a server and two workers of a sample SaaS")
    server = Server(children, directory / "data", free_port(ids))
    server.start()
    saas = Saas(children, server.url, directory / "queue", workers=_WORKERS)
    traffic = Traffic(saas.port)
    breaking = Chaos(plan(seconds) if chaos else Plan([], []), server, saas, traffic)
    asyncio.run(_send(seconds, server, saas, traffic, breaking, say))
    say("traffic is over; the workers end, and what the dead have left is sent")
    saas.stop(_STOP_SECONDS_MAX)
    findings = _drain(children, directory / "queue", server.url, clock)
    say("reading the ledger, event by event")
    return _count(server.url, traffic, saas.kills, breaking.outages, findings)


async def _send(
    seconds: float, server: Server, saas: Saas, traffic: Traffic, chaos: Chaos, say: Say
) -> None:
    """Traffic and chaos, until the time is over and the server is back."""
    loop = asyncio.get_running_loop()

    def check() -> None:
        server.check()
        saas.check()
        traffic.check()

    async def started(what: str, ready: Callable[[], bool]) -> None:
        deadline = loop.time() + _START_SECONDS_MAX
        while not ready():
            check()
            if loop.time() > deadline:
                raise Failure(f"{what} did not start in {_START_SECONDS_MAX:.0f} s", Exit.FINDING)
            await asyncio.sleep(_TICK_SECONDS)

    await started("the demo's server", lambda: server.ready)
    await started("the demo's SaaS", lambda: saas.ready)
    traffic.start()
    began = loop.time()
    while (now := loop.time() - began) < seconds:
        check()
        chaos.step(now)
        say(
            f"{now:3.0f} s: sent {len(traffic.sent):,}, answered {traffic.answered:,}"
            + (f"; {number_of(saas.kills, 'worker')} killed" if saas.kills else "")
            + ("" if server.up else "; the server is down")
        )
        await asyncio.sleep(_TICK_SECONDS)
    await traffic.stop()
    chaos.end()
    await started("the demo's server", lambda: server.ready)


def _drain(children: Children, queue: Path, endpoint: str, clock: Clock) -> list[str]:
    """Send what dead producers left; what is left then, as findings."""
    deadline = clock.monotonic() + _DRAIN_SECONDS_MAX
    arguments = ["tallybook.cli", "queue", "flush", "--json", "--directory", str(queue)]
    arguments += ["--endpoint", endpoint, "--timeout", str(int(_DRAIN_SECONDS_MAX))]
    flush = children.start("flush", arguments)
    code = flush.wait(deadline + _STOP_SECONDS_MAX - clock.monotonic())
    if code == Exit.OK:
        return []
    return ["a queue could not be drained: see what tallybook queue flush said"]


def _count(url: str, traffic: Traffic, kills: int, outages: int, findings: list[str]) -> Outcome:
    import httpx

    # The proxies of the environment are for other places than this machine.
    with httpx.Client(base_url=url, timeout=_ANSWER_SECONDS_MAX, trust_env=False) as client:
        events = list(read(client))
        answer = usage(client)
    counted = compare(traffic.sent, events)
    if not counted.well:
        ids = ", ".join(counted.named)
        findings = [*findings, f"the ledger is not what was answered, in {ids}: please report it"]
    if answer != sums(events):
        findings = [*findings, f"usage answers {answer}, and its events add up to {sums(events)}"]
    return Outcome(counted, answer, kills, outages, findings)
