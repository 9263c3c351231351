"""Whether an index may be saved: not while another thread is at it, and not where it is stored already.

The part of `SnapshotDir` that is asked before a save. Reads names, and makes last what has one; moves no
bytes.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from snapstore import disk
from snapstore.errors import SnapshotBusy, SnapshotExists
from snapstore.housekeeping import Housekeeping
from snapstore.meta import check_index

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from snapstore.stored import SavedSnapshot


class Claims(Housekeeping):
    """What `SnapshotDir` knows of an index before it saves it. From any thread."""

    def __init__(
        self, path: str | os.PathLike[str], wall_clock: Callable[[], float], monotonic: Callable[[], float]
    ) -> None:
        """Open `path`, as `Housekeeping` does."""
        super().__init__(path, wall_clock, monotonic)
        self._saving: set[int] = set()

    def confirm(self, index: int) -> SavedSnapshot:
        """Return what is stored under this index, certain to outlive a power cut.

        Another saver may have named it and not have come to its last fsync yet, or have failed there:
        raises SnapshotBusy, DirectoryPoisoned or SnapshotNotDurable then, as `save_from` does.
        """
        index = check_index(index)
        saved = self._confirmed(index)
        if saved is None:
            raise self._not_found(index)
        return saved

    def confirm_sound(self, index: int, why: str) -> SavedSnapshot | None:
        """As `confirm`, but None where nothing is stored, or what is has a problem: that is set aside.

        For who has a good one to save. `why` is for the log; raises what `set_aside` does, too.
        """
        index = check_index(index)
        saved = self._confirmed(index)
        if saved is None or saved.problem is None:
            return saved
        self.set_aside(index, why)
        return None

    def _confirmed(self, index: int) -> SavedSnapshot | None:
        with self._claimed(index):
            saved = self._find(index)
            if saved is not None:
                self._make_last(index)
            return saved

    @contextlib.contextmanager
    def _claimed(self, index: int) -> Iterator[None]:
        """Let no second thread of this process save the same index meanwhile."""
        self._check_usable()
        self.check_sound()
        with self._lock:
            if index in self._saving:
                raise SnapshotBusy(f"index {index} is being saved already")
            self._saving.add(index)
        try:
            yield
        finally:
            with self._lock:
                self._saving.discard(index)

    def _refuse_existing(self, index: int) -> None:
        if disk.name_taken(self._fd, disk.snapshot_name(index)):
            self._make_last(index)
            raise SnapshotExists(f"{self._path(index)} exists; it was kept", self._path(index))
        if disk.stranger_named(self._fd, disk.manifest_name(index)):
            path = self.path / disk.manifest_name(index)
            raise SnapshotExists(f"{path} exists and is no manifest of ours; it was kept", path)
