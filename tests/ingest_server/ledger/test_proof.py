"""Proofs: an event leads to a published root, and nothing that was changed does."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tallybook.errors import InvariantBroken
from tallybook_server.event_filter import EVERY_EVENT, EventFilter
from tallybook_server.ledger import EventId, LedgerEvent, VoidRequest
from tallybook_server.proof import (
    Checkpoint,
    CheckpointUnknown,
    EventProof,
    ProofWrong,
    Unproven,
    check,
    path,
    root,
)
from tallybook_server.prover import Prover
from tallybook_server.question import read_position
from tests.ingest_server.ledger.conftest import ONE, TWO, Desk, block, event


def prover(desk: Desk) -> Prover:
    """With groups of three entries."""
    return Prover(desk.ledger.writer, desk.ledger.scan, desk.ids, group_entries=3)


def prove(desk: Desk, producer: bytes, sequence: int, position: str | None = None) -> EventProof:
    name = EventId(producer.hex(), sequence)
    (entry,) = (
        one.position
        for one in desk.ledger.scan(after=(0, -1), limit=1_000)
        if (one.producer, one.sequence) == name
    )
    checkpoint = None if position is None else read_position(position)
    return prover(desk).prove(name, entry, checkpoint)


@pytest.fixture
def filled(desk: Desk) -> Desk:
    """Entries 2 to 8, of one to four events, each of another tenant and value."""
    for at in range(7):
        events = [
            event(10 * at + n, tenant=f"t{n}", tags={"n": str(n)}, key=f"{at}.{n}")
            for n in range(at % 4 + 1)
        ]
        desk.send(block(1 + 10 * at, *events))
    return desk


# -- trees ---------------------------------------------------------------------------------


def leaves(count: int) -> list[bytes]:
    return [bytes([n]) * 32 for n in range(count)]


def test_roots_are_those_of_rfc_9162() -> None:
    """By hand, over three leaves: ((a b) c); and the hash of nothing over none."""
    from hashlib import sha256

    a, b, c = leaves(3)
    pair = sha256(b"\1" + a + b).digest()
    assert root([a, b, c]) == sha256(b"\1" + pair + c).digest()
    assert root([a]) == a
    assert root([]) == sha256().digest()


@given(st.integers(1, 70), st.data())
def test_every_leaf_leads_to_the_root_and_to_no_other(size: int, data: st.DataObject) -> None:
    """Of a tree of any size; another place, size or path leads elsewhere, or nowhere."""
    from tallybook_server.proof import _climb

    tree = leaves(size)
    index = data.draw(st.integers(0, size - 1))
    beside = path(tree, index)
    assert _climb(tree[index], index, size, beside, "leaf") == root(tree)

    def leads(start: bytes, place: int, many: int, way: list[bytes]) -> bool:
        try:
            return _climb(start, place, many, way, "leaf") == root(tree)
        except ProofWrong:
            return False

    assert not leads(b"x" * 32, index, size, beside)
    other = data.draw(st.integers(0, size - 1))
    assert leads(tree[index], other, size, beside) is (other == index)
    if beside:
        assert not leads(tree[index], index, size, beside[:-1])
    assert not leads(tree[index], index, size, [*beside, b"x" * 32])
    assert not leads(tree[index], size, size, beside)


# -- checkpoints ---------------------------------------------------------------------------


def test_every_event_is_proven(filled: Desk) -> None:
    """In finished groups and in the last one."""
    checkpoint = prover(filled).checkpoint()
    assert (checkpoint.position, checkpoint.groups) == ("1.8", 3)
    scanned = filled.ledger.scan(after=(0, -1), limit=100)
    assert checkpoint.events == len(scanned) == 16
    for one in scanned:
        proof = prover(filled).prove(EventId(one.producer, one.sequence), one.position)
        sent = msgspec.json.decode(msgspec.json.encode(proof), type=EventProof)
        shown = check(sent, checkpoint)
        assert (shown.event(), shown.source) == (one.event, one.source)


def test_a_checkpoint_is_the_same_after_a_seal_and_a_restart(filled: Desk) -> None:
    """It speaks of events, and of nothing that the engine does with them."""
    before = prover(filled).checkpoint()
    tree = before.root, before.events
    filled.seal()
    filled.reopen()
    after = prover(filled).checkpoint()
    assert (after.root, after.events) == tree
    assert after.position == "1.9"  # The seal is an entry.
    assert prover(filled).checkpoints() == [before, after]


def test_a_checkpoint_at_the_same_position_is_the_same(filled: Desk) -> None:
    """It is a statement: there are no two of one position."""
    assert prover(filled).checkpoint() == prover(filled).checkpoint()
    assert len(prover(filled).checkpoints()) == 1


def test_an_old_checkpoint_proves_on(filled: Desk) -> None:
    """Its last group has grown since then, and is seen as it was."""
    old = prover(filled).checkpoint()
    filled.send(block(1, event(99), producer=TWO))
    filled.send(block(2, event(98), producer=TWO))
    new = prover(filled).checkpoint()
    assert check(prove(filled, ONE, 61, position="1.8"), old).value == "60"
    assert check(prove(filled, ONE, 61), new).value == "60"
    with pytest.raises(Unproven, match=r"does not count at the checkpoint 1\.8"):
        prove(filled, TWO, 1, position="1.8")


def test_finished_groups_are_not_read_again(filled: Desk) -> None:
    """A checkpoint reads what is new."""
    prover(filled).checkpoint()
    filled.send(block(1, event(99), producer=TWO))
    read: list[int] = []

    def scan(
        chosen: EventFilter = EVERY_EVENT, *, after: tuple[int, int], limit: int
    ) -> list[LedgerEvent]:
        read.append(after[0])
        return filled.ledger.scan(chosen, after=after, limit=limit)

    Prover(filled.ledger.writer, scan, filled.ids, group_entries=3).checkpoint()
    assert min(read) == 6


def test_events_that_do_not_count_are_not_in_the_tree(desk: Desk) -> None:
    """And an empty ledger has a checkpoint, too."""
    assert prover(desk).checkpoint().events == 0
    desk.send(block(1, event(1), event(2, tenant="x" * 256)))
    assert prover(desk).checkpoint().events == 1
    with pytest.raises(Unproven):
        prover(desk).prove(EventId(ONE.hex(), 2), 2)


def test_a_voided_event_stays_proven(filled: Desk) -> None:
    """It was recorded; that it was taken back is an entry of its own."""
    request = VoidRequest("v", "a test", event=EventId(ONE.hex(), 1))
    filled.ledger.correct(request).result(timeout=0)
    checkpoint = prover(filled).checkpoint()
    assert check(prove(filled, ONE, 1), checkpoint).sequence == 1


def test_a_checkpoint_that_was_not_made_is_unknown(filled: Desk) -> None:
    """Of none at all, and of another position."""
    with pytest.raises(CheckpointUnknown, match="there is no checkpoint;"):
        prove(filled, ONE, 1)
    prover(filled).checkpoint()
    with pytest.raises(CheckpointUnknown, match=r"at position 1\.3"):
        prove(filled, ONE, 1, position="1.3")


def test_equal_events_of_two_tenants_have_nothing_in_common(desk: Desk) -> None:
    """Each tenant has a key of its own, so that a neighbour's hash tells nothing."""
    desk.send(block(1, event(1, tenant="a"), event(1, tenant="b"), event(1, tenant=None)))
    checkpoint = prover(desk).checkpoint()
    salts = {prove(desk, ONE, sequence).salt for sequence in (1, 2, 3)}
    assert len(salts) == 3
    assert check(prove(desk, ONE, 3), checkpoint).tenant is None


def test_a_group_that_was_changed_is_not_proven(filled: Desk) -> None:
    """The root that was kept is what was published."""
    prover(filled).checkpoint()
    journal = filled.ledger.writer
    journal.note(lambda held: held.add_proof_group(0, b"x" * 32, 2)).result(timeout=0)
    with pytest.raises(InvariantBroken, match="entries 1 to 3"):
        prove(filled, ONE, 1)


# -- checking ------------------------------------------------------------------------------


def _more(proof: EventProof) -> EventProof:
    return msgspec.structs.replace(proof, path=[*proof.path, "00" * 32])


CHANGED: list[tuple[Callable[[EventProof], EventProof], str]] = [
    (lambda p: msgspec.structs.replace(p, index=p.index + 1), "leads to the root|longer|below"),
    (lambda p: msgspec.structs.replace(p, size=p.size + 1), "leads to the root|longer|below"),
    (lambda p: msgspec.structs.replace(p, size=0), "is not one of 0"),
    (lambda p: msgspec.structs.replace(p, group=7), "group 7 is not one of 3"),
    (lambda p: msgspec.structs.replace(p, path=p.path[:-1]), "ends below the root"),
    (_more, "longer than its tree is high"),
    (lambda p: msgspec.structs.replace(p, salt="00" * 32), "leads to the root"),
    (lambda p: msgspec.structs.replace(p, salt="zz"), "cannot be read"),
    (lambda p: msgspec.structs.replace(p, group_path=["0"]), "cannot be read"),
    (lambda p: msgspec.structs.replace(p, format=2), "not of format 1"),
]


@pytest.mark.parametrize(("change", "words"), CHANGED)
def test_a_changed_proof_is_found(
    filled: Desk, change: Callable[[EventProof], EventProof], words: str
) -> None:
    """Each with the step that fails."""
    checkpoint = prover(filled).checkpoint()
    proof = prove(filled, ONE, 33)
    check(proof, checkpoint)
    with pytest.raises(ProofWrong, match=words):
        check(change(proof), checkpoint)


@pytest.mark.parametrize(
    ("field", "other"),
    [
        ("producer", TWO.hex()),
        ("sequence", 34),
        ("sequence", -1),
        ("source", None),
        ("dimension", "other"),
        ("value", "31"),
        ("tenant", None),
        ("time", "2026-01-01T00:00:00Z"),
        ("time", "yesterday"),
        ("tags", {}),
        ("key", "other"),
        ("id", "other"),
        ("given", True),
    ],
)
def test_a_changed_event_is_found(filled: Desk, field: str, other: object) -> None:
    """Every field of it leads elsewhere."""
    checkpoint = prover(filled).checkpoint()
    proof = prove(filled, ONE, 33)
    changed = msgspec.structs.replace(proof.event, **{field: other})
    with pytest.raises(ProofWrong, match=r"leads to the root|cannot be read"):
        check(msgspec.structs.replace(proof, event=changed), checkpoint)


@pytest.mark.parametrize("field", Checkpoint.__struct_fields__)
def test_another_checkpoint_is_not_what_was_proven(filled: Desk, field: str) -> None:
    """The one that was published counts, and not the one that the proof brings."""
    checkpoint = prover(filled).checkpoint()
    proof = prove(filled, ONE, 33)
    value = getattr(checkpoint, field)
    other = msgspec.structs.replace(
        checkpoint, **{field: value + 1 if isinstance(value, int) else "00"}
    )
    with pytest.raises(ProofWrong):
        check(proof, other)
