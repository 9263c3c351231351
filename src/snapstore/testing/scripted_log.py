"""A log in memory for a scripted node: a raft storage that answers as raft-rs wants it.

What a node's author writes on a disk. Its `snapshot` comes in through the constructor.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from snapstore.testing.scripted_messages import CompactedError, Entry, Snapshot, StoreError, UnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable


class ScriptedLog:
    """Entries behind a compacted beginning. `snapshot(request_index, to)` is asked for one of those.

    One thread at a time.
    """

    def __init__(self, snapshot: Callable[[int, int], Any]) -> None:
        self.snapshot = snapshot
        self._before = (0, 0)  # Index and term of the last entry that is gone.
        self._entries: list[Entry] = []

    def initial_state(self) -> tuple[int, int]:
        """Return the term and the commit index to begin with."""
        return self._before[1], self._before[0]

    def first_index(self) -> int:
        """Return the index of the first entry that is there, or would be."""
        return self._before[0] + 1

    def last_index(self) -> int:
        """Return the index of the last entry, gone or there."""
        return self._before[0] + len(self._entries)

    def term(self, index: int) -> int:
        """Return the term of an entry."""
        if index == self._before[0]:
            return self._before[1]
        self._check(index)
        return int(self._entries[index - self.first_index()].get_term())

    def entries(self, low: int, high: int, context: object, max_size: int) -> list[Entry]:
        """Return the entries from `low` to before `high`: at least one, no more than `max_size` bytes."""
        self._check(low)
        self._check(high - 1)
        taken: list[Entry] = []
        size = 0
        for entry in self._entries[low - self.first_index() : high - self.first_index()]:
            size += len(entry.get_data())
            if taken and size > max_size:
                break
            taken.append(entry)
        return taken

    def append(self, entries: list[Entry]) -> None:
        """Save `entries`, in place of what is there from the first of them on."""
        if entries:
            del self._entries[entries[0].get_index() - self.first_index() :]
            self._entries += entries

    def compact(self, index: int) -> None:
        """Throw away what is up to `index`, itself included."""
        if index > self._before[0]:
            term = self.term(index)
            del self._entries[: index - self._before[0]]
            self._before = (index, term)

    def apply_snapshot(self, snapshot: Snapshot) -> None:
        """Begin anew behind `snapshot`."""
        metadata = snapshot.get_metadata()
        self._before, self._entries = (metadata.get_index(), metadata.get_term()), []

    def _check(self, index: int) -> None:
        if index < self.first_index():
            raise StoreError(CompactedError())
        if index > self.last_index():
            raise StoreError(UnavailableError())
