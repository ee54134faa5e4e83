"""What of a snapshot cannot be read, so that nothing can be said about its events."""

from __future__ import annotations

from dataclasses import replace

from tallybook_server.snapshot import Snapshot

__all__ = ["Unread"]


class Unread:
    """Grows while the files are looked at. A snapshot without any part of a tail has lost it."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self._names: set[str] = set()
        self._covered: list[tuple[int, int]] = []
        if not snapshot.tail:
            self._covered.append((snapshot.sealed_upto + 1, snapshot.position))

    def add(self, name: str) -> None:
        """Leave out the segment of this name."""
        self._names.add(name)
        self._covered += [
            (one.first, one.last) for one in self._snapshot.segments if one.name == name
        ]

    def may_hold(self, entry: int) -> bool:
        """Whether events of *entry* may be in what cannot be read."""
        return any(first <= entry <= last for first, last in self._covered)

    def rest(self) -> Snapshot:
        """The snapshot with what can be read."""
        segments = tuple(one for one in self._snapshot.segments if one.name not in self._names)
        return replace(self._snapshot, segments=segments)
