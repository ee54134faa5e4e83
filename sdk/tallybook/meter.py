"""
The Meter: what an application records on. The main path starts here.

    record -> spool (this file, `spool`) -> block (`committer`) -> queue (`queue`)
           -> server (`flusher`, `transport`)

`record` is on the application's time, so it is written for that: one membership test
per tag instead of a check, one msgpack call, one checksum, one store into mapped memory.
Whatever is not the common case goes to a method below.
"""

# Handle is a part of Meter.
# pyright: reportPrivateUsage=false

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self, cast
from zlib import crc32

import msgspec

from tallybook import process
from tallybook.adoption import Adopter
from tallybook.buffer import Buffer
from tallybook.clock import Clock, Ids, SystemClock, SystemIds
from tallybook.directory import forget_locks
from tallybook.errors import DurabilityUnknown, InvalidEvent, QueueFull
from tallybook.event import (
    INT64_MAX,
    Value,
    check_dimension,
    check_key,
    check_tags,
    check_tenant,
    plain,
    read_time,
    read_value,
)
from tallybook.flusher import Flusher
from tallybook.frame import COMMON, END, HEAD, MAGIC, encode_series, encode_value_body, wire_value
from tallybook.guard import make_guard
from tallybook.limits import (
    BUFFER_EVENTS_MAX,
    KNOWN_TAGS_MAX,
    TAGS_MAX,
)
from tallybook.producer import Producer, ProducerClosed
from tallybook.queue import Reentered
from tallybook.settings import Durability, OnFull, read_settings
from tallybook.tenant import current_tenant
from tallybook.transport import HttpTransport, Transport
from tallybook.warning import Warner, warn
from tallybook.worker import Drained, FlushResult, Hooks, Worker

if TYPE_CHECKING:
    # A third of what the import of this package may take; a coroutine that awaits has it.
    import asyncio

__all__ = ["FlushResult", "Handle", "Meter", "Stats", "Tags", "default_meter"]

Tags = Mapping[str, str | int | float | bool]
"""Free keys and values to slice by; numbers and bools are kept as text."""

_encode: Final = msgspec.msgpack.Encoder().encode
_pack_head: Final = HEAD.pack
_pack_common: Final = COMMON.pack
_REOPEN_SECONDS: Final = 1.0
_BLOCK_POLL_SECONDS: Final = 0.01
_AWAIT_SECONDS: Final = 1.0


class Stats(msgspec.Struct, frozen=True, kw_only=True):
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
    held: dict[str, str] = {}
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
        self._mapped = self._settings.durability == "process"
        self._power = self._settings.durability == "power"
        self._known_users: set[tuple[str, str | None]] = set()
        self._known_keys: set[str] = set()
        self._known_texts: set[str] = set()
        # Asked with the tags as they are, without a tuple for each: 0.1 us less a call.
        self._knows_keys = self._known_keys.issuperset
        self._knows_texts = self._known_texts.issuperset
        self._begin()
        process.made(self)

    def _begin(self) -> None:
        """The state of a process that has not recorded yet."""
        self._guard = make_guard()
        self._opening = threading.RLock()
        self._producer: Producer | None = None
        self._worker: Worker | None = None
        self._bed: type[_Bed] | Worker = _Bed
        self._pid = os.getpid()
        self._starter = 0
        self._retired: list[Worker] = []
        self._open_error: Exception | None = None
        self._buffer = Buffer()
        self._waiting = self._buffer.waiting
        self._unattributed = itertools.count()
        self._drops = itertools.count()
        self._drops_handed_over = 0
        self._reopen_at = self._clock.monotonic()
        self._warn = Warner(self._clock)

    def __repr__(self) -> str:
        settings = self._settings
        return (
            f"Meter({settings.source!r}, endpoint={settings.endpoint!r}, "
            f"directory={str(settings.directory)!r}, durability={settings.durability!r})"
        )

    @property
    def may_block(self) -> bool:
        """Whether `record` may wait, for a disk or for room: in a coroutine, await `arecord`."""
        return self._power or self._settings.on_full == "block"

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
            if not (
                (dimension, tenant) in self._known_users
                and (
                    not tags
                    or (
                        tags.__class__ is dict
                        and len(tags) <= TAGS_MAX
                        and self._knows_keys(tags)
                        and self._knows_texts(tags.values())
                    )
                )
            ):
                dimension, tenant, tags = self._check(dimension, tenant, tags)
            if value.__class__ is int and 0 <= value <= INT64_MAX and time is None and key is None:
                body = _encode((self._time_ns(), value, None, dimension, tenant, tags or None))
            else:
                body = self._body(dimension, value, tenant, tags, time, key)
        except TypeError:  # Not to be hashed, or not to be encoded as it is: mended, or refused.
            body = self._checked_body(dimension, value, tenant, tags, time, key)
        if self._mapped and self._guard[0]:
            try:
                write, seed = self._producer.slot  # type: ignore[union-attr]
                write(_pack_head(MAGIC, len(body), crc32(body, seed)) + body + END)
            except (ValueError, AttributeError):  # It is full, or just being closed.
                self._keep(body)
            else:
                if self._bed.asleep:
                    self._bed.wake()
        elif self._buffered and self._guard[0] and len(self._waiting) < BUFFER_EVENTS_MAX:
            self._waiting.append(body)
            if self._bed.asleep or not self._guard[0]:
                self._look_after_memory()
        else:
            self._keep(body)
        if tenant is None:
            next(self._unattributed)

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
        import asyncio

        if tenant is None:
            tenant = current_tenant()
        body = self._checked_body(dimension, value, tenant, tags, time, key)
        # What waits for room must not hold up the loop.
        waits = self._settings.on_full == "block"
        if not self._power:
            await asyncio.to_thread(self._keep, body) if waits else self._keep(body)
        elif worker := await asyncio.to_thread(self._store, body) if waits else self._store(body):
            loop = asyncio.get_running_loop()
            synced: asyncio.Future[bool] = loop.create_future()

            def done(confirmed: bool) -> None:
                with suppress(RuntimeError):  # The loop is closed: nobody waits any more.
                    loop.call_soon_threadsafe(_resolve, synced, confirmed)

            worker.wait_for_sync(done)
            if not await synced:
                raise _unknown()
        if tenant is None:
            next(self._unattributed)

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
        dimension, tenant = _checked(dimension, tenant)
        return Handle(self, encode_series(dimension, tenant, check_tags(tags)), tenant is None)

    def _check(
        self, dimension: str, tenant: str | None, tags: Tags | None
    ) -> tuple[str, str | None, dict[str, str]]:
        """The three as plain text, each checked; what holds is remembered."""
        dimension, tenant = _checked(dimension, tenant)
        if len(self._known_users) >= KNOWN_TAGS_MAX:
            self._known_users.clear()
        self._known_users.add((dimension, tenant))
        checked = check_tags(tags)
        for known, new in ((self._known_keys, checked), (self._known_texts, checked.values())):
            if len(known) + len(new) > KNOWN_TAGS_MAX:
                known.clear()
            known.update(new)
        return dimension, tenant, checked

    def _body(
        self,
        dimension: str,
        value: Value,
        tenant: str | None,
        tags: Tags | None,
        time: datetime | int | None,
        key: str | None,
    ) -> bytes:
        """The body of an event whose dimension, tenant and tags hold; the others are checked."""
        if key is not None:
            check_key(key)
            if self._settings.source is None:
                raise InvalidEvent(
                    "key",
                    "no_source",
                    "key= needs a Meter with a source, since keys are unique per source: "
                    "Meter('api-gateway') or TALLYBOOK_SOURCE",
                )
            key = plain(key)
        moment = self._time_ns() if time is None else [read_time(time)]
        return _encode(
            (moment, wire_value(read_value(value)), key, dimension, tenant, tags or None)
        )

    def _checked_body(
        self,
        dimension: str,
        value: Value,
        tenant: str | None,
        tags: Tags | None,
        time: datetime | int | None,
        key: str | None,
    ) -> bytes:
        """The body of any event, each field checked."""
        dimension, tenant, tags = self._check(dimension, tenant, tags)
        return self._body(dimension, value, tenant, tags, time, key)

    # -- keeping -------------------------------------------------------------------------------

    def _keep(self, body: bytes) -> None:
        """Keep a body at this Meter's level."""
        if self._buffered:
            self._keep_in_memory(body)
            return
        worker = self._store(body)
        if worker is None:
            return
        if worker.asleep:
            worker.wake()
        if self._power:
            self._await_sync(worker)

    def _keep_in_memory(self, body: bytes) -> None:
        if not self._guard[0]:
            self._look_after_memory()  # Before it: a child of fork throws away what is there.
        if len(self._waiting) >= BUFFER_EVENTS_MAX:
            self._make_room_in_memory()
        self._waiting.append(body)
        self._look_after_memory()

    def _look_after_memory(self) -> None:
        """See to it that somebody empties it. Behind the append, for `close` does the reverse."""
        if not self._guard[0]:
            try:
                self._open()
            except Exception as error:
                process.opened(self)  # So that the exit tries once more.
                self._warn(
                    "memory", f"usage is in memory only, since the queue cannot be opened: {error}"
                )
        bed = self._bed
        if bed.asleep:
            bed.wake()

    def _make_room_in_memory(self) -> None:
        while len(self._waiting) >= BUFFER_EVENTS_MAX:
            try:
                self._buffer.drain(self._open().producer)
            except ProducerClosed:
                continue
            except Reentered:
                return
            except Exception as error:
                if self._settings.on_full == "drop":
                    self._count_drop(error, self._buffer.discard())
                    return
                self._raise_or_wait(error)

    def _drain(self, producer: Producer) -> Drained:
        """Move what is in memory into this producer's spool."""
        if not len(self._buffer):
            return Drained(0, True)
        try:
            return Drained(self._buffer.drain(producer), True)
        except (ProducerClosed, Reentered):
            return Drained(0, False)  # Somebody else does it.
        except Exception as error:
            if self._settings.on_full != "drop":
                return Drained(0, False)  # It stays; when it is too much, `record` says so.
            dropped = self._buffer.discard()
            self._count_drop(error, dropped)
            return Drained(dropped, True)

    def _store(self, body: bytes) -> Worker | None:
        """
        Store a body wherever there is room; else do what `on_full` says.

        Returns:
            The worker of the producer that has it; None: it was dropped, or is in memory yet.
        """
        while True:
            try:
                worker = self._open()
                write, seed = worker.producer.slot
                frame = _pack_head(MAGIC, len(body), crc32(body, seed)) + body + END
                try:
                    write(frame)
                except ValueError:
                    worker.producer.store(frame)
                return worker
            except ProducerClosed:
                continue
            except Reentered:
                # A signal handler or finaliser in the middle of a change of spool, on the
                # thread that makes it: a few lines further on it will be stored.
                break
            except Exception as error:  # Whatever it is, it does not reach the application.
                if self._settings.on_full == "drop":
                    self._count_drop(error)
                    return None
                if self._settings.on_full == "block" and self._in_the_middle():
                    # Who waits here holds up the thread that would make the room: his own.
                    break
                self._raise_or_wait(error)
        self._waiting.append(body)
        if self._power:
            raise _unknown()
        return None

    def _raise_or_wait(self, error: Exception) -> None:
        if self._settings.on_full == "raise":
            raise (
                error
                if isinstance(error, QueueFull)
                else QueueFull(f"the queue cannot take the event: {error}")
            ) from None
        self._warn("wait", f"record waits, since the queue cannot take the event: {error}")
        threading.Event().wait(_BLOCK_POLL_SECONDS)

    def _in_the_middle(self) -> bool:
        """Whether this is a signal handler or finaliser in the middle of our own work."""
        worker = self._worker
        return (
            self._starter == threading.get_ident()
            or self._buffer.entered
            or (worker is not None and worker.entered)
        )

    def _count_drop(self, error: Exception, events: int = 1) -> None:
        producer = self._producer
        try:
            if producer is None or not self._guard[0]:
                raise ProducerClosed
            producer.count_drop(events)
        except (ProducerClosed, Reentered):
            for _ in range(events):
                next(self._drops)  # The next producer announces them.
        self._warn("drop", f"usage is being dropped, and counted: {error}")

    def _drops_in_memory(self) -> int:
        return _reading(self._drops) - self._drops_handed_over

    def _await_sync(self, worker: Worker) -> None:
        """Wait for the disk, and raise DurabilityUnknown if it does not confirm."""
        synced = threading.Lock()
        synced.acquire()
        confirmed: list[bool] = []

        def done(result: bool) -> None:
            confirmed.append(result)
            synced.release()

        pid = os.getpid()
        worker.wait_for_sync(done)
        while not synced.acquire(timeout=_AWAIT_SECONDS):
            if worker.ended or pid != os.getpid():
                break  # A child of fork: nobody is there any more who would say.
        if confirmed != [True]:
            raise _unknown()

    # -- opening and closing -------------------------------------------------------------------

    def _open(self) -> Worker:
        """The worker of this process's producer, made now if there is none."""
        self._begin_after_fork()
        worker = self._worker
        if worker is not None and not worker.producer.closed:
            return worker
        with self._opening:
            if self._starter:
                raise Reentered("in the middle of opening")
            if self._worker is None or self._worker.producer.closed:
                if self._clock.monotonic() < self._reopen_at and self._open_error:
                    raise self._open_error.with_traceback(None)
                self._reopen_at = self._clock.monotonic() + _REOPEN_SECONDS
                self._starter = threading.get_ident()
                try:
                    self._start()
                    self._open_error = None
                except Exception as error:
                    self._open_error = error
                    raise
                finally:
                    self._starter = 0
            return cast(Worker, self._worker)

    def _begin_after_fork(self) -> None:
        """In a child of a fork that ran no hooks, which the library in C made: begin anew."""
        if self._pid != os.getpid():
            with _unhooked:  # Never held where the hooks run, so never inherited held.
                if self._pid != os.getpid():
                    forget_locks()
                    self._forget()

    def _start(self) -> None:
        settings = self._settings
        pid = os.getpid()
        producer = Producer(settings, self._clock, self._ids)
        if pid != os.getpid():
            # A signal handler has forked in the middle of it, and this is the child.
            producer.forget()
            raise ProducerClosed
        flusher, adopter = None, None
        if settings.endpoint is not None or self._transport is not None:
            transport = self._transport or HttpTransport(
                settings.endpoint or "", settings.api_key, settings.request_timeout_seconds
            )
            flusher = Flusher(transport, self._clock, self._ids)
            adopter = Adopter(settings.directory, settings.endpoint, flusher, self._clock)
        hooks = Hooks(
            drain=self._drain,
            buffered=self._buffer.__len__,
            in_memory=self._buffered,
            status=self._status,
            lost=self._go_on_elsewhere,
        )
        worker = Worker(producer, flusher, adopter, self._clock, hooks, settings.directory)
        dropped = self._drops_in_memory()
        if dropped:
            producer.count_drop(dropped)
            self._drops_handed_over += dropped
        process.opened(self)
        if self._worker is not None:
            self._retired.append(self._worker)
        self._bed, self._worker, self._producer = worker, worker, producer
        self._guard[0] = 1
        if self._threads and not process.ends():
            # Else whoever records stores by himself.
            worker.start()

    def _go_on_elsewhere(self, worker: Worker, words: str) -> None:
        """A worker's files are gone or damaged: record in new ones from now on."""
        with self._opening:
            if self._worker is not worker:
                return
            self._producer, self._worker, self._bed = None, None, _Bed
            self._guard[0] = 0
            self._retired = [worker, *(old for old in self._retired if not old.ended)]
            if len(self._buffer):
                with suppress(Exception):
                    self._open()

    def _forget(self) -> None:
        """In a child after fork: begin anew, without touching what is the parent's."""
        for worker in (self._worker, *self._retired):
            if worker is not None:
                _never_freed.append(worker)
                worker.producer.forget()
                if worker.adopter is not None:
                    worker.adopter.forget()
        self._begin()

    def _close_at_exit(self) -> None:
        # Twice: what another thread recorded while the first was closed is in a second one.
        error: str | None = "it could not be closed"
        for _ in range(2):
            with suppress(Exception):
                error = self.close().error
        if error and len(self._buffer):
            warn(f"usage is lost at exit: {error}")

    def flush(self, timeout: float = 10.0) -> FlushResult:
        """
        Send everything recorded so far, and wait for the server's word.

        Args:
            timeout: Seconds to wait at most.

        Returns:
            What was achieved. It never raises for a server that is down or a disk that is full.
        """
        deadline = self._clock.monotonic() + timeout
        self._begin_after_fork()
        if len(self._buffer) and not self._guard[0]:
            with suppress(Exception):
                self._open()
        workers = [*self._retired, *([self._worker] if self._worker else [])]
        return self._summed([worker.flush(deadline) for worker in workers if not worker.ended])

    def _summed(self, results: Sequence[FlushResult]) -> FlushResult:
        lost = len(self._buffer) if not self._guard[0] else 0
        errors = [result.error for result in results if result.error]
        if lost:
            errors.append(f"{lost} events are in memory only: {self._open_error}")
        return FlushResult(
            ok=not errors,
            sent=sum(result.sent for result in results),
            pending=lost + sum(result.pending for result in results),
            error=errors[0] if errors else None,
        )

    async def aflush(self, timeout: float = 10.0) -> FlushResult:
        """As `flush`, in a thread, so that the loop goes on."""
        import asyncio

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
        seconds = self._settings.close_seconds if timeout is None else timeout
        deadline = self._clock.monotonic() + seconds
        self._begin_after_fork()
        if self._in_the_middle():
            # A signal handler in the middle of our own work on its own thread: it cannot be
            # finished here. Closing again afterwards, or the exit, will do it.
            return self._summed([FlushResult(False, 0, 0, "in the middle of another call")])
        with self._opening:
            workers = [*self._retired, *([self._worker] if self._worker else [])]
            self._retired = []
            self._producer, self._worker, self._bed = None, None, _Bed
            self._guard[0] = 0
            self._reopen_at = self._clock.monotonic()
        results: list[FlushResult] = []
        for worker in workers:
            if not worker.ended:
                self._drain(worker.producer)
                worker.producer.shut()
                results.append(worker.close(deadline))
        if len(self._buffer):
            # Recorded meanwhile, or there was no room. A new producer has room of its own.
            with suppress(Exception):
                self._drain(self._open().producer)
        if not self._guard[0]:
            process.closed(self)
        return self._summed(results)

    # -- seen from outside ---------------------------------------------------------------------

    def stats(self) -> Stats:
        """Counts of this Meter in this process."""
        self._begin_after_fork()
        worker = self._worker
        if worker is not None:
            with suppress(Exception):  # Closed meanwhile.
                return self._stats(worker)
        return Stats(
            recorded=len(self._buffer),
            unattributed=_reading(self._unattributed),
            dropped=self._drops_in_memory(),
        )

    def _stats(self, worker: Worker) -> Stats:
        producer, flusher, adopter = worker.producer, worker.flusher, worker.adopter
        buffered = len(self._buffer)
        counts = producer.queue.counts()
        return Stats(
            producer=producer.id.hex(),
            recorded=producer.recorded + buffered,
            acknowledged=flusher.acknowledged if flusher else 0,
            duplicates=flusher.duplicates if flusher else 0,
            pending=producer.waiting_events + counts.pending_events + buffered,
            aside=counts.aside_events,
            dropped=producer.dropped + self._drops_in_memory(),
            torn=producer.torn,
            unattributed=_reading(self._unattributed),
            bytes=producer.bytes,
            adopted=len(adopter.orphans) if adopter else 0,
            held=dict(adopter.held) if adopter else {},
            last_error=flusher.last_error if flusher else None,
        )

    def _status(self, worker: Worker) -> dict[str, object]:
        """What lies beside a worker's queue for `tallybook queue status`."""
        settings = self._settings
        return {
            "source": settings.source,
            "endpoint": settings.endpoint,
            "pid": os.getpid(),
            "oldest": worker.producer.queue.counts().oldest,
            **msgspec.structs.asdict(self._stats(worker)),
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
        time = meter._time_ns()
        if value.__class__ is int and 0 <= value <= 127 and time >= 0:
            body = _pack_common(0x96, 0xCF, time, value, 0xC0) + self._series
        else:
            body = encode_value_body(time, read_value(value), self._series)
        if meter._mapped and meter._guard[0]:  # As in `record`.
            try:
                write, seed = meter._producer.slot  # type: ignore[union-attr]
                write(_pack_head(MAGIC, len(body), crc32(body, seed)) + body + END)
            except (ValueError, AttributeError):
                meter._keep(body)
            else:
                if meter._bed.asleep:
                    meter._bed.wake()
        else:
            meter._keep(body)
        if self._unattributed:
            next(meter._unattributed)


class _Bed:
    """Where a worker would sleep, while there is none."""

    asleep = False

    @staticmethod
    def wake() -> None:
        """Nobody is there."""


def _checked(dimension: object, tenant: object) -> tuple[str, str | None]:
    check_dimension(dimension)
    check_tenant(tenant)
    return plain(cast(str, dimension)), None if tenant is None else plain(cast(str, tenant))


def _reading(counter: itertools.count[int]) -> int:
    """How often it was counted. Counting is one call, which nothing comes between."""
    return int(repr(counter)[6:-1])


def _resolve(synced: asyncio.Future[bool], confirmed: bool) -> None:
    if not synced.done():
        synced.set_result(confirmed)


def _unknown() -> DurabilityUnknown:
    return DurabilityUnknown(
        "the disk did not confirm the event; it is kept and will be sent, unless the power "
        "fails first: do not record it again"
    )


# -- this process ------------------------------------------------------------------------------

_never_freed: list[object] = []
_unhooked = threading.Lock()
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


def _renew_lock() -> None:
    """In a child after fork, where the thread that held it may not be."""
    global _default_lock
    _default_lock = threading.Lock()


os.register_at_fork(after_in_child=_renew_lock)
