"""
Events onto the Meter, behind a firewall.

A Meter may refuse: the queue is full, the disk does not confirm, a tenant is too long. The
request goes on in every case. An event with something invalid in it is recorded without
that, because usage that is unattributed can be looked at, and usage that is lost cannot.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from decimal import Decimal
from typing import Any, Final, NamedTuple

from tallybook import DurabilityUnknown, InvalidEvent, Meter, default_meter
from tallybook.event import check_tags, check_tenant
from tallybook.tenant import hold, release
from tallybook_middleware.faults import Faults

__all__ = ["Plan", "Writer"]

LOST: Final = "a request was not recorded"


class Plan(NamedTuple):
    """What is to be recorded of one request: an event for each of the values."""

    tenant: str | None
    tags: dict[str, Any]
    values: list[tuple[str, int | Decimal]]


class Writer:
    """
    Records plans on one Meter, and raises no Exception.

    Args:
        meter: The Meter, or None: the default one, from the first request on.
        faults: Who hears of what could not be recorded.
    """

    def __init__(self, meter: Meter | None, faults: Faults) -> None:
        self._meter = meter
        self._faults = faults
        self._waiting: set[asyncio.Task[None]] = set()

    def meter(self) -> Meter:
        """The Meter; InvalidSetting if the environment describes none."""
        meter = self._meter
        if meter is None:
            meter = self._meter = default_meter()
        return meter

    def write(self, plan: Plan) -> None:
        """Record it, now, in this thread."""
        # This may run in another task or thread than the request began in, and a Meter that
        # is given no tenant takes the context's, which may be somebody else's: clear it.
        tokens = None if plan.tenant else hold()
        try:
            meter = self.meter()
            for dimension, value in plan.values:
                try:
                    meter.record(dimension, value, tenant=plan.tenant, tags=plan.tags)
                except InvalidEvent as error:
                    plan = self._mend(plan, error)
                    self._write_mended(meter, dimension, value, plan)
                except Exception as error:
                    self._tell(error)
        except Exception as error:
            self._tell(error)
        finally:
            if tokens:
                release(tokens)

    def _write_mended(self, meter: Meter, dimension: str, value: int | Decimal, plan: Plan) -> None:
        tokens = hold()
        try:
            meter.record(dimension, value, tenant=plan.tenant, tags=plan.tags)
        except Exception as error:
            self._tell(error)
        finally:
            release(tokens)

    async def awrite(self, plan: Plan) -> None:
        """
        Record it; where that may block, await it, so that the event loop goes on.

        The events wait together, each in a task: cancelling the request ends the waiting,
        and not the recording.
        """
        if not self._awaits():
            self.write(plan)
            return
        tasks = {
            asyncio.create_task(self._awrite_one(dimension, value, plan))
            for dimension, value in plan.values
        }
        for task in tasks:
            self._waiting.add(task)  # The loop itself holds tasks weakly.
            task.add_done_callback(self._waiting.discard)
        await asyncio.wait(tasks)

    async def _awrite_one(self, dimension: str, value: int | Decimal, plan: Plan) -> None:
        hold()  # The task's own context, and it ends with the task.
        try:
            meter = self.meter()
            try:
                await meter.arecord(dimension, value, tenant=plan.tenant, tags=plan.tags)
            except InvalidEvent as error:
                plan = self._mend(plan, error)
                await meter.arecord(dimension, value, tenant=plan.tenant, tags=plan.tags)
        except Exception as error:
            self._tell(error)

    def _awaits(self) -> bool:
        """Whether recording is awaited, since it may block: here is a loop that can do it."""
        try:
            if not self.meter().may_block:
                return False
            asyncio.get_running_loop()  # Another loop, such as trio's, cannot await it.
        except Exception:
            return False
        return True

    def _mend(self, plan: Plan, error: InvalidEvent) -> Plan:
        """The plan without what is invalid about it."""
        # Field and reason, not the message: it shows the value, which may be an API key.
        self._faults.tell(f"recorded without what is invalid: {error.field}, {error.reason}")
        return Plan(
            plan.tenant if _holds(check_tenant, plan.tenant) else None,
            {name: value for name, value in plan.tags.items() if _holds(check_tags, {name: value})},
            plan.values,
        )

    def _tell(self, error: Exception) -> None:
        if isinstance(error, DurabilityUnknown):
            self._faults.tell("the disk did not confirm; the event is kept", error)
        else:
            self._faults.tell(LOST, error)

    async def aflush(self, timeout_seconds: float) -> None:
        """Send what there is, for so long at most; nothing, if no request came."""
        if self._meter is None:
            return
        try:
            await asyncio.wait_for(self._meter.aflush(timeout_seconds), timeout_seconds)
        except Exception as error:
            self._faults.tell("the flush at shutdown failed; everything is kept", error)


def _holds(check: Callable[[Any], object], value: object) -> bool:
    try:
        check(value)
    except InvalidEvent:
        return False
    return True
