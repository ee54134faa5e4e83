"""
A thousand damages: whatever a disk, a slip of the hand or a wrong copy does, verify finds it.

A damage counts if it changed something that anybody can read. SQLite's file has pages and
gaps that nothing refers to; where a byte of these is changed, all that can be read of the
journal is compared with what it was, and such a damage is drawn anew.
"""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest

from tallybook.cli import main
from tallybook_server.ledger import Finding, LedgerDamaged
from tallybook_server.verify import verify_directory
from tests.ingest_server.ledger.damages import Damage, Pristine, damages, logical_content
from tests.ingest_server.ledger.full_book import FullBook, build

SEED = 3
QUICK = 70
PARTS = 10
IN_A_PART = 100
KINDS = {
    "flip",
    "truncation",
    "segment",
    "row deleted",
    "row changed",
    "row swapped",
    "row added",
}


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> FullBook:
    """A closed book with something of everything."""
    return build(tmp_path_factory.mktemp("full"))


@pytest.fixture
def pristine(full: FullBook) -> Iterator[Pristine]:
    """The book as it was; put back behind the test."""
    pristine = Pristine(full.book)
    yield pristine
    pristine.restore()


def found(book: Path) -> list[Finding]:
    """What verify finds; a book that it cannot even open is a finding of the command's."""
    try:
        return list(verify_directory(book))
    except LedgerDamaged as error:
        return [Finding("journal", "journal.db", str(error))]


def is_meaningless(damage: Damage, full: FullBook, pristine: Pristine) -> bool:
    """Whether whatever can be read of the book is what it was."""
    if damage.kind != "flip" or any(
        path.read_bytes() != pristine.files[path] for path in pristine.segments
    ):
        return False
    return logical_content(full.book / "journal.db") == pristine.content


def meaningful(
    full: FullBook,
    pristine: Pristine,
    seed: int,
    part: int = 0,
    parts: int = 1,
    *,
    apart: list[Damage] | None = None,
) -> Iterator[Damage]:
    """
    Damages, each done to the book while it is looked at; of so many parts, one.

    Those that nobody can see come to lie *apart*.
    """
    for damage in islice(damages(full, pristine, seed), part, None, parts):
        damage.apply(full.book)
        if not is_meaningless(damage, full, pristine):
            yield damage
        elif apart is not None:
            apart.append(damage)
        pristine.restore()


def test_book_before_any_damage_has_no_findings(full: FullBook, pristine: Pristine) -> None:
    """Else everything would be found."""
    assert found(full.book) == []
    assert pristine.content is not None


def check_damages(full: FullBook, some: Iterator[Damage], count: int) -> None:
    """That so many of *some* damages are found, and each named."""
    missed: list[str] = []
    done: Counter[str] = Counter()
    for damage in islice(some, count):
        done[damage.kind] += 1
        findings = found(full.book)
        if not any(damage.named(finding) for finding in findings):
            missed.append(f"{damage.kind}: {damage.words}: {findings[:3]}")
    assert missed == []
    assert (set(done), done.total()) == (KINDS, count)


def test_each_damage_is_found_and_named(full: FullBook, pristine: Pristine) -> None:
    """Flipped, cut, swapped, missing, changed or added: at least one finding says where."""
    check_damages(full, meaningful(full, pristine, SEED), QUICK)


def test_only_flips_in_the_journal_can_be_invisible(full: FullBook, pristine: Pristine) -> None:
    """They are counted apart: about half of such flips, and none of any other damage."""
    apart: list[Damage] = []
    seen = list(islice(meaningful(full, pristine, SEED, apart=apart), QUICK))
    assert {damage.kind for damage in apart} == {"flip"}
    assert all("journal.db" in damage.words for damage in apart)
    flips = [one for one in seen if one.kind == "flip" and "journal.db" in one.words]
    assert 0 < len(apart) < 3 * len(flips)


@pytest.mark.prove
@pytest.mark.parametrize("part", range(PARTS))
def test_each_of_a_thousand_damages_is_found_and_named(
    full: FullBook, pristine: Pristine, part: int
) -> None:
    """Likewise; a hundred at a time, none twice."""
    check_damages(full, meaningful(full, pristine, SEED + 1, part, PARTS), IN_A_PART)


def test_damaged_book_ends_the_command_with_1(
    full: FullBook, pristine: Pristine, capsys: pytest.CaptureFixture[str]
) -> None:
    """And its output has the place."""
    for damage in islice(meaningful(full, pristine, SEED + 2), 12):
        code = main(["verify", "--data", str(full.data)])
        said = capsys.readouterr()
        assert (code, damage.words) == (1, damage.words)
        assert said.out.strip()
        assert "finding" in said.err


@pytest.mark.parametrize("at", range(3))
def test_damaged_book_ends_the_process_with_1(full: FullBook, pristine: Pristine, at: int) -> None:
    """As an operator's script sees it."""
    damage = next(meaningful(full, pristine, SEED + 10 + at))
    command = [sys.executable, "-m", "tallybook.cli", "verify", "--data", str(full.data)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (ran.returncode, damage.words) == (1, damage.words)
    assert ran.stdout.strip()
