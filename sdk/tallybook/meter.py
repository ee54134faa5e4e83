"""
The Meter: what an application records on. The main path starts here.

    record -> spool (this file, `spool`) -> block (`committer`) -> queue (`queue`)
           -> server (`flusher`, `transport`)

`record` is on the application's time, so it is written for that: one membership test
per tag instead of a check, one msgpack call, one checksum, one store into mapped memory.
Whatever is not the common case goes to a method below.
"""

from __future__ import annotations

import asyncio
import atexit
import itertools
import logging
import mmap
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import datetime
from types import TracebackType
from typing import Final, Self, cast
from zlib import crc32

import msgspec

from tallybook.adoption import Adopter
from tallybook.clock import Clock, Ids, SystemClock, SystemIds
from tallybook.directory import forget_locks, status_path
from tallybook.errors import DurabilityUnknown, InvalidEvent, QueueFull
from tallybook.event import (
    INT64_MAX,
    Event,
    Value,
    check_dimension,
    check_key,
    check_tags,
    check_tenant,
    read_time,
    read_value,
)
from tallybook.flusher import Flusher
from tallybook.frame import COMMON, END, HEAD, MAGIC, encode_body, encode_series, encode_value_body
from tallybook.limits import (
    BUFFER_EVENTS_MAX,
    KNOWN_TAGS_MAX,
    TAGS_MAX,
    WARNING_SECONDS,
)
from tallybook.producer import Producer, ProducerClosed
from tallybook.settings import Durability, OnFull, read_settings
from tallybook.tenant import current_tenant
from tallybook.transport import HttpTransport, Transport
from tallybook.worker import Bell, FlushResult, Worker

__all__ = ["FlushResult", "Handle", "Meter", "Stats", "Tags", "default_meter"]

log = logging.getLogger("tallybook")

Tags = Mapping[str, str | int | float | bool]
"""Free keys and values to slice by; numbers and bools are kept as text."""

_encode: Final = msgspec.msgpack.Encoder().encode
_pack_head: Final = HEAD.pack
_pack_common: Final = COMMON.pack
_REOPEN_SECONDS: Final = 1.0
_BLOCK_POLL_SECONDS: Final = 0.01
# The kernel gives a child of fork a page of zeros, whoever forked and however. Reading a
# byte of it is the check of the pid that costs 25 ns instead of a system call.
_WIPE_ON_FORK: Final = 18


@dataclass(frozen=True, slots=True)
class Stats:
    """
    What a Meter has done in this process, since its producer began.

    Attributes:
        producer: 32 hex digits, or None: nothing has been recorded yet.
        recorded: Events that were kept.
        acknowledged: Events that the server has, those of adopted queues included.
        duplicates: Of them, those that it had already.
        pending: Events of this producer that wait, on disk.
        aside: Events of this producer that the server refuses for good.
        dropped: Events that could not be kept, counted and announced.
        torn: Stretches of damage that were skipped in the spool.
        unattributed: Events recorded without a tenant.
        bytes: What the queue takes on disk.
        adopted: Dead producers' queues that are being drained.
        held: Queues that are left as they are: producer and reason.
        last_error: Why sending fails, or None.
    """

    producer: str | None = None
    recorded: int = 0
    acknowledged: int = 0
    duplicates: int = 0
    pending: int = 0
    aside: int = 0
    dropped: int = 0
    torn: int = 0
    unattributed: int = 0
    bytes: int = 0
    adopted: int = 0
    held: dict[str, str] = field(default_factory=dict)
    last_error: str | None = None


class Meter:
    """
    Records usage, keeps it on disk, and sends it until the server has it.

    Nothing is opened and no thread runs before the first `record` in a process, so a Meter
    may be made at import time and before a fork. Every method may be called from any thread.

    Args:
        source: The application's name, chosen by a person: ``"api-gateway"``. Needed for
            ``key=``. TALLYBOOK_SOURCE.
        endpoint: The server: ``"http://127.0.0.1:8255"``. Without one, events are kept and
            nothing is sent. TALLYBOOK_ENDPOINT.
        api_key: What the server asks for. TALLYBOOK_API_KEY.
        directory: Where the queue lies: a local disk. TALLYBOOK_DIRECTORY; else the user's
            state directory.
        durability: When `record` returns: ``"process"``, the default: the event survives
            ``kill -9``. ``"buffered"``: it does 20 ms later. ``"power"``: the disk has
            confirmed it. TALLYBOOK_DURABILITY.
        on_full: What a full queue does: ``"drop"``, the default: counted and announced;
            ``"raise"``: QueueFull; ``"block"``: wait for room. TALLYBOOK_ON_FULL.
        queue_bytes_max: What the queue may hold on disk; 1 GiB. TALLYBOOK_QUEUE_BYTES_MAX.
        request_timeout_seconds: For connecting, sending and answering, each; 10.
            TALLYBOOK_REQUEST_TIMEOUT_SECONDS.
        close_seconds: How long closing, and so the process's exit, may take; 2. What is not
            sent by then is on disk. TALLYBOOK_CLOSE_SECONDS.
        transport: How requests travel; HTTP by default.
        clock: For tests.
        ids: For tests.
        threads: Without them, `flush` and `close` do all the work, when they are called: for
            tests, and where a process is frozen between calls.

    Raises:
        InvalidSetting: An option or a variable has a value that it cannot have.
    """

    def __init__(
        self,
        source: str | None = None,
        *,
        endpoint: str | None = None,
        api_key: str | None = None,
        directory: str | os.PathLike[str] | None = None,
        durability: Durability | None = None,
        on_full: OnFull | None = None,
        queue_bytes_max: int | None = None,
        request_timeout_seconds: float | None = None,
        close_seconds: float | None = None,
        transport: Transport | None = None,
        clock: Clock | None = None,
        ids: Ids | None = None,
        threads: bool = True,
    ) -> None:
        self._settings = read_settings(
            os.environ,
            source=source,
            endpoint=endpoint,
            api_key=api_key,
            directory=directory,
            durability=durability,
            on_full=on_full,
            queue_bytes_max=queue_bytes_max,
            request_timeout_seconds=request_timeout_seconds,
            close_seconds=close_seconds,
        )
        self._clock = clock or SystemClock()
        self._ids = ids or SystemIds()
        self._transport = transport
        self._threads = threads
        self._time_ns = self._clock.time_ns
        self._buffered = self._settings.durability == "buffered"
        self._power = self._settings.durability == "power"
        self._known_users: set[tuple[str, str | None]] = set()
        self._known_tags: set[tuple[str, str]] = set()
        self._begin()
        _meters.add(self)

    def _begin(self) -> None:
        """The state of a process that has not recorded yet."""
        self._guard = _make_guard()
        self._opening = threading.RLock()
        self._producer: Producer | None = None
        self._worker: Worker | None = None
        self._bed: type[_Bed] | Worker = _Bed
        self._open_error: Exception | None = None
        self._buffer: deque[bytes] = deque()
        self._unattributed = itertools.count()
        self._drops_without_file = 0
        self._reopen_at = self._clock.monotonic()
        self._warned_at = self._clock.monotonic() - WARNING_SECONDS

    def __repr__(self) -> str:
        settings = self._settings
        return (
            f"Meter({settings.source!r}, endpoint={settings.endpoint!r}, "
            f"directory={str(settings.directory)!r}, durability={settings.durability!r})"
        )

    # -- recording -----------------------------------------------------------------------------

    def record(
        self,
        dimension: str,
        value: Value = 1,
        *,
        tenant: str | None = None,
        tags: Tags | None = None,
        time: datetime | int | None = None,
        key: str | None = None,
    ) -> None:
        """
        Record that *tenant* used *value* of *dimension*.

        When it has returned, the event is going to be counted exactly once, unless the disk
        that holds it is destroyed; see `durability` for what it survives from when.

        Args:
            dimension: What was used, 1 to 128 of ``a-z 0-9 _ . -``: ``"tokens.output"``.
            value: How much, in the dimension's unit: an int, a Decimal, or a finite float by
                its shortest repr; not negative, at most 38 digits, 9 of them decimals.
            tenant: Who used it; by default the tenant of the context (`tallybook.tenant`).
                Without one the event is recorded as unattributed.
            tags: At most 32; values are text, numbers or bools.
            time: When, as an aware datetime or int microseconds since 1970; by default now.
            key: An idempotency key: the same key of the same source and dimension counts
                once, for ever.

        Raises:
            InvalidEvent: The call is wrong; nothing was recorded.
            QueueFull: The queue is full, and ``on_full="raise"``.
            DurabilityUnknown: At level ``power``: the disk did not confirm. Do not repeat.
        """
        if tenant is None:
            tenant = current_tenant()
        try:
            if (
                time is None
                and key is None
                and value.__class__ is int
                and 0 <= value <= INT64_MAX
                and (dimension, tenant) in self._known_users
            ):
                if tags:
                    if len(tags) > TAGS_MAX or tags.__class__ is not dict:
                        raise _Uncommon
                    known = self._known_tags
                    for tag in tags.items():
                        if tag not in known:
                            raise _Uncommon
                body = _encode((self._time_ns(), value, None, dimension, tenant, tags))
            else:
                raise _Uncommon
        except (_Uncommon, TypeError):
            body = self._check(dimension, value, tenant, tags, time, key)
        if not self._guard[0] or len(self._buffer) > BUFFER_EVENTS_MAX:
            self._keep(body)
        elif self._buffered:
            self._buffer.append(body)
            if self._bed.asleep:
                self._bed.packing.ring()
        else:
            write, seed = self._producer.slot  # type: ignore[union-attr]
            try:
                write(_pack_head(MAGIC, len(body), crc32(body, seed)) + body + END)
            except ValueError:
                self._store(body)
            if self._bed.asleep:
                self._bed.packing.ring()
        if tenant is None:
            next(self._unattributed)
        if self._power:
            self._await_sync()

    def _record_body(self, body: bytes, unattributed: bool) -> None:
        self._keep(body)
        if unattributed:
            next(self._unattributed)
        if self._power:
            self._await_sync()

    async def arecord(
        self,
        dimension: str,
        value: Value = 1,
        *,
        tenant: str | None = None,
        tags: Tags | None = None,
        time: datetime | int | None = None,
        key: str | None = None,
    ) -> None:
        """
        As `record`; at level ``power`` it awaits the disk instead of blocking the loop.

        A task that is cancelled while it waits has recorded its event.
        """
        if tenant is None:
            tenant = current_tenant()
            if tenant is None:
                next(self._unattributed)
        self._keep(self._check(dimension, value, tenant, tags, time, key))
        if self._power:
            loop = asyncio.get_running_loop()
            synced: asyncio.Future[bool] = loop.create_future()

            def done(confirmed: bool) -> None:
                with suppress(RuntimeError):  # The loop is closed: nobody waits any more.
                    loop.call_soon_threadsafe(_resolve, synced, confirmed)

            self._wait_for_sync(done)
            if not await synced:
                raise _unknown()

    def bind(
        self, dimension: str, *, tenant: str | None = None, tags: Tags | None = None
    ) -> Handle:
        """
        A handle for a hot loop: dimension, tenant and tags are checked once, here.

        Raises:
            InvalidEvent: One of them is outside its bounds.
        """
        if tenant is None:
            tenant = current_tenant()
        check_dimension(dimension)
        check_tenant(tenant)
        return Handle(self, encode_series(dimension, tenant, check_tags(tags)), tenant is None)

    def _check(
        self,
        dimension: str,
        value: Value,
        tenant: str | None,
        tags: Tags | None,
        time: datetime | int | None,
        key: str | None,
    ) -> bytes:
        """The body of any event, each field checked; what holds is remembered."""
        if (dimension, tenant) not in self._known_users:
            check_dimension(dimension)
            check_tenant(tenant)
            if len(self._known_users) >= KNOWN_TAGS_MAX:
                self._known_users.clear()
            self._known_users.add((dimension, tenant))
        checked = check_tags(tags)
        if len(self._known_tags) + len(checked) > KNOWN_TAGS_MAX:
            self._known_tags.clear()
        self._known_tags.update(checked.items())
        if key is not None:
            check_key(key)
            if self._settings.source is None:
                raise InvalidEvent(
                    "key",
                    "no_source",
                    "key= needs a Meter with a source, since keys are unique per source: "
                    "Meter('api-gateway') or TALLYBOOK_SOURCE",
                )
        return encode_body(
            Event(
                dimension=dimension,
                value=read_value(value),
                tenant=tenant,
                time=self._time_ns() // 1000 if time is None else read_time(time),
                tags=checked,
                key=key,
                given=time is not None,
            )
        )

    # -- keeping -------------------------------------------------------------------------------

    def _keep(self, body: bytes) -> None:
        """Keep a body at this Meter's level, short of waiting for a sync."""
        if self._buffered:
            self._buffer.append(body)
            if not self._guard[0]:
                self._store(None)  # Somebody has to be there who empties the buffer.
            if len(self._buffer) > BUFFER_EVENTS_MAX:
                self._drain_buffer()
        else:
            self._store(body)
        if self._bed.asleep:
            self._bed.packing.ring()

    def _store(self, body: bytes | None) -> None:
        """Store a body wherever there is room; else do what `on_full` says."""
        while True:
            try:
                producer = self._open()
                if body is not None:
                    write, seed = producer.slot
                    frame = _pack_head(MAGIC, len(body), crc32(body, seed)) + body + END
                    try:
                        write(frame)
                    except ValueError:
                        producer.store(frame)
                return
            except ProducerClosed:
                continue
            except Exception as error:  # Whatever it is, it does not reach the application.
                if body is None:
                    return
                if self._settings.on_full == "raise":
                    raise (
                        error
                        if isinstance(error, QueueFull)
                        else QueueFull(f"the queue cannot take the event: {error}")
                    ) from None
                if self._settings.on_full == "drop":
                    self._count_drop(error)
                    return
            threading.Event().wait(_BLOCK_POLL_SECONDS)

    def _count_drop(self, error: Exception) -> None:
        producer = self._producer
        if producer is not None and self._guard[0]:
            producer.count_drop()
        else:
            with self._opening:
                self._drops_without_file += 1
        now = self._clock.monotonic()
        if now - self._warned_at >= WARNING_SECONDS:
            self._warned_at = now
            log.warning("usage is being dropped, and counted: %s", error)

    def _drain_buffer(self) -> bool:
        """Store what level ``buffered`` has in memory; whether there was anything."""
        if not self._buffer:
            return False
        with suppress(IndexError):
            for _ in range(len(self._buffer)):
                self._store(self._buffer.popleft())
        return True

    # -- waiting for the disk ------------------------------------------------------------------

    def _await_sync(self) -> None:
        synced = threading.Lock()
        synced.acquire()
        confirmed: list[bool] = []

        def done(result: bool) -> None:
            confirmed.append(result)
            synced.release()

        self._wait_for_sync(done)
        synced.acquire()
        if not confirmed[0]:
            raise _unknown()

    def _wait_for_sync(self, done: Callable[[bool], None]) -> None:
        worker = self._worker
        if worker is None:
            done(False)  # Dropped, or closed meanwhile: nobody can say.
            return
        worker.waiters.append(done)
        if worker.running:
            worker.packing.ring()
        else:
            with suppress(Exception):
                worker.commit_step()

    # -- opening and closing -------------------------------------------------------------------

    def _open(self) -> Producer:
        """The producer of this process, made now if there is none."""
        producer = self._producer
        if self._guard[0] and producer is not None and not producer.closed:
            return producer
        with self._opening:
            if self._producer is not None and not self._guard[0]:
                self._forget()  # A child of a fork that ran no hooks.
            if self._producer is None or self._producer.closed:
                if self._clock.monotonic() < self._reopen_at and self._open_error:
                    raise self._open_error
                self._reopen_at = self._clock.monotonic() + _REOPEN_SECONDS
                try:
                    self._start()
                except Exception as error:
                    self._open_error = error
                    raise
            return cast(Producer, self._producer)

    def _start(self) -> None:
        settings = self._settings
        producer = Producer(settings, self._clock, self._ids)
        flusher, adopter = None, None
        if settings.endpoint is not None or self._transport is not None:
            transport = self._transport or HttpTransport(
                settings.endpoint or "", settings.api_key, settings.request_timeout_seconds
            )
            flusher = Flusher(transport, self._clock, self._ids)
            adopter = Adopter(settings.directory, settings.endpoint, flusher, self._clock)
        worker = Worker(
            producer,
            flusher,
            adopter,
            self._clock,
            self._drain_buffer,
            (status_path(settings.directory, producer.id.hex()), self._status),
        )
        if self._drops_without_file:
            producer.count_drop(self._drops_without_file)
            self._drops_without_file = 0
        self._producer, self._worker, self._bed = producer, worker, worker
        self._guard[0] = 1
        if self._threads:
            worker.start()

    def _forget(self) -> None:
        """In a child after fork: begin anew, without touching what is the parent's."""
        producer, worker = self._producer, self._worker
        if producer is not None and worker is not None:
            _never_freed.append((producer, producer.forget(), worker))
            if worker.adopter is not None:
                _never_freed.append(worker.adopter.forget())
        self._begin()

    def flush(self, timeout: float = 10.0) -> FlushResult:
        """
        Send everything recorded so far, and wait for the server's word.

        Args:
            timeout: Seconds to wait at most.

        Returns:
            What was achieved. It never raises for a server that is down or a disk that is full.
        """
        producer, worker = self._producer, self._worker
        if producer is None or worker is None or not self._guard[0]:
            return FlushResult(ok=True, sent=0, pending=0, error=None)
        deadline = self._clock.monotonic() + timeout
        self._drain_buffer()
        return worker.flush(deadline)

    async def aflush(self, timeout: float = 10.0) -> FlushResult:
        """As `flush`, in a thread, so that the loop goes on."""
        return await asyncio.to_thread(self.flush, timeout)

    def close(self, timeout: float | None = None) -> FlushResult:
        """
        Flush, say that this producer is finished, and let go of the files. Idempotent.

        What cannot be sent in time is on disk; the next Meter with the same directory and
        endpoint sends it. A `record` after it opens a new producer: nothing is lost by
        closing too early.

        Args:
            timeout: Seconds; by default the `close_seconds` of this Meter.
        """
        with self._opening:
            producer, worker = self._producer, self._worker
            if producer is None or worker is None or not self._guard[0]:
                return FlushResult(ok=True, sent=0, pending=0, error=None)
            self._drain_buffer()
            producer.seal()
            self._producer, self._worker, self._bed = None, None, _Bed
            self._guard[0] = 0
            self._reopen_at = self._clock.monotonic()
        seconds = self._settings.close_seconds if timeout is None else timeout
        return worker.close(self._clock.monotonic() + seconds)

    # -- seen from outside ---------------------------------------------------------------------

    def stats(self) -> Stats:
        """Counts of this Meter in this process."""
        producer, worker = self._producer, self._worker
        unattributed = int(repr(self._unattributed)[6:-1])
        if producer is None or worker is None or not self._guard[0]:
            return Stats(unattributed=unattributed, dropped=self._drops_without_file)
        flusher, adopter = worker.flusher, worker.adopter
        counts = producer.queue.counts()
        return Stats(
            producer=producer.id.hex(),
            recorded=producer.recorded + len(self._buffer),
            acknowledged=flusher.acknowledged if flusher else 0,
            duplicates=flusher.duplicates if flusher else 0,
            pending=producer.waiting_events + counts.pending_events,
            aside=counts.aside_events,
            dropped=producer.dropped,
            torn=producer.torn,
            unattributed=unattributed,
            bytes=producer.bytes,
            adopted=len(adopter.orphans) if adopter else 0,
            held=dict(adopter.held) if adopter else {},
            last_error=flusher.last_error if flusher else None,
        )

    def _status(self) -> dict[str, object]:
        """What lies beside the queue for `tallybook queue status`."""
        settings = self._settings
        return {
            "source": settings.source,
            "endpoint": settings.endpoint,
            "pid": os.getpid(),
            **asdict(self.stats()),
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class Handle:
    """A dimension, tenant and tags, checked once: made by `Meter.bind`."""

    __slots__ = ("_meter", "_series", "_unattributed")

    def __init__(self, meter: Meter, series: bytes, unattributed: bool) -> None:
        self._meter = meter
        self._series = series
        self._unattributed = unattributed

    def add(self, value: Value = 1) -> None:
        """
        Record *value*, now. As `Meter.record` in everything else.

        Raises:
            InvalidEvent, QueueFull, DurabilityUnknown: As `Meter.record`.
        """
        meter = self._meter
        if value.__class__ is int and 0 <= value <= 127:
            body = _pack_common(0x96, 0xCF, meter._time_ns(), value, 0xC0) + self._series
        else:
            body = encode_value_body(meter._time_ns(), read_value(value), self._series)
        meter._record_body(body, self._unattributed)


class _Uncommon(Exception):
    """Not the common case of `record`."""


class _Bed:
    """Where a worker would sleep, while there is none."""

    asleep = False
    packing = Bell()


def _resolve(synced: asyncio.Future[bool], confirmed: bool) -> None:
    if not synced.done():
        synced.set_result(confirmed)


def _unknown() -> DurabilityUnknown:
    return DurabilityUnknown(
        "the disk did not confirm the event; it is kept and will be sent, unless the power "
        "fails first: do not record it again"
    )


# -- this process ------------------------------------------------------------------------------

_meters: weakref.WeakSet[Meter] = weakref.WeakSet()
_never_freed: list[object] = []
_default: Meter | None = None
_default_lock = threading.Lock()


def default_meter() -> Meter:
    """
    The Meter that the environment describes, made at the first call.

    Raises:
        InvalidSetting: A TALLYBOOK_* variable has a value that it cannot have.
    """
    global _default
    with _default_lock:
        if _default is None:
            _default = Meter()
        return _default


def _make_guard() -> mmap.mmap | _PidGuard:
    """One byte that is 1 in the process that set it and 0 in every other."""
    try:
        guard = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        guard.madvise(_WIPE_ON_FORK)
        return guard
    except (OSError, ValueError, AttributeError):
        return _PidGuard()


class _PidGuard:
    """The same by asking for the pid, where the kernel does not wipe pages."""

    def __init__(self) -> None:
        self._pid = 0

    def __getitem__(self, index: int) -> int:
        return int(self._pid == os.getpid())

    def __setitem__(self, index: int, value: int) -> None:
        self._pid = os.getpid() if value else 0


def _after_fork_in_child() -> None:
    global _default_lock
    _default_lock = threading.Lock()
    forget_locks()
    for meter in list(_meters):
        meter._forget()


def _at_exit() -> None:
    for meter in list(_meters):
        with suppress(Exception):
            meter.close()


os.register_at_fork(after_in_child=_after_fork_in_child)
atexit.register(_at_exit)
