"""
stages: where the server's time goes, per event.

The ledger runs in this process without threads, on the bodies that the load is made of, one
block of 1,000 events a request. The timers count processor time, which neighbours on the
machine disturb less than the clock; waiting, for the disk above all, is a row of its own.
HTTP is the rest of a real server's processor time.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Generator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final

from tallybook.wire import encode_answer, read_request
from tallybook_server.embedded import EmbeddedLedger
from tallybook_server.ledger import Delivery
from tests.bench.data import BLOCK_EVENTS, Producer, Tags, block_of, draw_facts
from tests.bench.load import Load, send
from tests.bench.record import scratch
from tests.bench.servers import tallybook_server
from tests.bench.table import Row, Table

__all__ = ["run_stages"]

# Stage, module, and the function or class.method around which a timer goes. What lies inside
# another one's time is taken off that one's.
_TIMERS: Final = (
    ("cut the request apart", "tests.bench.stages", "read_request"),
    ("decode: digest", "tallybook.block", "check_digest"),
    ("decode: decompress", "tallybook.block", "_decompress"),
    ("decode: msgpack", "tallybook.block", "_decode_timed"),
    ("decode: bounds of columns", "tallybook.block", "_check_columns"),
    ("validate series", "tallybook_server.intake", "_unfit"),
    ("times, intake", "tallybook_server.embedded", "take_block"),
    ("judge", "tallybook_server.writer", "_decide"),
    ("sqlite insert: entry and chain", "tallybook_server.journal", "Journal.add_entry"),
    ("sqlite insert: block", "tallybook_server.journal", "Journal.add_block"),
    ("sqlite insert: range", "tallybook_server.journal", "Journal.hold"),
    ("sqlite insert: producer", "tallybook_server.producers", "Receivings.write"),
    ("commit", "tallybook_server.journal", "Journal.commit"),
    ("publish: intern and columns", "tallybook_server.tail", "Generation.fill"),
    ("answer", "tests.bench.stages", "encode_answer"),
)


_clock: Final = time.thread_time_ns


class _Times:
    """Time inside of each stage, without that of stages inside it."""

    def __init__(self) -> None:
        self.spent: dict[str, int] = {}
        self.missing: list[str] = []
        self._inner = [0]

    @contextmanager
    def around(self) -> Generator[None]:
        """Put the timers in place."""
        undo: list[Callable[[], None]] = []
        try:
            for stage, module, name in _TIMERS:
                undo.append(self._wrap(stage, importlib.import_module(module), name))
            yield
        finally:
            for one in reversed(undo):
                one()

    def _wrap(self, stage: str, owner: Any, name: str) -> Callable[[], None]:
        *parents, last = name.split(".")
        for parent in parents:
            owner = getattr(owner, parent)
        function = getattr(owner, last, None)
        if function is None:
            self.missing.append(name)
            return lambda: None

        def timed(*given: Any, **named: Any) -> Any:
            self._inner.append(0)
            begun = _clock()
            try:
                return function(*given, **named)
            finally:
                took = _clock() - begun
                self.spent[stage] = self.spent.get(stage, 0) + took - self._inner.pop()
                self._inner[-1] += took

        setattr(owner, last, timed)
        return lambda: setattr(owner, last, function)


class _Decoder:
    """msgspec's decoder, so that a timer can stand around it."""

    def __init__(self, decode: Callable[[bytes], Any], times: _Times) -> None:
        self._decode = decode
        self._times = times

    def decode(self, data: bytes) -> Any:
        begun = _clock()
        try:
            return self._decode(data)
        finally:
            took = _clock() - begun
            self._times.spent["decode: msgpack"] = (
                self._times.spent.get("decode: msgpack", 0) + took
            )
            self._times._inner[-1] += took


def _in_process(tags: Tags, blocks: int, directory: Path) -> tuple[dict[str, float], list[str]]:
    """Nanoseconds per event by stage."""
    import tallybook.block as block_module

    prepared = [
        block_of(draw_facts(BLOCK_EVENTS, tags=tags, seed=at)) for at in range(min(blocks, 500))
    ]
    producer = Producer(1)
    bodies = [producer.request([prepared[at % len(prepared)]]) for at in range(blocks)]
    ledger = EmbeddedLedger(directory, threads=False)
    times = _Times()
    codec: Any = block_module
    kept = codec._decoder
    codec._decoder = _Decoder(kept.decode, times)
    whole = 0
    wall = time.perf_counter_ns()
    try:
        with times.around():
            for body in bodies:
                begun = _clock()
                announcement, views = read_request(body)
                delivery = Delivery(announcement=announcement, blocks=views)
                done = ledger.append(delivery).result()
                if [receipt.status for receipt in done.receipts] != ["stored"]:
                    raise RuntimeError(f"not stored: {done.receipts}")
                encode_answer(done.answer())
                whole += _clock() - begun
    finally:
        codec._decoder = kept
        ledger.close()
    wall = time.perf_counter_ns() - wall
    events = blocks * BLOCK_EVENTS
    spent = {stage: ns / events for stage, ns in times.spent.items()}
    spent["everything else between them"] = whole / events - sum(spent.values())
    spent["whole, in process"] = whole / events
    spent["waiting, for the disk and for the processor"] = (wall - whole) / events
    return spent, times.missing


def run_stages(*, quick: bool) -> Table:
    """Measure; about a minute, *quick*: ten seconds."""
    blocks = 100 if quick else 1_000
    rows: list[Row] = []
    with ExitStack() as stack:
        directory = stack.enter_context(scratch())
        spent, missing = _in_process("drawn", blocks, directory / "drawn")
        distinct, _ = _in_process("distinct", blocks // 2, directory / "distinct")
        cpu = _server_ns(quick, stack)
    whole = spent.pop("whole, in process")
    whole_distinct = distinct.pop("whole, in process")
    for stage, ns in spent.items():
        rows.append(
            Row(
                stage,
                ns,
                "ns/event",
                f"{ns / whole:.0%} of the whole",
                checked=f"5 tags that hardly repeat: {distinct.get(stage, 0.0):.0f}",
            )
        )
    rows += [
        Row("whole, in process", whole, "ns/event", checked=f"5 tags: {whole_distinct:.0f}"),
        Row("a real server's processor time", cpu, "ns/event", checked="sealing included"),
        Row("HTTP and threads: the difference", cpu - whole, "ns/event"),
    ]
    notes = [f"no timer: {name} is not there any more" for name in missing if "_timed" not in name]
    return Table(
        "stages", "the server's way of an event, 1,000 a block, 1 block a commit", rows, notes
    )


def _server_ns(quick: bool, stack: ExitStack) -> float:
    data = stack.enter_context(scratch())
    server = stack.enter_context(tallybook_server(data))
    sender = stack.enter_context(ProcessPoolExecutor(1, get_context("spawn")))
    pool = 100 if quick else 500
    load = Load(server.port, "blocks", 0.5, "drawn", pool, seed=1)
    sender.submit(send, load).result()
    before = server.cpu_seconds()
    loaded = sender.submit(send, load._replace(seconds=3.0 if quick else 10.0, seed=2)).result()
    return (server.cpu_seconds() - before) / loaded.events * 1e9
