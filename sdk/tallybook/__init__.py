"""
tallybook measures what every tenant of a SaaS uses, and loses none of it.

This package is the SDK: it records usage, keeps it on the local disk, and sends it to a
server until the server has it. It is not the server, and imports nothing of it.

Who imports whom, from the top::

    meter            record, flush, close: what an application calls
    worker           the two threads
    adoption         queues of producers that died
    flusher          sends blocks until they are acknowledged
    producer         one writer's life: its files, its steps
    kept             what the server has, for the case that it is restored from a backup
    committer        spool bytes to blocks
    spool  queue  transport     memory-mapped file; SQLite; HTTP
    wire  block  frame  event   the formats: pure
"""

from tallybook._version import __version__
from tallybook.errors import (
    DurabilityUnknown,
    InvalidEvent,
    InvalidSetting,
    QueueFull,
    TallybookError,
)
from tallybook.meter import FlushResult, Handle, Meter, Stats, default_meter
from tallybook.tenant import current_tenant, tenant

__all__ = [
    "DurabilityUnknown",
    "FlushResult",
    "Handle",
    "InvalidEvent",
    "InvalidSetting",
    "Meter",
    "QueueFull",
    "Stats",
    "TallybookError",
    "__version__",
    "current_tenant",
    "default_meter",
    "tenant",
]
