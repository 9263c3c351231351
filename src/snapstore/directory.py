"""The follower's side of the walk: a directory of snapshots, each there as a whole or not at all.

Decides names, order and errors, once per snapshot; the bytes are the C core's, the names' meaning is
disk.py's. Knows no KV and no transport.

The promise of `save_from`: when it returned, the snapshot outlives a power cut; before, there is
nothing, through SIGKILL and full disks. Not promised: disks that lie about their caches, and file
systems over a network beyond what those promise themselves.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from snapstore import _fastpipe, disk
from snapstore.errors import (
    DirectoryPoisoned,
    ForkedProcess,
    SnapshotBusy,
    SnapshotExists,
    SnapshotNotDurable,
    SnapshotNotFound,
)
from snapstore.manifest import MANIFEST_CHUNKS_MAX, Manifest
from snapstore.meta import SnapshotMeta, check_index, to_meta
from snapstore.source import known_size, open_source
from snapstore.stored import SavedSnapshot, StoredSnapshot, find_saved

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from typing_extensions import Self

    from snapstore._fastpipe import Progress

#: No store that a raft node restores in one piece is larger; a bound for sources without an end.
SNAPSHOT_SIZE_MAX = 32 * 2**40

#: Errors that a disk gives and a peer does not; they get the snapshot's path.
_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}


class SnapshotDir:
    """A directory of snapshots on a local file system. Every method may be called from any thread.

    Several processes may use one directory: names are never replaced, and leftovers of savers that
    still live are not touched. Opening makes the directory (mode 0700) where it is missing and
    removes what dead savers left. An object must not be used after a fork.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        chunk_size: int = _fastpipe.CHUNK_SIZE_DEFAULT,
        size_max: int = SNAPSHOT_SIZE_MAX,
        nameless: bool = True,
        direct: bool = True,
    ) -> None:
        """Open `path`. `chunk_size` and `size_max` in bytes: the unit of digests, and the largest save.

        `nameless=False` and `direct=False` do without O_TMPFILE and without direct I/O, for file
        systems that claim either and fail at it; both are left by themselves where refused.
        """
        self.path = Path(path)
        self.chunk_size = chunk_size
        self.size_max = size_max
        self._nameless = nameless
        self._direct = direct
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._saving: set[int] = set()
        self._poison: OSError | None = None
        self._fd = disk.open_directory(self.path)
        self.remove_orphans()

    def save_from(
        self,
        source: object,
        meta_or_index: SnapshotMeta | int,
        *,
        size: int | None = None,
        size_max: int | None = None,
        chunk_size: int | None = None,
        expected: Manifest | None = None,
        progress: Progress | None = None,
        idle_timeout_s: float | None = None,
    ) -> SavedSnapshot:
        """Save all of `source` for good; only when this returned may raft record the snapshot.

        `source` is a descriptor, a socket, a binary reader, a bytes-like object, a PipeReader, an
        Image or a SnapshotStream; it is read to its end, or for `size` bytes from a socket. `size`
        in bytes, where it is known, is checked and its room is taken first; `size_max` and
        `chunk_size`, in bytes, stand in for the directory's own. `expected` is the manifest that the
        bytes must match. `progress` counts the bytes and can cancel. `idle_timeout_s` is how long a
        source may be silent; it cannot hold for Python readers, which have the thread meanwhile.

        Raises SnapshotExists before a byte is read (the stored one is kept), SnapshotBusy when this
        index is being saved by this process, SnapshotTruncated, SnapshotTooLarge and SnapshotCorrupt
        for a bad source, OSError as the system gives it, and SnapshotNotDurable when only the last
        fsync failed. After any of them but the last nothing is left of the attempt.
        """
        meta = to_meta(meta_or_index)
        if size is None and expected is not None:
            size = expected.size
        with self._claimed(meta.index):
            self._refuse_existing(meta.index)
            unit = chunk_size or (expected.chunk_size if expected else self.chunk_size)
            with self._naming_disk_errors(meta.index), self._new_file(meta.index) as file:
                copied = file.fill(
                    open_source(source),
                    size=known_size(source) if size is None else size,
                    size_max=min(self.size_max if size_max is None else size_max, MANIFEST_CHUNKS_MAX * unit),
                    chunk_size=unit,
                    direct=self._direct,
                    expected=expected.chunk_digests if expected else None,
                    progress=progress,
                    idle_timeout_s=idle_timeout_s,
                )
                return self._publish(
                    file, Manifest(meta, copied.size, copied.digest, unit, copied.chunk_digests)
                )

    def _new_file(self, index: int) -> _fastpipe.SaveFile:
        if os.fstat(self._fd).st_nlink == 0:  # What the system says later differs, and none is clear.
            raise FileNotFoundError(errno.ENOENT, "the directory was removed", str(self.path))
        try:
            return _fastpipe.SaveFile(self._fd, disk.temp_name(index).encode(), nameless=self._nameless)
        except OSError as error:
            error.filename = str(self._path(index))
            raise

    def _publish(self, file: _fastpipe.SaveFile, manifest: Manifest) -> SavedSnapshot:
        self._check_sound()  # Another save may have failed while these bytes came.
        index = manifest.meta.index
        stage, code, sync_s = file.publish(
            disk.snapshot_name(index).encode(),
            manifest=manifest.to_bytes(),
            manifest_name=disk.manifest_name(index).encode(),
            manifest_temp_name=disk.temp_name(index).encode(),
        )
        path = self._path(index)
        error = OSError(code, os.strerror(code), str(path))
        if stage == "sync_directory":
            self._poison = error
        # The kernel reports a failed fsync once: one that another save was told of counts here, too.
        if stage in ("done", "sync_directory") and self._poison is not None:
            raise SnapshotNotDurable(
                f"{path} is there, but fsync of its directory failed; open the directory anew"
            ) from self._poison
        if stage == "done":
            return SavedSnapshot(index, path, manifest.size, manifest, sync_s=sync_s)
        if stage == "name" and code == errno.EEXIST:
            raise SnapshotExists(f"{path} was saved by somebody else meanwhile; it was kept", path)
        raise error

    def get_snap_file_path(self, index: int) -> Path:
        """Return the path of the snapshot with this index; SnapshotNotFound where there is none.

        One stat, whatever the size of the directory. The file is not verified; see `open`.
        """
        index = check_index(index)
        self._check_usable()
        if disk.regular_size(self._fd, disk.snapshot_name(index)) is None:
            raise self._not_found(index)
        return self._path(index)

    def list(self) -> Sequence[SavedSnapshot]:
        """Return what is stored, oldest index first; broken ones too, with their `problem`."""
        self._check_usable()
        found = (self._find(index) for index in disk.snapshot_indexes(self._fd))
        return [saved for saved in found if saved is not None]

    def stat(self, index: int) -> SavedSnapshot:
        """Return what is stored under this index, unverified; SnapshotNotFound where nothing is."""
        index = check_index(index)
        self._check_usable()
        saved = self._find(index)
        if saved is None:
            raise self._not_found(index)
        return saved

    def newest(self) -> SavedSnapshot | None:
        """Return the snapshot with the highest index that has a sound manifest; None without any."""
        self._check_usable()
        found = map(self._find, reversed(disk.snapshot_indexes(self._fd)))
        return next((saved for saved in found if saved is not None and not saved.problem), None)

    def confirm(self, index: int) -> SavedSnapshot:
        """Return what is stored under this index, certain to outlive a power cut.

        Another saver may have named it and not have come to its last fsync yet, or have failed there:
        raises SnapshotBusy, DirectoryPoisoned or SnapshotNotDurable then, as `save_from` does.
        """
        index = check_index(index)
        with self._claimed(index):
            saved = self.stat(index)
            self._make_last(index)
            return saved

    def open(self, index: int, *, verify: bool = True, progress: Progress | None = None) -> StoredSnapshot:
        """Open the snapshot with this index for reading, leased: no purge takes it away until closed.

        With `verify` all of it is read and compared with its manifest first; `progress` counts then.
        Raises SnapshotNotFound, and SnapshotCorrupt or SnapshotTruncated, which name the first bad
        chunk.
        """
        index = check_index(index)
        self._check_usable()
        try:
            fd = disk.open_regular(self._fd, disk.snapshot_name(index))
        except FileNotFoundError:
            raise self._not_found(index) from None
        except OSError as error:
            error.filename = str(self._path(index))
            raise
        try:
            self._lease(fd, index)
            saved = self.stat(index)
        except BaseException:
            os.close(fd)
            raise
        stored = StoredSnapshot(saved, fd)
        if verify:
            try:
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)  # Ask the disk, not the page cache.
                stored.verify(progress)
            except BaseException:
                stored.close()
                raise
        return stored

    def verify(self, index: int, *, progress: Progress | None = None) -> SavedSnapshot:
        """Read all of a snapshot and compare it with its manifest; raises as `open` does."""
        with self.open(index, progress=progress) as stored:
            return stored.saved

    def purge(self, *, keep: int) -> Sequence[int]:
        """Remove what is older than the `keep` newest snapshots; the indexes that are gone.

        Leased ones stay. `keep` is at least 1: the only snapshot of a node is never purged. Those
        without a manifest that can be read do not count: nobody can restore them.
        """
        if isinstance(keep, bool) or not isinstance(keep, int) or keep < 1:
            raise ValueError(f"keep must be 1 or more, not {keep!r}")
        self._check_usable()
        removed = []
        with _fastpipe.DirectoryLock(self._fd):
            stored = self.list()
            sound = [saved.index for saved in stored if saved.problem is None]
            oldest_kept = sound[-keep] if len(sound) >= keep else 0
            for index in (saved.index for saved in stored if saved.index < oldest_kept):
                if disk.unlink_unused(self._fd, disk.snapshot_name(index)):
                    removed.append(index)
                    disk.unlink_manifest(self._fd, index)
        if removed:
            self._sync()
        return removed

    def remove_orphans(self) -> Sequence[str]:
        """Remove what savers that were killed left; the names. Done at opening, too."""
        self._check_usable()
        removed = disk.sweep(self._fd)
        if removed:
            self._sync()
        return removed

    def close(self) -> None:
        """Close the directory's descriptor. Open snapshots stay open. May come twice."""
        if os.getpid() != self._pid:
            return  # Another thread may have held the lock at the fork: here it will never be free.
        with self._lock:
            fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    @contextlib.contextmanager
    def _claimed(self, index: int) -> Iterator[None]:
        """Let no second thread of this process save the same index meanwhile."""
        self._check_usable()
        self._check_sound()
        with self._lock:
            if index in self._saving:
                raise SnapshotBusy(f"index {index} is being saved already")
            self._saving.add(index)
        try:
            yield
        finally:
            with self._lock:
                self._saving.discard(index)

    def _check_sound(self) -> None:
        if self._poison is not None:
            raise DirectoryPoisoned(
                f"fsync of {self.path} failed earlier ({self._poison.strerror});"
                " open a new SnapshotDir on it, and verify what it has"
            )

    def _refuse_existing(self, index: int) -> None:
        if disk.name_taken(self._fd, disk.snapshot_name(index)):
            self._make_last(index)
            raise SnapshotExists(f"{self._path(index)} exists; it was kept", self._path(index))

    def _make_last(self, index: int) -> None:
        """Whoever named it may have died before its own fsync: "exists" must last like "saved"."""
        try:
            self._sync()
        except OSError as error:
            raise SnapshotNotDurable(
                f"{self._path(index)} exists, but fsync of its directory failed; open the directory anew"
            ) from error

    def _sync(self) -> None:
        """Make the directory's names last. A failure poisons: the kernel tells of it only once."""
        try:
            disk.sync_directory(self._fd)
        except OSError as error:
            error.filename = str(self.path)
            self._poison = error
            raise

    @contextlib.contextmanager
    def _naming_disk_errors(self, index: int) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.filename is None and error.errno in _DISK_ERRORS:
                error.filename = str(self._path(index))
            raise

    def _find(self, index: int) -> SavedSnapshot | None:
        return find_saved(self._fd, self._path(index), index)

    def _lease(self, fd: int, index: int) -> None:
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            raise self._not_found(index) from None  # It is being purged.
        if os.fstat(fd).st_nlink == 0:
            raise self._not_found(index)

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
        return f"SnapshotDir({str(self.path)!r})"
