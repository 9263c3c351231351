"""Which snapshots may go: none before a newer one was read back from the disk and found good.

Decides, and removes under the directory's lock; reads nothing itself. Gigabytes are read before the
lock is taken, and what was true then is looked at again under it.
"""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

from snapstore import _fastpipe, disk
from snapstore.errors import SnapshotCorrupt, SnapshotNotFound

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from snapstore.stored import FileIdentity, SavedSnapshot

logger = logging.getLogger("snapstore")

#: A purge needs one; these are more than a node keeps.
READ_BACK_MAX = 64


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
        keep: int,
        stored: Callable[[], Sequence[SavedSnapshot]],
        read_back: Callable[[int], object],
    ) -> list[int]:
        """Remove what is older than the `keep` newest sound ones of `stored()`; the indexes.

        `read_back(index)` has to remember, or to raise SnapshotCorrupt when it has set a broken one
        aside. Leased ones stay. Needs `disk.sync_directory` to last.
        """
        uncounted: set[int] = set()
        while True:
            older, kept = _divide(stored(), keep, uncounted)
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
            older, kept = _divide(stored(), keep, uncounted)
            # None, where it went meanwhile: then nothing goes, and the next purge looks again.
            proof = max((saved.index for saved in (*older, *kept) if self.was_read_back(saved)), default=0)
            return [saved.index for saved in older if saved.index < proof and _remove(directory, saved.index)]


def _divide(
    stored: Sequence[SavedSnapshot], keep: int, uncounted: set[int]
) -> tuple[list[SavedSnapshot], list[SavedSnapshot]]:
    """What may go, and what is kept and sound; nothing may where there is not enough to keep."""
    sound = [saved for saved in stored if saved.problem is None and saved.index not in uncounted]
    kept = sound[-keep:] if len(sound) >= keep else []
    return [saved for saved in stored if kept and saved.index < kept[0].index], kept


def _remove(directory: int, index: int) -> bool:
    removed = disk.unlink_unused(directory, disk.snapshot_name(index))
    if removed:
        disk.unlink_manifest(directory, index)
    return removed
