"""When things break: a plan made beforehand, and the hand that carries it out."""

from __future__ import annotations

from typing import Final, NamedTuple

from tallybook_server.demo.services import Saas, Server
from tallybook_server.demo.traffic import Traffic

__all__ = ["Chaos", "Plan", "plan"]

_KILL_SECONDS: Final = 1.6
"""Between two kills: a worker needs about one second to start on a busy machine."""

_PATIENCE_SECONDS: Final = 1.5
"""A kill that is due waits so long for the one before to be made good: else, where starting
takes long, nobody would ever answer, and nothing would be tested."""

_FIRST_KILL_SECONDS: Final = 0.8
_OUTAGE_EVERY_SECONDS: Final = 30.0
_OUTAGE_SECONDS_MAX: Final = 5.0


class Plan(NamedTuple):
    """
    What breaks, in seconds since the traffic began.

    Attributes:
        kills: When a worker is killed, in order.
        outages: From when to when the server is away.
    """

    kills: list[float]
    outages: list[tuple[float, float]]


def plan(seconds: float) -> Plan:
    """The plan of a run of *seconds*: a kill now and then, and at least one outage."""
    kills = [_FIRST_KILL_SECONDS]
    while kills[-1] + _KILL_SECONDS < seconds:
        kills.append(kills[-1] + _KILL_SECONDS)
    count = max(1, round(seconds / _OUTAGE_EVERY_SECONDS))
    share = seconds / count
    length = min(_OUTAGE_SECONDS_MAX, share / 4)
    starts = [share * (number + 0.35) for number in range(count)]
    return Plan(kills, [(start, start + length) for start in starts])


class Chaos:
    """
    Carries out a plan.

    Attributes:
        outages: How often the server was killed.
    """

    def __init__(self, plan: Plan, server: Server, saas: Saas, traffic: Traffic) -> None:
        self._kills = list(plan.kills)
        self._outages = plan.outages
        self._server = server
        self._saas = saas
        self._traffic = traffic
        self._killed_at = -_KILL_SECONDS
        self.outages = 0

    def step(self, now: float) -> None:
        """Do what is due at *now*."""
        if self._kills and self._may_kill(now) and self._saas.kill_one():
            self._kills.pop(0)
            self._killed_at = now
        away = any(start <= now < end for start, end in self._outages)
        if away and self._server.up:
            self._server.kill()
            self.outages += 1
        elif not away and not self._server.up:
            self._server.start()

    def _may_kill(self, now: float) -> bool:
        due_at = max(self._kills[0], self._killed_at + _KILL_SECONDS)
        if now < due_at or not self._traffic.in_flight:
            return False  # With no request under way it would prove nothing.
        return self._saas.ready or now >= due_at + _PATIENCE_SECONDS

    def end(self) -> None:
        """Nothing breaks any more; a server that is away comes back."""
        if not self._server.up:
            self._server.start()
