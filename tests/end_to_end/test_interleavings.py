"""
Any interleaving of everything that may happen, against a model that is a dictionary.

The real SDK and the real ledger, in one thread: producers record, pack, crash, are adopted;
requests are lost, doubled, reordered and answered into the void; the ledger seals,
compacts and restarts; it is backed up and restored, or its disk is silently set back. At the
end everything is delivered, and every total has to be the dictionary's.
"""

from __future__ import annotations

import shutil
import tempfile
from collections import defaultdict
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from tallybook import Meter
from tallybook.clock import SystemIds
from tallybook.errors import ServerUnreachable
from tallybook.testing import FakeClock
from tallybook.transport import Response
from tallybook.wire import encode_answer, read_request
from tallybook_server.compaction import Policy
from tallybook_server.embedded import EmbeddedLedger
from tallybook_server.ledger import Delivery, UsageQuery
from tallybook_server.restore import Restore

TENANTS = st.sampled_from(["acme", "globex", "zürich", None])
DIMENSIONS = st.sampled_from(["http.requests", "tokens.output"])
VALUES = st.one_of(
    st.integers(0, 10),
    st.sampled_from([10**20, 2**63 - 1, 2**63, 10**38 - 1]),
    st.decimals(0, 1000, places=3),
)
TAGS = st.dictionaries(st.sampled_from(["route", "region"]), st.sampled_from(["a", "b"]))


class Wire:
    """
    A transport that hands requests to the ledger, and does to them what networks do.

    Attributes:
        plan: What happens to the next requests; then they arrive and are answered.
        seen: Every request that was sent, for delivering it again much later.
    """

    def __init__(self, machine: Interleavings) -> None:
        self._machine = machine
        self.plan: list[str] = []
        self.seen: list[bytes] = []

    def send(
        self, body: bytes, content_type: str, timeout_seconds: float | None = None
    ) -> Response:
        fault = self.plan.pop(0) if self.plan else "deliver"
        self.seen.append(body)
        if fault == "drop":
            raise ServerUnreachable("the request was lost, on purpose")
        answer = self.deliver(body)
        if fault == "double":
            answer = self.deliver(body)
        if fault == "lose":
            raise ServerUnreachable("the answer was lost, on purpose")
        return Response(200, answer)

    def deliver(self, body: bytes) -> bytes:
        ledger = self._machine.ledger
        announcement, blocks = read_request(body)
        done = ledger.append(Delivery(announcement=announcement, blocks=blocks)).result()
        return encode_answer(done.answer())

    def close(self) -> None:
        """There is nothing to let go of."""


class Interleavings(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="tallybook-"))
        self.clock = FakeClock()
        self.book = self.folder / "book"
        self.lives = 0
        self.backed_up = False
        self.photographed = False
        self.ended: list[Path] = []
        self.ledger = self._open_ledger()
        self.wire = Wire(self)
        self.meters: dict[int, Meter] = {}
        self.sums: dict[tuple[str, str | None], Fraction] = defaultdict(Fraction)
        self.counts: dict[tuple[str, str | None], int] = defaultdict(int)
        self.keys: set[str] = set()

    def _open_ledger(self) -> EmbeddedLedger:
        return EmbeddedLedger(
            self.book,
            clock=self.clock,
            threads=False,
            compaction=Policy(fan_in=2, rows_min=2),
        )

    def meter(self, number: int) -> Meter:
        if number not in self.meters:
            self.meters[number] = Meter(
                "app",
                endpoint="http://127.0.0.1:1",
                directory=self.folder / "queue",
                queue_bytes_max=1 << 24,
                transport=self.wire,
                clock=self.clock,
                threads=False,
            )
        return self.meters[number]

    @initialize()
    def begin(self) -> None:
        self.meter(0)

    def _count(self, dimension: str, tenant: str | None, value: int | Decimal) -> None:
        self.sums[dimension, tenant] += Fraction(value)
        self.counts[dimension, tenant] += 1

    @rule(
        number=st.integers(0, 2), tenant=TENANTS, dimension=DIMENSIONS, value=VALUES, tags=TAGS,
        times=st.integers(1, 5),
    )  # fmt: skip
    def record(
        self, number: int, tenant: str | None, dimension: str, value: int | Decimal,
        tags: dict[str, str], times: int,
    ) -> None:  # fmt: skip
        for _ in range(times):
            self.meter(number).record(dimension, value, tenant=tenant, tags=tags)
            self._count(dimension, tenant, value)

    @rule(number=st.integers(0, 2), key=st.sampled_from("abc"))
    def record_with_a_key(self, number: int, key: str) -> None:
        self.meter(number).record("orders.placed", 7, tenant="acme", key=key)
        if key not in self.keys:
            self.keys.add(key)
            self._count("orders.placed", "acme", 7)

    @rule(number=st.integers(0, 2), cut=st.booleans())
    def pack(self, number: int, cut: bool) -> None:
        worker = self.meter(number)._worker
        if worker is not None:
            worker.producer.step(cut=cut)

    @rule(number=st.integers(0, 2))
    def send(self, number: int) -> None:
        worker = self.meter(number)._worker
        if worker is not None:
            self.clock.advance(60)  # Past every backoff, every adoption and announcement.
            worker.flush_step()

    @rule(plan=st.lists(st.sampled_from(["drop", "lose", "double", "deliver"]), max_size=4))
    def disturb(self, plan: list[str]) -> None:
        self.wire.plan = plan

    @precondition(lambda self: self.wire.seen)
    @rule(data=st.data())
    def deliver_again_much_later(self, data: st.DataObject) -> None:
        self.wire.deliver(data.draw(st.sampled_from(self.wire.seen)))

    @rule(number=st.integers(0, 2))
    def crash(self, number: int) -> None:
        """What a SIGKILL leaves: the files as they are, and the lock free."""
        meter = self.meters.pop(number, None)
        if meter is not None and meter._worker is not None:
            worker = meter._worker
            meter._producer, meter._worker = None, None
            worker.producer.release(finished=False)
            if worker.adopter is not None:
                worker.adopter.close()

    @rule(number=st.integers(0, 2))
    def close(self, number: int) -> None:
        meter = self.meters.pop(number, None)
        if meter is not None:
            meter.close()

    @rule()
    def seal(self) -> None:
        self.ledger.sealer.step(force=True)

    @rule()
    def compact(self) -> None:
        self.ledger.compactor.step()

    @rule()
    def restart_the_server(self) -> None:
        self.ledger.close()
        self.ledger = self._open_ledger()

    @rule()
    def back_up(self) -> None:
        self.ledger.backup(str(self.folder / "backup"))
        self.backed_up = True
        # Producers give up what is archived: a photograph from before is no backup any more.
        self.photographed = False

    @precondition(lambda self: self.backed_up)
    @rule()
    def lose_the_ledger_and_restore_it(self) -> None:
        self.ledger.close()
        shutil.rmtree(self.book)
        self.lives += 1
        self.book = self.folder / f"life-{self.lives}" / "book"
        Restore(self.folder / "backup", self.book, clock=self.clock, ids=SystemIds()).make()
        self.ledger = self._open_ledger()

    @rule()
    def photograph_the_disk(self) -> None:
        shutil.rmtree(self.folder / "photograph", ignore_errors=True)
        shutil.copytree(self.book, self.folder / "photograph")
        self.photographed = True
        self.ended = self._ended()

    def _ended(self) -> list[Path]:
        return sorted((self.folder / "queue").glob("*.kept"))

    # What a server has told only to producers that have ended since, nobody tells it.
    @precondition(lambda self: self.photographed and self.ended == self._ended())
    @rule()
    def set_the_disk_back(self) -> None:
        """Without a word: what a copied directory or a machine's snapshot does."""
        self.ledger.close()
        shutil.rmtree(self.book)
        shutil.copytree(self.folder / "photograph", self.book)
        self.ledger = self._open_ledger()

    @rule(
        numbers=st.lists(st.integers(0, 2), min_size=1, max_size=3),
        how=st.sampled_from(["restored", "set back"]), closes=st.booleans(), seals=st.booleans(),
    )  # fmt: skip
    def a_day_that_the_ledger_forgets(
        self, numbers: list[int], how: str, closes: bool, seals: bool
    ) -> None:
        """The same in one rule, since chance seldom puts it in this order."""
        self.back_up() if how == "restored" else self.photograph_the_disk()
        for number in numbers:
            self.record(number, "acme", "http.requests", 1, {}, 1)
            self.send(number)
        if closes:
            self.close(numbers[0])
        if seals:
            self.seal()
        if how == "restored":
            self.lose_the_ledger_and_restore_it()
        elif self.ended == self._ended():
            self.set_the_disk_back()

    @invariant()
    def the_ledger_never_holds_more_than_was_recorded(self) -> None:
        for (dimension, tenant), (value, _) in self._held().items():
            assert value <= self.sums[dimension, tenant]

    def _held(self) -> dict[tuple[str, str | None], tuple[Fraction, int]]:
        held: dict[tuple[str, str | None], tuple[Fraction, int]] = {}
        known = {one.name for one in self.ledger.dimensions()}
        dimensions = known & {"http.requests", "tokens.output", "orders.placed"}
        if dimensions:
            query = UsageQuery(tuple(sorted(dimensions)), by_tenant=True)
            for row in self.ledger.aggregate(query).rows:
                held[row.dimension, row.tenant] = (Fraction(row.value or 0), row.events)
        return held

    def teardown(self) -> None:
        try:
            self.wire.plan = []
            for number in list(self.meters):
                self.close(number)
            adopter = self.meter(9)
            adopter.record("adopter.began")
            worker = adopter._worker
            assert worker is not None
            for _ in range(200):
                self.clock.advance(60)
                worker.flush_step()
                if len(list((self.folder / "queue").glob("*.lock"))) == 1:
                    break
            self.close(9)
            assert list((self.folder / "queue").glob("*.lock")) == []
            model = {name: (self.sums[name], count) for name, count in self.counts.items() if count}
            assert self._held() == model
            assert list(self.ledger.verify()) == []
        finally:
            self.ledger.close()
            shutil.rmtree(self.folder)


TestInterleavings = Interleavings.TestCase
TestInterleavings.settings = settings(
    max_examples=60,
    stateful_step_count=30,
    print_blob=True,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    phases=set(Phase) - {Phase.shrink, Phase.explain},
)
