"""
Every limit of the server: its name, its unit (last in the name), its value, and the
reason for it. The limits of an event and of the formats are `tallybook.limits`.

What an operator may set is an option of `EmbeddedLedger`; the value here is its default.
"""

from __future__ import annotations

from typing import Final

# -- commit -----------------------------------------------------------------------------

BLOCKS_PER_COMMIT_MAX: Final = 256
"""Blocks in one transaction. At 1,000 events a block a commit then takes well under a second."""

BYTES_PER_COMMIT_MAX: Final = 32 << 20
"""Bytes of blocks in one transaction, so that the largest blocks do not make one of a gigabyte."""

DOOR_BLOCK_BYTES_CUT: Final = 1 << 20
"""JSON events are packed into blocks of about this size at most, far below a block's bound."""

JOURNAL_CACHE_BYTES: Final = 64 << 20
"""Pages that SQLite keeps: the inner pages of the indexes of some hundred million identities."""

WAL_PAGES_MAX: Final = 4_000
"""The write-ahead log is copied back at 16 MB: two or three times a second flat out."""

# -- hot tail ---------------------------------------------------------------------------

TAIL_EVENTS_MAX: Final = 4_000_000
"""Events that are not sealed. Beyond it ingest answers 503; about 70 bytes each in memory."""

TAIL_BYTES_MAX: Final = 1 << 30
"""Memory of the events that are not sealed: with tags that never repeat this comes first."""

BUSY_RETRY_SECONDS: Final = 2.0
"""When to come back to a full tail: a seal of a million events takes about as long."""

# -- seal -------------------------------------------------------------------------------

SEAL_EVENTS: Final = 1_000_000
"""A seal is due at this many events: large enough to compress well, a second of work."""

SEAL_BYTES: Final = 256 << 20
"""A seal is due at this much memory, whatever the number of events."""

SEAL_AGE_SECONDS: Final = 86_400
"""A seal is due when the oldest unsealed event is this old: at most 366 small files a year."""

SEAL_CHECK_SECONDS: Final = 0.5
"""How often the sealer looks for the age, and hands new rows to the query engine."""

SWEEP_BLOCKS: Final = 64
"""Sealed blocks whose bytes leave the journal in one transaction: about 2 MB, a few ms."""

SEGMENT_TAG_COLUMNS_MAX: Final = 200
"""Tag keys with a column of their own in one segment; further ones share a map."""

# -- backup -----------------------------------------------------------------------------

COPY_PAGES: Final = 64
"""Pages of the journal that a backup copies at one time: 256 KiB, a millisecond."""

COPY_SLICE_SECONDS: Final = 0.005
"""A backup copies for so long, and then lets what waits have its turn."""

COPY_SHARE: Final = 5
"""Where the others took more than this many times its slice, its next slice is longer: else it
would never come to the end of a journal that grows all the while."""

COPY_CHUNK_BYTES: Final = 1 << 20
"""A segment is read, hashed and written in pieces of this size."""

# -- proofs -----------------------------------------------------------------------------

PROOF_GROUP_ENTRIES: Final = 512
"""Entries whose events share a tree: half a million events, some seconds to prove one of them."""

SCAN_EVENTS: Final = 5_000
"""Events read at one time for a checkpoint, or to be taken back."""

VOID_RUNS_MAX: Final = 100_000
"""Stretches of neighbouring events in one void: an entry of about a megabyte."""
# -- compaction -------------------------------------------------------------------------

COMPACTION_SEGMENTS: Final = 4
"""Segments of one kind and size that are merged into one. So at most 3 sealed ones lie beside
those of a month, and 3 of each size in it, a size being 4 times the one before."""

SEGMENT_ROWS_MIN: Final = 10_000
"""Rows of a month that are worth a segment. To read so many beside those that are asked for
takes less than to open one more file; fewer wait in a mixed segment until they are more."""

SEGMENT_ROWS_MAX: Final = 3 * SEAL_EVENTS
"""Rows of a merged segment. One with a quarter of it is never written anew: so what a seal of a
million events brings to its month is large enough at once, in the order in which it came, and
a question about a day reads little else. Also, what is merged at one time takes seconds."""

COMPACTION_MONTHS_MAX: Final = 64
"""Months that one compaction makes a segment of, the largest first. Each takes a look at all
rows, about 10 ms a million; more than five years at once are events with made-up times."""

COMPACTION_MEMORY_BYTES: Final = 256 << 20
"""Memory of the DuckDB that compacts, beside that of queries; beyond it, it spills to the book."""

COMPACTION_RUN_BYTES: Final = 64 << 20
"""Rows that are sorted at one time, by estimate: about 300,000. A run takes its place behind the
one before it, so the memory does not grow with the segment. Between two runs come seals."""

COMPACTION_RETRY_SECONDS: Final = 60.0
"""When a compaction that failed is tried again: whatever was in its way, such as a full disk,
seldom goes within seconds, and each try writes for seconds."""

# -- queries ----------------------------------------------------------------------------

WINDOWS_MAX: Final = 20_000
"""Windows in one answer: two years of hours, fifty of days."""

WINDOW_SLOTS_MAX: Final = 1_000_000
"""Equal slots that the windows of an answer are made of. Beyond it, where offsets of the
19th century meet, an ASOF join is used, five times slower."""

ROWS_MAX: Final = 100_000
"""Rows of one answer, unless the query says otherwise; it says when there are more."""

QUERY_GROUPS_MAX: Final = 1_000_000
"""Groups that one question makes, empty windows included: all are in memory, to be put in
order, about 1 KB each. More is an error, never a cut."""

PERCENTILE_DECIMALS_MAX: Final = 9
"""Digits behind the point of a percentile: one event in 100 billion; ranks stay integers."""

QUERY_MEMORY_BYTES: Final = 4 << 30
"""Memory of DuckDB for the hot tail, queries and seals; beyond it, it spills to the book."""

SEARCH_ENTRIES: Final = 2_000
"""Entries that a search by producer or source looks at in one turn on the writer's thread: a
few milliseconds."""

SEARCH_ENTRIES_AT_ONCE: Final = 20_000
"""Entries whose events are looked for in one go: so many at most are in memory."""

SEARCH_SCOPES: Final = 500
"""Sources and dimensions in which a search looks for a key in one turn: about 2 ms."""

OTHER_PLACES_MAX: Final = 100
"""Further places of one event that are listed: one for each clone of a disk that sent it."""

# -- producers --------------------------------------------------------------------------

SILENT_SECONDS: Final = 300
"""A producer that has not spoken for this long is silent. It speaks every 30 seconds."""

GAPS_MAX: Final = 100
"""Missing ranges of a producer that are listed by name."""

SILENT_NAMED_MAX: Final = 100
"""Silent producers that an answer lists by name; all of them are counted."""

# -- HTTP -------------------------------------------------------------------------------

BODY_BYTES_MAX: Final = 8 << 20
"""A request's body on the wire. The SDK sends 4 MiB, or one larger block alone."""

BODY_RAW_BYTES_MAX: Final = 16 << 20
"""A request's body once decompressed: the bound that a decompression bomb meets."""

ZSTD_WINDOW_LOG_MAX: Final = 23
"""A zstd frame may ask for a window of 2 to this power bytes, 8 MiB: as RFC 9659 asks of HTTP."""

BODIES_BYTES_MAX: Final = 256 << 20
"""All bodies in memory at one time, compressed and not; beyond it the answer is 503."""

BODY_SECONDS_MAX: Final = 30.0
"""For a whole body to arrive: three times what the SDK gives a request."""

DRAIN_BYTES_MAX: Final = 64 << 20
"""Of a body that is refused, read and thrown away, so that the sender sees why and no reset."""

DRAIN_SECONDS_MAX: Final = 5.0
"""How long a refused body is thrown away before the connection is closed over it."""

HEAD_BYTES_MAX: Final = 64 << 10
"""A request's line and header fields; the parser itself has no bound."""

HEAD_SECONDS_MAX: Final = 10.0
"""For a head to arrive, from the connection or its first byte; uvicorn itself waits for ever."""

CONNECTIONS_MAX: Final = 1_000
"""Open connections; 1,024 file descriptors are the smallest usual allowance of a process."""

KEEP_ALIVE_SECONDS: Final = 75
"""An idle connection lives this long: longer than senders keep theirs, so that they close it."""

SHUTDOWN_SECONDS_MAX: Final = 10
"""For begun requests to be finished; what is cut off then was not acknowledged."""

JSON_EVENTS_MAX: Final = 10_000
"""Events in one JSON request."""

JSON_COMMAS_MAX: Final = 50 * JSON_EVENTS_MAX
"""Commas in a JSON body: 8 MiB of ``1,1,1`` would be 360 MB of list before it is counted."""

JSON_EVENT_BYTES_MAX: Final = 128 << 10
"""One JSON event. The largest within its bounds, all of it escaped, has about 70,000 bytes."""

JSON_DEPTH_MAX: Final = 32
"""Objects and arrays within each other in one JSON event; an event needs 2."""

INLINE_BYTES_MAX: Final = 64 << 10
"""A larger body is worked on in a thread: 10,000 JSON events take 0.3 s, and others wait."""

INGEST_THREADS_MAX: Final = 4
"""Threads that work on large bodies; more would only pass the interpreter around."""

DOCUMENT_BYTES_MAX: Final = 64 << 10
"""A correction or a declaration, as JSON."""

CORRECTION_ID_BYTES_MAX: Final = 255
"""The id of a correction: as long as an ``Idempotency-Key``."""

REASON_BYTES_MAX: Final = 1_000
"""The reason of a correction: a sentence or two for whoever reads the invoice later."""

UNIT_BYTES_MAX: Final = 64
"""The unit of a dimension."""

DESCRIPTION_BYTES_MAX: Final = 1_000
"""The description of a dimension."""

IDEMPOTENCY_KEY_BYTES_MAX: Final = 255
"""The ``Idempotency-Key`` header."""

QUERIES_MAX: Final = 4
"""Questions that are worked on at one time; the next ones wait."""

QUERY_STRING_BYTES_MAX: Final = 16 << 10
"""A question's parameters, as written."""

QUESTION_BYTES_MAX: Final = 1 << 20
"""A question as JSON: a thousand tenants with the longest names fit."""

DIMENSIONS_MAX: Final = 100
"""Dimensions in one question about usage."""

TENANTS_MAX: Final = 1_000
"""Tenants that one question names; without any it is about all of them."""

FILTERS_MAX: Final = 64
"""Filters in one question: two for each tag that an event can have."""

FILTER_VALUES_MAX: Final = 1_000
"""Values that one filter compares with."""

USAGE_ROWS_MAX: Final = 100_000
"""Rows on one page of usage, and of an answer that is not asked for in pages: about 20 MB of
JSON. More is refused and never cut, so that who overlooks `next` does not bill too little."""

RENDER_ROWS: Final = 1_000
"""Rows written in one piece, a few ms: between two pieces, other requests go on."""

LINK_BYTES_MAX: Final = 2 << 10
"""The question in a ``Link`` header: proxies refuse answers whose head is beyond 4 KB."""

PAGE_ROWS_MAX: Final = 1_000
"""Rows on one page of a list."""

PAGE_ROWS: Final = 100
"""Rows on one page, unless asked."""

STREAMS_MAX: Final = 64
"""Open streams of events; each costs a connection and two pages of memory."""

STREAM_PAGE_EVENTS: Final = 1_000
"""Events that a stream reads from the ledger in one go."""

STREAM_PAGE_BYTES: Final = 1 << 20
"""Of those, what it sends before it reads again; the same once more may wait in the socket."""

STREAM_READS_MAX: Final = 1
"""Streams that read at one time. Questions have places of their own, and ingest the rest."""

STREAM_INTERVAL_SECONDS: Final = 0.1
"""A stream collects for this long what is recorded: it reads ten times a second at most."""

STREAM_KEEP_ALIVE_SECONDS: Final = 15.0
"""A stream without events says this often that it lives; proxies cut at 30 or 60 seconds."""

STREAM_RETRY_SECONDS: Final = 5
"""``Retry-After`` when there are too many streams."""

STALL_SECONDS_MAX: Final = 60.0
"""A client that takes nothing of its answer for this long is cut off: a stream would keep its
place for ever otherwise."""

FINDINGS_MAX: Final = 1_000
"""Findings in one answer of verify; the answer says when there are more."""

FULL_RETRY_SECONDS: Final = 30
"""``Retry-After`` when the disk is full: somebody has to make room first."""

BODIES_RETRY_SECONDS: Final = 1
"""``Retry-After`` when the bodies in memory are at their bound."""

READY_SECONDS_MAX: Final = 2.0
"""For the ledger's writer to answer before the server calls itself not ready."""
