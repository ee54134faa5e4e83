"""
Does the ledger hold together? Everything is computed anew and compared with what is there.

- `entries`, the chain: each entry's bytes, its position, and the head behind it; of blocks
  the digests, and that none that is needed is missing;
- `manifest`, the segments: the file's SHA-256; that seals cover the journal without a gap;
  that compactions made as many rows as they took, of segments that there were; that what is
  left after all of them is what the manifest has; and every column of the manifest against
  the rows of the file, because a query leaves out a segment on its word;
- `events`: each (entry, index) that the verdicts count is in exactly one segment or in the
  tail, once, and no other is. An index has a mark, a hash that is seeded with the chain's
  head; of each entry, the marks of what the segments have add up to those of what counts,
  which by chance would happen once in 10^19 times;
- `sequences`: the stretches that are held are those that the blocks brought, and add up;
- `identities`: each key and id of a counted event is taken by it, and no other is taken;
- `rejections`: one for each event that was not counted, as its entry judged it, unchanged;
- `changes`: each correction and declaration is noted under its id, and takes back only what
  is there; each branch follows from the one before it, and is noted;
- `statements`: checkpoints say what was so at their positions;
- `tallies`: rows that no entry speaks of are as they were written;
- `files` that belong to nobody;
- `log`, of a book whose server was killed: that its write-ahead log is read to its end.

`record` is what the entries say, which the later checks compare with; `book_check` runs one
after the other, `directory` does that for a book that no server has open.

What is read of a damaged book is never trusted: a file whose digest is wrong is not handed
to DuckDB, and whatever else cannot be read is a finding, and no reason not to look at the
rest. Work on the journal is done in pages, so that ingest waits for milliseconds at a time;
but for SQLite's own check of its file, which is one piece.
"""

from tallybook_server.verify.book_check import verify_book
from tallybook_server.verify.directory import verify_directory
from tallybook_server.verify.progress import Progress, Report, silent

__all__ = [
    "Progress",
    "Report",
    "silent",
    "verify_book",
    "verify_directory",
]
