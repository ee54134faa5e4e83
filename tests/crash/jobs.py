"""What the children of the zygote do. Arguments come as JSON, so paths are text."""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType
from typing import TypeAlias

from tallybook import Meter
from tests.crash.draining import Drainer, HastyIds
from tests.crash.events import STREAM_EVENTS, Report, record
from tests.crash.zygote import await_start, say

__all__ = ["one_adoption", "one_cycle", "record_and_die", "record_by_places", "record_until_killed"]

TraceFunction: TypeAlias = Callable[[FrameType, str, object], "TraceFunction | None"]


def record_until_killed(
    *,
    directory: str,
    endpoint: str,
    report: str,
    first: int,
    events: int,
    durability: str,
    queue_bytes_max: int,
    pause_seconds: float,
    threads: int,
    fork_after: int | None,
) -> None:
    """
    Record *events* events on each of *threads* threads, then close; be killed anywhere.

    Args:
        first: The number before the first event's.
        fork_after: Fork after so many events; the child records as well.
    """
    meter = Meter(
        "crash",
        directory=directory,
        endpoint=endpoint,
        durability="buffered" if durability == "buffered" else "process",
        on_full="block",
        queue_bytes_max=queue_bytes_max,
        ids=HastyIds(),
    )
    done = Report(Path(report))

    def stream(base: int, count: int) -> None:
        for n in range(base + 1, base + count + 1):
            record(meter, n)
            done.add(n)
            if pause_seconds:
                time.sleep(random.expovariate(1 / pause_seconds))

    say("ready")
    others = [
        threading.Thread(target=stream, args=(first + number * STREAM_EVENTS, events))
        for number in range(1, threads)
    ]
    for thread in others:
        thread.start()
    if fork_after is not None:
        stream(first, min(fork_after, events))
        first += min(fork_after, events)
        if os.fork() == 0:
            stream(first + 5 * STREAM_EVENTS, events)
            meter.close()
            return
        events -= min(fork_after, events)
    stream(first, events)
    for thread in others:
        thread.join()
    say("closing")
    meter.close()
    say("closed")


def one_cycle(*, directory: str, endpoint: str, report: str, n: int) -> None:
    """Record one event, pack it, commit it, send it, hear of it, and close: in one thread."""
    meter = _meter_without_threads(directory, endpoint)
    done = Report(Path(report))
    await_start()
    record(meter, n)
    done.add(n)
    worker = vars(meter)["_worker"]
    worker.commit_step()
    worker.producer.step(cut=True)
    worker.flush_step()
    meter.close()
    say("closed")


def record_and_die(*, directory: str, endpoint: str, report: str, first: int, events: int) -> None:
    """Leave a queue with a block in it and spools with what no block holds yet."""
    meter = _meter_without_threads(directory, endpoint)
    done = Report(Path(report))
    for n in range(first + 1, first + events + 1):
        record(meter, n)
        done.add(n)
        if n == first + events // 2:
            vars(meter)["_worker"].producer.step(cut=True)
    os.kill(os.getpid(), signal.SIGKILL)


def one_adoption(*, directory: str, endpoint: str) -> None:
    """Adopt what a dead producer left, pack it, send it, and remove its files."""
    await_start()
    with Drainer(endpoint) as drainer:
        drainer.drain(Path(directory))


def record_by_places(
    *, directory: str, endpoint: str, report: str, first: int, stop_at: int, opcodes: bool
) -> None:
    """
    Open, record in every way, fill the spool and go on in the next; die at one place of it.

    Args:
        stop_at: Die at the first visit of the how-manieth new place of the SDK's code; 0: live.
        opcodes: A place is an operation of the interpreter, and not a line.
    """
    meter = _meter_without_threads(directory, endpoint)
    done = Report(Path(report))
    seen: set[tuple[CodeType, int]] = set()
    kind = "opcode" if opcodes else "line"

    def visit(frame: FrameType, event: str, _: object) -> TraceFunction | None:
        if event == "call" and not str(frame.f_globals.get("__name__")).startswith("tallybook"):
            return None
        frame.f_trace_opcodes = opcodes
        if event == kind:
            seen.add((frame.f_code, frame.f_lasti if opcodes else frame.f_lineno))
            if len(seen) == stop_at:
                os.kill(os.getpid(), signal.SIGKILL)
        return visit

    for n in range(first + 1, first + 61):
        sys.settrace(visit)
        record(meter, n)
        sys.settrace(None)
        done.add(n)
    say(f"places {len(seen)}")
    meter.close()


def _meter_without_threads(directory: str, endpoint: str) -> Meter:
    return Meter(
        "crash",
        directory=directory,
        endpoint=endpoint,
        queue_bytes_max=1 << 20,
        on_full="raise",
        ids=HastyIds(),
        threads=False,
    )
