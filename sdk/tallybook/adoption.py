"""
Adoption: the queues of producers that died are drained under their own identity.

A lock that can be taken means that its owner is gone. The adopter packs what is left in the
spools, from exactly where the owner's last commit says, with the owner's own committer, sends
the blocks, and removes the files. It never records under the dead producer's name.

Only queues that were meant for the same endpoint are adopted. Others are held: left as they
are, and reported.
"""

from __future__ import annotations

import sqlite3
from contextlib import suppress
from pathlib import Path

from tallybook.clock import Clock
from tallybook.committer import Committer
from tallybook.directory import (
    Lock,
    lock_names,
    queue_path,
    spool_paths,
    write_status,
)
from tallybook.errors import FrameDamaged, TallybookError
from tallybook.flusher import Flusher
from tallybook.frame import DROPPED_OFFSET, SpoolIdentity, dropped_at, read_header
from tallybook.kept import Kept, keep_blocks, kept_paths, sweep_kept
from tallybook.limits import ADOPTION_SECONDS, HELD_SECONDS, SPOOL_HEADER_BYTES
from tallybook.producer import announce, remove_files
from tallybook.queue import Queue, QueueDamaged
from tallybook.warning import warn
from tallybook.wire import Announcement

__all__ = ["Adopter", "Held", "Orphan"]


class Held(Exception):
    """A dead producer's files are left as they are; the message says why."""


class Orphan:
    """
    A dead producer's queue, owned by this process until it is drained.

    Attributes:
        id: The producer, 16 bytes.
        queue: Its blocks; the spools are packed into it.
        held: Why it is not sent, or None.
        sending_blocked: Set by the flusher.
        announced: The server knows that it will never record again.
    """

    def __init__(
        self,
        directory: Path,
        lock: Lock,
        endpoint: str | None,
        clock: Clock,
        *,
        unaddressed: bool = False,
    ) -> None:
        """
        Pack what the dead producer left.

        Args:
            directory: Where its files lie.
            lock: Its lock, taken.
            endpoint: Where what it left is going to be sent.
            clock: The time.
            unaddressed: It is for this endpoint too if it names none.

        Raises:
            Held: It is not for this endpoint, or what it left cannot be read.
            OSError, sqlite3.OperationalError: The disk refuses; try again later.
        """
        self._directory = directory
        self._lock = lock
        self._clock = clock
        self._name = lock.path.stem
        self.id = bytes.fromhex(self._name)
        self.held: str | None = None
        self.sending_blocked = False
        self.announced = False
        self._endpoint = endpoint
        self._unaddressed = unaddressed
        spools = spool_paths(directory, self._name)
        identity = _identity(spools)
        if identity is not None:
            # Before its queue is opened: what is not for us stays as it is.
            self._check_meant(identity.endpoint)
            if identity.producer != self.id:
                raise Held(f"a spool of {identity.producer.hex()} lies under the name {self._name}")
        path = queue_path(directory, self._name)
        if not path.exists() and spools and spools[0][0] != 0:
            raise Held(f"{path.name} is gone, and its spools do not begin with the first")
        try:
            self.queue = self._take_over(path, identity, spools)
        except QueueDamaged as error:
            if not spools or spools[0][0] != 0:
                raise Held(f"{error}; see tallybook doctor") from None
            # The first spool is still here, so every event and its sequence is in the spools.
            # They are packed anew; what the server has already, it knows by the sequence.
            damaged = path.with_suffix(".damaged")
            path.replace(damaged)
            for suffix in ("-wal", "-shm"):
                with suppress(FileNotFoundError):
                    Path(f"{path}{suffix}").unlink()
            warn(f"{error}; packed anew from its spools, kept as {damaged.name}")
            self.queue = self._take_over(path, identity, spools)
        with suppress(Exception):
            self._publish()

    def _publish(self) -> None:
        """Say beside the queue what is in it: who looks opens neither it nor the spools."""
        packed, counts = self.queue.packed(), self.queue.counts()
        status = {
            "producer": self._name,
            "source": self.queue.note("source"),
            "endpoint": self.queue.note("endpoint"),
            "recorded": packed.sequence - 1,
            "pending": counts.pending_events,
            "aside": counts.aside_events,
            "dropped": packed.dropped,
            "torn": packed.torn,
            "oldest": counts.oldest,
        }
        write_status(self._directory, self._name, status)

    def _check_meant(self, meant: str | None) -> None:
        if meant != self._endpoint and not (meant is None and self._unaddressed):
            raise Held(f"{self._name} is meant for {meant or 'no endpoint'}, not {self._endpoint}")

    def _take_over(
        self, path: Path, identity: SpoolIdentity | None, spools: list[tuple[int, Path]]
    ) -> Queue:
        queue = Queue(path)
        try:
            if identity is not None:
                meant, source = identity.endpoint, identity.source
            else:
                meant, source = (_text(queue.note(name)) for name in ("endpoint", "source"))
                self._check_meant(meant)
            # A queue that named no endpoint goes on naming none until somebody has answered:
            # then its ledger binds it, and a mistyped endpoint has bound it to nothing.
            queue.remember(endpoint=meant, source=source)
            if spools and spools[0][0] == 0:
                queue.check()  # Before the spools go, from which it could be made anew.
            self._pack(queue, spools, source)
        except BaseException:
            queue.close()
            raise
        return queue

    def _pack(self, queue: Queue, spools: list[tuple[int, Path]], source: str | None) -> None:
        committer = Committer(queue, self.id, source)
        now = self._clock.time_ns() // 1000
        dropped = 0
        for number, path in spools:
            if number < committer.packed.number:
                path.unlink()  # Packed to its end; the owner died before it could remove it.
                continue
            if number > committer.packed.number:
                committer.next_spool(number, dropped, now)
            data = path.read_bytes()
            offset = committer.packed.offset
            committer.take(number, data[offset:], offset, now)
            dropped = dropped_at(data) if len(data) >= SPOOL_HEADER_BYTES else 0
        if spools and spools[-1][0] >= committer.packed.number:
            committer.next_spool(spools[-1][0] + 1, dropped, now)
        for _, path in spools:
            with suppress(FileNotFoundError):
                path.unlink()

    def announcement(self, blocks: int, *, closed: bool = False) -> Announcement:
        """What goes with a request of so many blocks."""
        packed = self.queue.packed()
        now = self._clock.time_ns() // 1000
        return announce(
            self.queue,
            self.id,
            blocks=blocks,
            recorded=packed.sequence - 1,
            dropped=packed.dropped,
            highest=packed.sequence - 1,
            through=now,
            closed=closed,
            sent_at=now,
        )

    def release(self, *, finished: bool) -> None:
        """Let go of the files; with *finished*, they go, the lock last."""
        if finished:
            with suppress(Exception):  # What the server has is not worth an error.
                self.queue.drop_archived()
                keep_blocks(self._directory, self.queue, self.announcement(0, closed=True))
        else:
            with suppress(Exception):
                self._publish()
        self.queue.close()
        if finished:
            remove_files(self._directory, self._name)
        self._lock.release(unlink=finished)

    def forget(self) -> None:
        """In a child after fork: as `Producer.forget`."""
        self.queue.forget()


class Adopter:
    """
    Looks for dead producers in one directory, and drains them.

    Args:
        directory: Where their files lie.
        endpoint: Where the flusher sends; None where that is nobody's name.
        flusher: What sends.
        clock: The time.
        unaddressed: Adopt also queues that name no endpoint. Only a person may say so: what
            an application recorded without an endpoint is not for whoever comes next.

    Attributes:
        orphans: The queues that are adopted just now.
        held: Files that are left as they are: producer and reason.
    """

    def __init__(
        self,
        directory: Path,
        endpoint: str | None,
        flusher: Flusher,
        clock: Clock,
        *,
        unaddressed: bool = False,
    ) -> None:
        self._directory = directory
        self._endpoint = endpoint
        self._unaddressed = unaddressed
        self._flusher = flusher
        self._clock = clock
        self._due_at = clock.monotonic()
        self._held_until: dict[str, float] = {}
        self._announced: set[str] = set()
        self._kept_for: tuple[str, int] | None = None
        self.orphans: list[Orphan] = []
        self.held: dict[str, str] = {}

    def step(self) -> bool:
        """
        Adopt what can be adopted, and send one request for each orphan.

        Returns:
            Whether there is more to send now.
        """
        self._see_to_kept()
        if self._clock.monotonic() >= self._due_at:
            self._due_at = self._clock.monotonic() + ADOPTION_SECONDS
            self.look()
        more = False
        for orphan in list(self.orphans):
            if self._flusher.wait_seconds() > 0:
                break
            try:
                more = self._drain(orphan) or more
            except (OSError, sqlite3.Error, QueueDamaged) as error:
                # What ails one holds up none of the others.
                self._let_go(orphan, str(error))
        return more

    def _drain(self, orphan: Orphan) -> bool:
        answered = self._flusher.step(orphan, closed=True, announce=not orphan.announced)
        counts = orphan.queue.counts()
        if answered and not counts.pending_blocks:
            orphan.announced = True
            self._announced.add(orphan.id.hex())
        if orphan.held:
            self._let_go(orphan, orphan.held)
        elif counts.pending_blocks or not orphan.announced:
            return answered
        elif counts.aside_blocks:
            # What the server refused stays on disk, for somebody to look at.
            self._let_go(orphan, f"{counts.aside_blocks} blocks are set aside")
        else:
            self.orphans.remove(orphan)
            orphan.release(finished=True)
        return False

    def _see_to_kept(self) -> None:
        """When the server was restored, or has a new backup: look at what is kept for that."""
        standing = self._flusher.standing
        if standing is None:
            return
        told = (standing.branch_name, standing.archived)
        if told == self._kept_for:
            return
        self._kept_for = told
        for path in kept_paths(self._directory):
            kept = Kept.read(path)
            if kept is None or kept.ledger != standing.ledger:
                continue
            if not kept.held_by(standing):
                self.revive(kept)
            elif kept.position <= standing.archived:
                kept.remove()

    def revive(self, kept: Kept) -> None:
        """Make a queue of kept blocks again, which is then adopted as a dead producer's."""
        try:
            revived = kept.revive(self._directory, self._endpoint, self._clock.time_ns() // 1000)
        except (OSError, sqlite3.Error, TallybookError) as error:
            self._kept_for = None  # The next step tries again.
            warn(f"kept blocks cannot be sent again: {error}")
            return
        if revived:
            # The restored server may not know that this producer has ended.
            self._announced.discard(kept.producer)
            self._due_at = self._clock.monotonic()

    def look(self) -> None:
        """Adopt every dead producer of this directory that is meant for this endpoint."""
        sweep_kept(self._directory, self._clock.time_ns() / 1e9)
        paths = lock_names(self._directory)
        names = {path.stem for path in paths}
        for name in self.held.keys() - names:
            self.held.pop(name)  # Somebody else has taken care of it.
            self._held_until.pop(name, None)
        for path in paths:
            if self._clock.monotonic() < self._held_until.get(path.stem, 0.0):
                continue
            try:
                lock = Lock.take(path)
                if lock is not None:
                    self._adopt(lock)
            except OSError as error:
                self._hold(path.stem, str(error))

    def _adopt(self, lock: Lock) -> None:
        name = lock.path.stem
        try:
            spools = [path for _, path in spool_paths(self._directory, name)]
            if not queue_path(self._directory, name).exists() and all(map(_is_blank, spools)):
                # It died before its first event, or after its last. A spool is made before
                # the queue: the owner may have died before it wrote so much as whose it is.
                remove_files(self._directory, name)
                lock.release(unlink=True)
                return
            orphan = Orphan(
                self._directory,
                lock,
                self._endpoint,
                self._clock,
                unaddressed=self._unaddressed,
            )
        except Exception as error:  # Whatever lies there, it is no reason to stop.
            self._hold(name, str(error) or type(error).__name__)
            lock.release(unlink=False)
            return
        # Known to the server to the end: only what was set aside is left, unless somebody
        # has let that go again.
        orphan.announced = name in self._announced
        self.held.pop(name, None)
        self.orphans.append(orphan)

    def _hold(self, name: str, reason: str) -> None:
        self._held_until[name] = self._clock.monotonic() + HELD_SECONDS
        if self.held.get(name) != reason:
            self.held[name] = reason
            warn(f"a dead producer's queue is held: {reason}")

    def _let_go(self, orphan: Orphan, reason: str) -> None:
        self.orphans.remove(orphan)
        self._hold(orphan.id.hex(), reason)
        orphan.release(finished=False)

    def close(self) -> None:
        """Let go of the orphans; whoever comes next goes on with them."""
        while self.orphans:
            self.orphans.pop().release(finished=False)

    def forget(self) -> None:
        """In a child after fork: as `Producer.forget`."""
        for orphan in self.orphans:
            orphan.forget()


def _identity(spools: list[tuple[int, Path]]) -> SpoolIdentity | None:
    for _, path in spools:
        with path.open("rb") as file, suppress(FrameDamaged):
            return read_header(file.read(SPOOL_HEADER_BYTES))
    return None


def _is_blank(spool: Path) -> bool:
    """Whether nothing was ever stored in it: no event, and no drop counted."""
    data = spool.read_bytes()
    return not any(data[DROPPED_OFFSET:] if len(data) >= SPOOL_HEADER_BYTES else data)


def _text(note: int | str | None) -> str | None:
    return note if isinstance(note, str) else None
