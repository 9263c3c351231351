"""A directory of snapshots, opened: what is stored there, and how it is read.

The half of `SnapshotDir` that adds and purges nothing. A reader who verifies gets a sound snapshot or
an error, never wrong bytes, and what is found broken goes out of the way. Knows no savers, and the
files only through disk.py and stored.py.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from snapstore import _fastpipe, broken, disk, poison
from snapstore.counts import DirectoryCounts
from snapstore.errors import (
    DirectoryPoisoned,
    ForkedProcess,
    SnapshotCorrupt,
    SnapshotNotDurable,
    SnapshotNotFound,
)
from snapstore.lease import STORED_TTL_S
from snapstore.leases import Leases
from snapstore.meta import check_index
from snapstore.retention import Retention
from snapstore.stored import SavedSnapshot, StoredSnapshot, find_saved, open_stored

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from typing_extensions import Self

    from snapstore._fastpipe import Progress
    from snapstore.broken import BrokenSnapshot
    from snapstore.lease import Lease

logger = logging.getLogger("snapstore")


class Shelf:
    """What `SnapshotDir` knows of its directory, and reads from it. From any thread."""

    def __init__(self, path: str | os.PathLike[str], monotonic: Callable[[], float] = time.monotonic) -> None:
        """Open `path`; where an fsync of it failed earlier, all it has is read back first.

        `monotonic` gives the seconds by which leases are overdue.
        """
        self.path = Path(path)
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._directory_sync = _fastpipe.DirectorySync()
        self._marked = False  # The poison stands in the directory, too.
        self._retention = Retention()
        self._leases = Leases(monotonic)
        #: For operators: what was fsynced, swept and found wrong since this object was made.
        self.counts = DirectoryCounts()
        self._fd = disk.open_directory(self.path)
        try:
            self._sync()
            poison.recover(self._fd, self.path)
        except BaseException:
            self.close()
            raise

    def get_snap_file_path(self, index: int) -> Path:
        """Return the path of the snapshot with this index; SnapshotNotFound where there is none.

        One stat, whatever the size of the directory. The file is not verified; see `open`.
        """
        index = check_index(index)
        self._check_usable()
        if disk.regular_status(self._fd, disk.snapshot_name(index)) is None:
            raise self._not_found(index)
        return self._path(index)

    def list(self) -> Sequence[SavedSnapshot]:
        """Return what is stored, oldest index first; broken ones too, with their `problem`."""
        self._check_usable()
        found = (self._find(index) for index in disk.snapshot_indexes(self._fd))
        return [saved for saved in found if saved is not None]

    def broken(self) -> Sequence[BrokenSnapshot]:
        """Return what was set aside, the oldest first; at most `broken.BROKEN_MAX`.

        Nothing here uses them again. Whoever has looked at them may remove the files.
        """
        self._check_usable()
        return broken.list_broken(self._fd, self.path)

    def stat(self, index: int) -> SavedSnapshot:
        """Return what is stored under this index, unverified; SnapshotNotFound where nothing is."""
        index = check_index(index)
        self._check_usable()
        saved = self._find(index)
        if saved is None:
            raise self._not_found(index)
        return saved

    def newest(self, *, above: int = -1) -> SavedSnapshot | None:
        """Return the snapshot with the highest index that has a sound manifest; None without any.

        Its bytes are not verified; see `open_newest`. None, too, where none is higher than `above`.
        """
        self._check_usable()
        found = map(self._find, reversed(disk.snapshot_indexes(self._fd, above=above)))
        return next((saved for saved in found if saved is not None and not saved.problem), None)

    def leases(self) -> Sequence[Lease]:
        """Return what is held open through this object, the oldest first; what is overdue is reported."""
        self._check_usable()
        return self._leases.look()

    def open(
        self,
        index: int,
        *,
        verify: bool = True,
        progress: Progress | None = None,
        owner: str | None = None,
        ttl_s: float = STORED_TTL_S,
    ) -> StoredSnapshot:
        """Open the snapshot with this index for reading, leased: no purge takes it away until closed.

        With `verify` all of it is read from the disk and compared with its manifest first; `progress`
        counts then. Raises SnapshotNotFound, and SnapshotCorrupt or SnapshotTruncated, which name the
        first bad chunk: a broken snapshot is set aside, and the error says under which name. An
        OSError, a disk that cannot be read now, changes nothing.

        `owner` is what `leases` and the log call the holder; None: the thread. What is held for more
        than `ttl_s` seconds is reported at the next `open`, `purge` or `leases`, once, with where it was
        taken. A purge may take its file then; who reads it can read on, by what is open here.
        """
        index = check_index(index)
        self._check_usable()
        self._leases.look()
        lend = partial(self._leases.begin, owner=owner, ttl_s=ttl_s)
        stored = open_stored(self._fd, self._path(index), index, from_disk=verify, lend=lend)
        if verify:
            try:
                with self.counts.judging():
                    stored.verify(progress)
            except SnapshotCorrupt as error:
                with stored:
                    raise self._set_aside(stored.saved, error) from error
            except BaseException:
                stored.close()
                raise
            self._retention.remember(stored.saved)
        return stored

    def open_newest(
        self,
        *,
        verify: bool = True,
        progress: Progress | None = None,
        owner: str | None = None,
        ttl_s: float = STORED_TTL_S,
    ) -> StoredSnapshot:
        """Open the newest sound snapshot, as `open` does; a broken one makes way for the next older.

        Raises SnapshotNotFound when none is left. An OSError is raised, and nothing older offered:
        what cannot be read now is not lost. Without `verify` the manifest alone says what is sound.
        """
        self._check_usable()
        tried: set[int] = set()
        while left := set(disk.snapshot_indexes(self._fd)) - tried:
            index = max(left)
            tried.add(index)
            if self._find(index) is None:  # Not a file, or gone meanwhile.
                continue
            try:
                stored = self.open(index, verify=verify, progress=progress, owner=owner, ttl_s=ttl_s)
            except SnapshotNotFound:
                continue
            except SnapshotCorrupt as error:
                logger.warning("looking for an older snapshot: %s", error)
                continue
            if stored.saved.problem is None:
                return stored
            stored.close()
        raise SnapshotNotFound(f"no sound snapshot in {self.path}")

    def verify(self, index: int, *, progress: Progress | None = None) -> SavedSnapshot:
        """Read all of a snapshot and compare it with its manifest; sets aside and raises as `open` does."""
        with self.open(index, progress=progress) as stored:
            return stored.saved

    def set_aside(self, index: int, why: str) -> Path | None:
        """Make room where a snapshot is stored whose manifest shows it to be broken; where it is now.

        None where nothing broken is stored under this index (any more): a sound one is never touched.
        `why` is for the log. Its bytes are not read; `verify` does that. Raises OSError where it
        cannot be renamed, and DirectoryPoisoned.
        """
        index = check_index(index)
        self._check_usable()
        self.check_sound()
        try:
            stored = open_stored(self._fd, self._path(index), index, from_disk=True)
        except SnapshotNotFound:
            return None
        with stored:
            if stored.saved.problem is None:
                return None
            place = broken.set_aside(self._fd, stored.saved)
        self._sync()
        logger.warning("%s: %s; set aside as %s: %s", stored.path, stored.saved.problem, place, why)
        return place

    def close(self) -> None:
        """Close the directory's descriptor. Open snapshots stay open. May come twice."""
        if os.getpid() != self._pid:
            return  # Another thread may have held the lock at the fork: here it will never be free.
        with self._lock:
            fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _set_aside(self, saved: SavedSnapshot, error: SnapshotCorrupt) -> SnapshotCorrupt:
        """The error to raise in place of `error`, which says where the broken snapshot is now."""
        try:
            self.check_sound()
            place = broken.set_aside(self._fd, saved)
            self._sync()
            words = f"it was set aside as {place.name}" if place else "it is gone meanwhile"
        except (OSError, DirectoryPoisoned) as failure:
            words = f"it could not be set aside: {failure}"
        return type(error)(f"{error}; {words}", error.chunk)

    def _find(self, index: int) -> SavedSnapshot | None:
        return find_saved(self._fd, self._path(index), index)

    def _sync(self) -> None:
        """Make the directory's names last. A failure poisons: the kernel tells of it only once."""
        try:
            with self._directory_sync as turn:
                try:
                    disk.sync_directory(self._fd)
                except OSError as error:
                    turn.fail(error.errno or errno.EIO)
                    raise
        except OSError as error:
            error.filename = str(self.path)
            self._leave_marker()
            raise

    def _make_last(self, index: int) -> None:
        """Whoever named it may have died before its own fsync: "exists" must last like "saved"."""
        try:
            self._sync()
        except OSError as error:
            raise SnapshotNotDurable(
                f"{self._path(index)} exists, but fsync of its directory failed; open the directory anew"
            ) from error

    def _leave_marker(self) -> None:
        """Where this object is poisoned, let the next opening know."""
        if self._directory_sync.failed and not self._marked:
            self._marked = True
            poison.leave_marker(self._fd, os.strerror(self._directory_sync.failed))

    def check_sound(self) -> None:
        """Raise DirectoryPoisoned where an fsync of the directory has failed."""
        if self._directory_sync.failed:
            raise DirectoryPoisoned(
                f"fsync of {self.path} failed earlier ({os.strerror(self._directory_sync.failed)});"
                " open a new SnapshotDir on it, which reads back all it has"
            )

    def _check_usable(self) -> None:
        if os.getpid() != self._pid:
            raise ForkedProcess("this SnapshotDir was opened before the fork; open one in this process")
        if self._fd < 0:
            raise ValueError(f"the SnapshotDir of {self.path} was closed")

    def _path(self, index: int) -> Path:
        return self.path / disk.snapshot_name(index)

    def _not_found(self, index: int) -> SnapshotNotFound:
        return SnapshotNotFound(f"no snapshot of index {index} in {self.path}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_fd", -1) >= 0:
            os.close(self._fd)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r})"
