"""
Verify: whatever is changed behind the ledger's back is found.
"""

from __future__ import annotations

import sqlite3
from functools import partial
from pathlib import Path

import pytest
from msgspec import to_builtins
from msgspec.json import encode

from tallybook_server.compaction import Policy
from tallybook_server.journal import Journal
from tallybook_server.ledger import LedgerDamaged, LedgerLocked
from tallybook_server.verify import verify_directory
from tests.ingest_server.ledger.conftest import ONE, TWO, Desk, block, event


@pytest.fixture
def book(desk: Desk) -> Path:
    """A closed book with something in every table: sealed, unsealed, rejected, keyed."""
    desk.send(
        block(
            1,
            event(1, key="k", tags={"a": "b"}),
            event(1, tenant="x" * 256),
            event(2, id="i"),
            event(3, key="k", tags={"a": "b"}),
        ),
        announcement=desk.announce(highest=4),
    )
    desk.offer(event(5, id="j"))
    desk.seal()
    desk.send(block(1, event(7), event(10**30, key="l"), producer=TWO))
    desk.send(block(1, event(8), producer=TWO))
    desk.ledger.close()
    return desk.directory


def change(book: Path, *statements: str) -> None:
    """Do to the journal what nobody may do to it."""
    db = sqlite3.connect(book / "journal.db", isolation_level=None)
    triggers = db.execute("SELECT name, sql FROM sqlite_schema WHERE type = 'trigger'").fetchall()
    for name, _ in triggers:
        db.execute(f"DROP TRIGGER {name}")
    for statement in statements:
        if not db.execute(statement).rowcount:
            raise AssertionError(f"nothing was changed by {statement}")
    for _, sql in triggers:
        db.execute(sql)
    db.close()


def findings(book: Path) -> set[str]:
    """What kinds of faults are found."""
    return {finding.what for finding in verify_directory(book)}


def test_whole_book_has_no_findings(book: Path) -> None:
    """And nothing in its directory is changed by looking."""
    before = {path: path.stat().st_mtime_ns for path in book.rglob("*")}
    assert list(verify_directory(book)) == []
    assert {path: path.stat().st_mtime_ns for path in book.rglob("*")} == before


FLIP = "CAST(substr({0}, 1, {1}) || x'FF' || substr({0}, {1} + 2) AS BLOB)"


@pytest.mark.parametrize(
    ("what", "statement"),
    [
        ("chain", f"UPDATE entries SET entry = {FLIP.format('entry', 12)} WHERE position = 2"),
        ("chain", f"UPDATE entries SET chain = {FLIP.format('chain', 3)} WHERE position = 2"),
        ("chain", "UPDATE entries SET first = 9 WHERE position = 2"),
        ("chain", "UPDATE entries SET producer = x'00' WHERE position = 2"),
        ("chain", "UPDATE entries SET sha256 = x'00' WHERE position = 2"),
        ("chain", "DELETE FROM entries WHERE position = 3"),
        ("block", f"UPDATE blocks SET data = {FLIP.format('data', 100)} WHERE position = 5"),
        ("block", "DELETE FROM blocks WHERE position = 5"),
        ("sequence", "UPDATE ranges SET last = last + 1 WHERE position = 2"),
        ("sequence", "UPDATE ranges SET position = 3 WHERE position = 2"),
        ("sequence", "DELETE FROM ranges WHERE position = 2"),
        ("identity", "UPDATE identities SET key = 'other' WHERE key = 'k'"),
        ("identity", "UPDATE identities SET source = 'other' WHERE key = 'k'"),
        ("identity", "UPDATE identities SET digest = x'00' WHERE key = 'l'"),
        ("identity", "UPDATE identities SET idx = 7 WHERE key = 'i'"),
        ("identity", "DELETE FROM identities WHERE key = 'j'"),
        ("identity", "INSERT INTO identities VALUES ('s', '', 'spare', 2, 0, x'00')"),
        ("rejection", "UPDATE rejections SET data = x'00' WHERE idx = 1"),
        ("rejection", "UPDATE rejections SET reason = 'none' WHERE idx = 1"),
        ("rejection", "UPDATE rejections SET digest = x'00' WHERE idx = 1"),
        ("rejection", "DELETE FROM rejections WHERE idx = 1"),
        ("sequence", f"UPDATE producers SET received = 9 WHERE producer = x'{ONE.hex()}'"),
        ("segment", "UPDATE segments SET rows = 9"),
        ("segment", "UPDATE segments SET sha256 = x'00'"),
        ("segment", "UPDATE segments SET last = 9"),
        ("segment", "DELETE FROM segments"),
        ("block", "INSERT INTO blocks SELECT 4, data FROM blocks WHERE position = 5"),
        ("block", "INSERT INTO blocks SELECT 99, data FROM blocks WHERE position = 5"),
        ("block", "INSERT INTO blocks SELECT -1, data FROM blocks WHERE position = 5"),
        ("sequence", "UPDATE ranges SET first = first + 1, last = last + 1 WHERE position = 2"),
        ("sequence", "INSERT INTO ranges VALUES (x'07', 1, 1, 99)"),
        ("sequence", "UPDATE ranges SET last = 1 << 60 WHERE position = 2"),
        ("sequence", "UPDATE ranges SET first = -1 << 60 WHERE position = 2"),
        ("identity", "INSERT INTO identities VALUES ('s', '', 'spare', 99, 0, x'00')"),
        ("rejection", "INSERT INTO rejections VALUES (2, 9, 4, '', '', x'', x'', x'')"),
        ("rejection", "INSERT INTO rejections VALUES (99, 0, 3, '', '', x'', x'', x'')"),
        ("change", "INSERT INTO changes VALUES (99, 'id', x'00')"),
        ("branch", "INSERT INTO restores VALUES (99)"),
        ("row", "UPDATE producers SET dropped = 7"),
        ("row", "UPDATE producers SET last_seen = last_seen + 1"),
        ("row", "DELETE FROM producers WHERE number = (SELECT max(number) FROM producers)"),
        ("row", "INSERT INTO notes VALUES (1, 'archived', 6)"),
        ("row", "INSERT INTO tenant_keys VALUES (1, 'acme', x'00')"),
        ("row", "DELETE FROM tallies"),
        ("row", "INSERT INTO tallies VALUES ('segments', 0, x'00')"),
    ],
)
def test_changed_journal_is_found(book: Path, what: str, statement: str) -> None:
    """One value in one table, and the kind of fault that it makes."""
    change(book, statement)
    assert what in findings(book)


@pytest.mark.parametrize(
    "column",
    [
        "bytes = bytes + 1",
        "rows = rows - 1",
        "time_min = time_min + 1",
        "time_max = time_max - 1",
        "time_max = NULL",
        "wides = 1",
        "tags = '[]'",
        'tags = \'["a", "b"]\'',
        "more = '[\"c\"]'",
        "dimensions = '[]'",
        'dimensions = \'["api.calls", "other"]\'',
        "month = 24311",
        "level = 1",
    ],
)
def test_each_word_of_the_manifest_is_compared(book: Path, column: str) -> None:
    """A query leaves a segment out on its word; the finding has the segment's name."""
    change(book, f"UPDATE segments SET {column}")
    name = next((book / "segments").iterdir()).name
    found = {(one.what, one.where) for one in verify_directory(book)}
    assert ("segment", f"segments/{name}") in found


def test_position_beyond_all_bounds_is_found_in_little_memory(book: Path) -> None:
    """There are columns with a number for each entry; eight terabytes of it are a crash."""
    change(book, f"UPDATE entries SET position = {1 << 40} WHERE position = 6")
    found = {(one.what, one.where) for one in verify_directory(book)}
    assert ("chain", f"entry {1 << 40}") in found


def test_tail_of_a_damaged_journal_is_not_built(book: Path) -> None:
    """A verdict may say of a trillion events that they do not count: its entry is named."""
    change(book, f"UPDATE entries SET entry = {FLIP.format('entry', 40)} WHERE position = 5")
    found = {(one.what, one.where) for one in verify_directory(book)}
    assert ("chain", "entry 5") in found
    assert not any(what == "sum" for what, _ in found)


def test_swapped_stretches_of_two_producers_are_found(desk: Desk) -> None:
    """As many sequences, by the same entries: but not those that the blocks brought."""
    desk.send(block(1, event(1)), block(1, event(2), producer=TWO))
    desk.ledger.close()
    change(
        desk.directory,
        "UPDATE ranges SET position = 5 - position",
    )
    assert findings(desk.directory) == {"sequence"}


def test_level_of_a_merged_segment_is_compared_with_its_compactions(tmp_path: Path) -> None:
    """It says when the segment is merged again, and its name does not have it."""
    desk = Desk(tmp_path / "book", compaction=Policy(fan_in=2, rows_min=1))
    for first in (1, 2):
        desk.send(block(first, event(1)))
        desk.seal()
    desk.compact()
    desk.ledger.close()
    change(desk.directory, "UPDATE segments SET level = 2 WHERE level = 1")
    assert findings(desk.directory) == {"segment"}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("chain", "00" * 32),
        ("events", 9),
        ("groups", 2),
        ("recorded_at", "2020-01-01T00:00:00Z"),
        ("ledger", "f" * 32),
        ("position", "1.7"),
    ],
)
def test_checkpoint_is_compared_with_the_chain(desk: Desk, field: str, value: object) -> None:
    """One that was written with its tally, as all are: what it says is wrong all the same."""
    desk.send(block(1, event(1)))
    right = to_builtins(desk.ledger.checkpoint())
    desk.send(block(2, event(2)))
    assert desk.findings() == []
    wrong = encode(right | {field: value})
    note = desk.ledger.writer.note
    forget = "DELETE FROM checkpoints; DELETE FROM tallies WHERE name = 'checkpoints'"
    for sql in forget.split(";"):
        note(partial(_execute, sql=sql)).result(timeout=0)
    note(lambda journal: journal.add_checkpoint(2, wrong)).result(timeout=0)
    assert [one.what for one in desk.ledger.verify()] == ["checkpoint"]


def _execute(journal: Journal, sql: str) -> None:
    journal._db.execute(sql)


@pytest.mark.parametrize("number", [-1, 0, 5])
def test_group_of_a_proof_is_compared_with_its_entries(desk: Desk, number: int) -> None:
    """Its entries are not all there yet, nor ever."""
    desk.send(block(1, event(1)))
    note = desk.ledger.writer.note
    note(lambda journal: journal.add_proof_group(number, b"x" * 32, 2)).result(timeout=0)
    assert [one.what for one in desk.ledger.verify()] == ["proof"]


@pytest.mark.parametrize(
    "statement",
    [
        "DROP TRIGGER entries_stay",
        "DROP INDEX rejections_digest",
        "CREATE TABLE theirs (x)",
        "PRAGMA application_id = 7",
    ],
)
def test_changed_schema_is_found(book: Path, statement: str) -> None:
    """What keeps a slip of the hand from doing damage is itself looked at."""
    db = sqlite3.connect(book / "journal.db", isolation_level=None)
    db.execute(statement)
    db.close()
    assert findings(book) == {"journal"}


def test_damaged_file_of_a_segment_is_not_read(book: Path) -> None:
    """It is named once; DuckDB, which would believe it, does not get to see it."""
    path = next((book / "segments").iterdir())
    path.write_bytes(b"PAR1" + b"\xff" * 400 + b"PAR1")
    found = [(one.what, one.where) for one in verify_directory(book)]
    assert found == [("segment", f"segments/{path.name}")]


def test_changed_verdicts_are_found(book: Path) -> None:
    """An entry rewritten with its chain: the events say something else."""
    from tallybook_server.entry import Entry, encode_entry, link, read_entry

    db = sqlite3.connect(book / "journal.db", isolation_level=None)
    head: bytes = db.execute("SELECT chain FROM entries WHERE position = 4").fetchone()[0]
    entry = read_entry(db.execute("SELECT entry FROM entries WHERE position = 5").fetchone()[0])
    last = read_entry(db.execute("SELECT entry FROM entries WHERE position = 6").fetchone()[0])
    forged = encode_entry(Entry(1, 5, entry.recorded_at, "block", entry.detail, [last.verdicts[0]]))
    chain = link(head, forged)
    db.execute("DROP TRIGGER entries_stay")
    db.execute("UPDATE entries SET entry = ?, chain = ? WHERE position = 5", (forged, chain))
    chain = link(chain, encode_entry(last))
    db.execute("UPDATE entries SET chain = ? WHERE position = 6", (chain,))
    db.close()
    found = findings(book)
    assert "chain" not in found
    assert {"identity", "rejection", "sequence"} & found


def test_every_flipped_byte_of_a_segment_is_found(book: Path) -> None:
    """The file's SHA-256 is in the chain; every 97th byte is tried."""
    path = next((book / "segments").iterdir())
    whole = path.read_bytes()
    for at in range(0, len(whole), 97):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        assert "segment" in findings(book)


def test_lost_segment_is_found(book: Path) -> None:
    """A file that somebody has removed."""
    next((book / "segments").iterdir()).unlink()
    assert "segment" in findings(book)


def test_forged_segment_with_another_event_is_found(book: Path) -> None:
    """Rows are counted per entry and place, whatever the manifest says of the file."""
    import duckdb

    from tallybook_server.segment import file_digest

    path = next((book / "segments").iterdir())
    forged = path.with_name("forged")
    duckdb.sql(
        f"COPY (SELECT * REPLACE (1 AS \"index\") FROM read_parquet('{path}')) "
        f"TO '{forged}' (FORMAT parquet)"
    )
    forged.rename(path)
    sha256, size = file_digest(path)
    change(book, f"UPDATE segments SET sha256 = x'{sha256.hex()}', bytes = {size}")
    assert "sum" in findings(book)


def test_file_that_belongs_to_nobody_is_found(book: Path) -> None:
    """It may be an older backup's, or a mistake; nothing reads it."""
    (book / "journal.db.bak").write_bytes(b"x")
    assert findings(book) == {"file"}


def test_journal_that_is_no_database_is_a_finding(book: Path) -> None:
    """Not a traceback."""
    (book / "journal.db").write_bytes(b"not a database" * 400)
    assert "journal" in findings(book)


def test_journal_with_a_schema_that_is_no_text_is_a_finding(book: Path) -> None:
    """SQLite quotes it in its error, and Python cannot decode the error."""
    path = book / "journal.db"
    path.write_bytes(path.read_bytes().replace(b"CREATE TABLE tallies", b"CREATE TABL\x94 tallies"))
    assert findings(book) == {"journal"}


def test_last_entry_that_cannot_be_read_is_named(book: Path) -> None:
    """Without it the journal cannot even be opened: nobody knows the time."""
    change(book, "UPDATE entries SET entry = x'93' WHERE position = 6")
    with pytest.raises(LedgerDamaged, match="entry 6"):
        list(verify_directory(book))


def test_directory_that_is_no_book_is_an_error(tmp_path: Path) -> None:
    """A wrong path is said so."""
    with pytest.raises(LedgerDamaged, match="no book"):
        list(verify_directory(tmp_path))


def test_open_book_is_verified_by_its_server(desk: Desk) -> None:
    """From outside, while a server holds it: the message says whom to ask."""
    desk.send(block(1, event(1)))
    with pytest.raises(LedgerLocked, match="held by a running server"):
        list(verify_directory(desk.directory))
    assert desk.findings() == []


def test_killed_book_can_be_verified(desk: Desk) -> None:
    """With its write-ahead log still beside it."""
    import shutil

    desk.send(block(1, event(1)))
    copy = desk.directory.with_name("copy")
    shutil.copytree(desk.directory, copy)
    assert list(verify_directory(copy)) == []


def test_newer_schema_is_refused(book: Path) -> None:
    """A journal that a newer version has written is not touched."""
    db = sqlite3.connect(book / "journal.db")
    db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(LedgerDamaged, match="newer version"):
        Desk(book)


def test_foreign_database_is_refused(tmp_path: Path) -> None:
    """Somebody else's SQLite file is not made into a journal."""
    (tmp_path / "book").mkdir()
    db = sqlite3.connect(tmp_path / "book" / "journal.db")
    db.execute("CREATE TABLE theirs (x)")
    db.close()
    with pytest.raises(LedgerDamaged, match="not a journal"):
        Desk(tmp_path / "book")


def test_entries_cannot_be_changed_by_sql(book: Path) -> None:
    """The file itself refuses: a slip of the hand with sqlite3 is no catastrophe."""
    db = sqlite3.connect(book / "journal.db", isolation_level=None)
    for statement in ("UPDATE entries SET first = 1", "DELETE FROM entries"):
        with pytest.raises(sqlite3.IntegrityError, match="an entry is never"):
            db.execute(statement)
    with pytest.raises(sqlite3.IntegrityError, match="no gaps"):
        db.execute("INSERT INTO entries VALUES (99, x'00', x'00', NULL, NULL, NULL)")
    db.close()


# -- the write-ahead log -------------------------------------------------------------------


@pytest.fixture
def killed(desk: Desk) -> Path:
    """A book whose server was killed behind five commits that are in the log alone."""
    import shutil

    for first in range(1, 6):
        desk.send(block(first, event(first)))
    copy = desk.directory.with_name("killed")
    shutil.copytree(desk.directory, copy)
    return copy


def test_a_log_without_damage_is_no_finding(killed: Path) -> None:
    """Nor is one whose last commit was cut off, by a byte or by much."""
    log = killed / "journal.db-wal"
    whole = log.read_bytes()
    for cut in (0, 1, 100, 4_000, 5_000):
        log.write_bytes(whole[: len(whole) - cut])
        assert list(verify_directory(killed)) == []


@pytest.mark.parametrize("at", [3, 9, 10, 17, 40, 60, 5_000, 20_000])
def test_a_byte_flipped_in_the_middle_of_a_log_is_found(killed: Path, at: int) -> None:
    """SQLite leaves out the commits behind it without a word, and the rest holds together."""
    log = killed / "journal.db-wal"
    whole = log.read_bytes()
    log.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    found = [finding for finding in verify_directory(killed) if finding.where == log.name]
    assert [finding.what for finding in found] == ["journal"]
    assert "cannot be read" in found[0].detail
