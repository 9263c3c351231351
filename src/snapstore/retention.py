"""Which snapshots may go: none before a newer one was read back from the disk and found good.

Decides, and removes under the directory's lock; reads nothing itself. Gigabytes are read before the
lock is taken, and what was true then is looked at again under it.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from snapstore import _fastpipe, disk
from snapstore.errors import SnapshotCorrupt, SnapshotNotFound

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from snapstore.stored import FileIdentity, SavedSnapshot

logger = logging.getLogger("snapstore")

#: A purge needs one; these are more than a node keeps.
READ_BACK_MAX = 64


@dataclass(frozen=True, slots=True)
class Rule:
    """What stays, as `SnapshotDir.purge` says it; `now_s` is the time by which files are old."""

    keep: int
    older_than_s: float | None = None
    size_max: int | None = None
    now_s: float = 0.0

    def __post_init__(self) -> None:
        if isinstance(self.keep, bool) or not isinstance(self.keep, int) or self.keep < 1:
            raise ValueError(f"keep must be 1 or more, not {self.keep!r}")
        if self.older_than_s is not None and not self.older_than_s >= 0:
            raise ValueError(f"older_than_s must be 0 or more seconds, or None, not {self.older_than_s!r}")
        if self.size_max is not None and not self.size_max >= 0:
            raise ValueError(f"size_max must be 0 or more bytes, or None, not {self.size_max!r}")

    def divide(
        self, stored: Sequence[SavedSnapshot], uncounted: set[int]
    ) -> tuple[list[SavedSnapshot], list[SavedSnapshot]]:
        """What may go, and the `keep` newest that are sound; nothing may where those are too few."""
        sound = [saved for saved in stored if saved.problem is None and saved.index not in uncounted]
        if len(sound) < self.keep:
            return [], []
        kept = sound[-self.keep :]
        staying = self._staying(sound[: -self.keep], sum(saved.size for saved in kept))
        older = (saved for saved in stored if saved.index < kept[0].index)
        return [saved for saved in older if saved.index not in staying], kept

    def _staying(self, older: Sequence[SavedSnapshot], size: int) -> set[int]:
        """The indexes that age and size let stay beside those kept, which have `size` bytes."""
        staying: set[int] = set()
        if self.older_than_s is None and self.size_max is None:
            return staying
        for saved in reversed(older):
            if self.older_than_s is not None and self._age_s(saved) > self.older_than_s:
                continue
            size += saved.size
            if self.size_max is not None and size > self.size_max:
                break
            staying.add(saved.index)
        return staying

    def _age_s(self, saved: SavedSnapshot) -> float:
        assert saved.identity is not None
        return self.now_s - saved.identity.mtime_ns / 1e9


class Retention:
    """Knows what one object has read back from its directory. Every method from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._read_back: dict[int, FileIdentity] = {}

    def remember(self, saved: SavedSnapshot) -> None:
        """Note that all of `saved` came from the disk, and was what its manifest says."""
        assert saved.identity is not None
        with self._lock:
            self._read_back.pop(saved.index, None)
            self._read_back[saved.index] = saved.identity
            if len(self._read_back) > READ_BACK_MAX:
                del self._read_back[next(iter(self._read_back))]

    def was_read_back(self, saved: SavedSnapshot) -> bool:
        """Whether `saved` is one that was remembered, and has not been written to since."""
        with self._lock:
            return self._read_back.get(saved.index) == saved.identity

    def purge(
        self,
        directory: int,
        rule: Rule,
        stored: Callable[[], Sequence[SavedSnapshot]],
        read_back: Callable[[int], object],
    ) -> list[int]:
        """Remove what `rule` lets go of `stored()`; the indexes.

        `read_back(index)` has to remember, or to raise SnapshotCorrupt when it has set a broken one
        aside. Leased ones stay. Needs `disk.sync_directory` to last.
        """
        uncounted: set[int] = set()
        while True:
            older, kept = rule.divide(stored(), uncounted)
            if not older:
                return []
            if any(map(self.was_read_back, kept)):
                break
            newest = kept[-1].index
            try:
                read_back(newest)
                break
            except SnapshotNotFound:  # Another purge has it, or its saver has not let it go yet.
                uncounted.add(newest)
            except SnapshotCorrupt as error:
                logger.warning("it does not count as kept: %s", error)
                uncounted.add(newest)
        with _fastpipe.DirectoryLock(directory):
            older, kept = rule.divide(stored(), uncounted)
            # None, where it went meanwhile: then nothing goes, and the next purge looks again.
            proof = max((saved.index for saved in (*older, *kept) if self.was_read_back(saved)), default=0)
            return [saved.index for saved in older if saved.index < proof and _remove(directory, saved.index)]


def _remove(directory: int, index: int) -> bool:
    removed = disk.unlink_unused(directory, disk.snapshot_name(index))
    if removed:
        disk.unlink_manifest(directory, index)
    return removed
