"""
Every limit of the SDK and of the formats: its name, its unit (last in the
name), its value, and the reason for it.

A limit that a user may set is an option of `Meter` and has a `TALLYBOOK_*`
variable; the value here is its default. Documented in docs/reference/limits.md,
which a test compares with this file.
"""

from __future__ import annotations

from typing import Final

# -- an event ---------------------------------------------------------------------------

TENANT_BYTES_MAX: Final = 255
"""A tenant's id in UTF-8. 255 is the longest key that common databases index without tricks."""

DIMENSION_CHARS_MAX: Final = 128
"""A dimension's name, of ``a-z 0-9 _ . -``."""

VALUE_DIGITS_MAX: Final = 38
"""Significant digits of a value: what a 128-bit decimal holds, everywhere."""

VALUE_DECIMALS_MAX: Final = 9
"""Digits after the point: a billionth of a unit."""

TAGS_MAX: Final = 32
"""Tags on one event."""

TAG_KEY_BYTES_MAX: Final = 64
"""A tag's key in UTF-8."""

TAG_VALUE_BYTES_MAX: Final = 256
"""A tag's value in UTF-8."""

KEY_BYTES_MAX: Final = 255
"""An idempotency key in UTF-8."""

SOURCE_BYTES_MAX: Final = 128
"""A source's name in UTF-8."""

FUTURE_SECONDS_MAX: Final = 300
"""How far ahead of the server's clock an event may claim to be."""

# -- spool ------------------------------------------------------------------------------

SPOOL_BYTES: Final = 8 << 20
"""One spool file, really allocated. About 80,000 events with two tags."""

SPOOL_HEADER_BYTES: Final = 4096
"""The first page of a spool file: who wrote it, and the drop counter."""

FRAME_BODY_BYTES_MAX: Final = 65_535
"""A frame's length is 16 bits. The largest event that the bounds allow is about 11,500 bytes."""

BUFFER_DELAY_SECONDS: Final = 0.02
"""At level ``buffered``: how long an event may be in memory only."""

BUFFER_EVENTS_MAX: Final = 100_000
"""At level ``buffered``: events in memory before a call stores them itself."""

KNOWN_TAGS_MAX: Final = 50_000
"""Tags whose check is remembered; beyond it the memory of checks starts anew."""

# -- block and queue --------------------------------------------------------------------

BLOCK_EVENTS_MAX: Final = 2_000
"""Events in a block: few enough that one is packed in milliseconds."""

BLOCK_RAW_BYTES_MAX: Final = 4 << 20
"""A block's payload before compression: the bound that a decompression bomb meets."""

BLOCK_RAW_BYTES_CUT: Final = 128 << 10
"""Where the series of a block take more, it is cut: what the ballast leaves has room for it."""

LOG_PAGES_MAX: Final = 24
"""The queue's write-ahead log is folded into its file beyond so many pages of 4 KiB."""

BLOCK_DELAY_SECONDS: Final = 0.25
"""A block is cut when its oldest event is this old and nothing is being sent."""

QUEUE_BYTES_MAX: Final = 1 << 30
"""What a producer's queue and spools may hold before `on_full` decides."""

QUEUE_BYTES_MIN: Final = 1 << 20
"""The smallest queue that can be asked for."""

RETAINED_BYTES_MAX: Final = 64 << 20
"""Acknowledged blocks that one directory keeps, for a server restored from a backup."""

RETAINED_SECONDS_MAX: Final = 7 * 86_400
"""How long an acknowledged block is kept at most."""

BALLAST_BYTES: Final = 256 << 10
"""A file that is given up when the disk is full, so that draining can go on."""

STATUS_DELAY_SECONDS: Final = 1.0
"""How often the counts beside a queue are written, at most."""

# -- sending ----------------------------------------------------------------------------

ENDPOINT_CHARS_MAX: Final = 2_000
"""The server's address: it is written into each spool's first page."""

REQUEST_BLOCKS_MAX: Final = 64
"""Blocks in one request."""

REQUEST_BYTES_MAX: Final = 4 << 20
"""A request that the flusher makes; one larger block still goes alone."""

REQUEST_TIMEOUT_SECONDS: Final = 10.0
"""Connect, send and answer, each."""

ANSWER_BYTES_MAX: Final = 16 << 20
"""An answer that the flusher reads; a longer one is no answer."""

BACKOFF_SECONDS_MIN: Final = 0.2
"""The first wait after a failure is drawn from 0 to this."""

BACKOFF_SECONDS_MAX: Final = 30.0
"""No wait is drawn from more than this; a server that is back is found within it."""

RETRY_AFTER_SECONDS_MAX: Final = 300.0
"""A longer ``Retry-After`` is taken as this."""

ANNOUNCE_SECONDS: Final = 30.0
"""A producer that lives says so this often, with or without events."""

ADOPTION_SECONDS: Final = 5.0
"""How often a flusher looks for queues whose owner has died."""

HELD_SECONDS: Final = 60.0
"""How often it looks again at one that it had to leave as it is."""

CLOSE_SECONDS: Final = 2.0
"""How long an exit may take; what is not sent by then is on disk."""

WARNING_SECONDS: Final = 60.0
"""One warning of a kind in this time, never a flood."""
