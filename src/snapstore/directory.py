"""The follower's side of the walk: a directory of snapshots, each there as a whole or not at all.

Decides names, order and errors, once per snapshot; the bytes are the C core's, the names' meaning is
disk.py's, what is stored is found and read in shelf.py, and goes in housekeeping.py; whether an index may
be saved is said in claims.py, and how much of the disk in room.py. Knows no KV and no transport.

The promise of `save_from`: when it returned, the snapshot outlives a power cut; before, there is
nothing, through SIGKILL and full disks. Not promised: disks that lie about their caches, and file
systems over a network beyond what those promise themselves.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from typing import TYPE_CHECKING, Any

from snapstore import _fastpipe, disk
from snapstore.claims import Claims
from snapstore.errors import SnapshotExists, SnapshotNotDurable
from snapstore.manifest import MANIFEST_CHUNKS_MAX, Manifest
from snapstore.meta import SnapshotMeta, to_meta
from snapstore.reception import Reception, note_of, open_partial
from snapstore.room import RoomAccount
from snapstore.source import known_size, open_source
from snapstore.stored import SavedSnapshot

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from snapstore._fastpipe import Image, Progress, Throttle

    _MetaOf = Callable[[Image], SnapshotMeta | int]

#: No store that a raft node restores in one piece is larger; a bound for sources without an end.
SNAPSHOT_SIZE_MAX = 32 * 2**40

#: Errors that a disk gives and a peer does not; they get the snapshot's path.
_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}


class SnapshotDir(Claims):
    """A directory of snapshots on a local file system. Every method may be called from any thread.

    Several processes may use one directory: names are never replaced, and leftovers of savers that
    still live are not touched. Opening makes the directory (mode 0700) where it is missing and
    removes what dead savers left; where an fsync of it failed earlier, it reads back all there is. An
    object must not be used after a fork.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        chunk_size: int = _fastpipe.CHUNK_SIZE_DEFAULT,
        size_max: int = SNAPSHOT_SIZE_MAX,
        reserve: int | None = None,
        throttle: Throttle | None = None,
        nameless: bool = True,
        direct: bool = True,
        statvfs: Callable[[int], os.statvfs_result] = os.statvfs,
        wall_clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Open `path`. `chunk_size` and `size_max` in bytes: the unit of digests, and the largest save.

        `reserve` is how many bytes of the disk no save takes; None: `room.RESERVE_SIZE`, or less on a
        small disk. `statvfs` asks the disk behind a descriptor. `throttle` says how fast all that is saved
        here may come, also what is received and fetched; None: as fast as it does. `wall_clock` tells how
        old a file is, in seconds since the epoch, and `monotonic` how long one was held.

        `nameless=False` and `direct=False` do without O_TMPFILE and without direct I/O, for file
        systems that claim either and fail at it; both are left by themselves where refused.
        """
        super().__init__(path, wall_clock, monotonic)
        self.chunk_size = chunk_size
        self.size_max = size_max
        self._nameless = nameless
        self._direct = direct
        self._throttle = throttle
        self._room = RoomAccount(lambda: statvfs(self._fd), reserve)
        try:
            self.remove_orphans()
        except BaseException:
            self.close()
            raise

    def save_from(
        self,
        source: object,
        meta_or_index: SnapshotMeta | int | _MetaOf,
        *,
        size: int | None = None,
        size_max: int | None = None,
        chunk_size: int | None = None,
        expected: Manifest | None = None,
        progress: Progress | None = None,
        idle_timeout_s: float | None = None,
        rate_min: float = 0,
        urgent: bool = True,
    ) -> SavedSnapshot:
        """Save all of `source` for good; only when this returned may raft record the snapshot.

        `source` is a descriptor, a socket, a binary reader, a bytes-like object, a PipeReader, an
        Image or a SnapshotStream; it is read to its end, or for `size` bytes from a socket. `size`
        in bytes, where it is known, is checked and its room is taken first; where not, the save may
        grow until it would eat into the `reserve` or what is promised to others. `size_max` and
        `chunk_size`, in bytes, stand in for the directory's own. `expected` is the manifest that the
        bytes must match. `progress` counts the bytes and can cancel. `idle_timeout_s` is how long a
        source may be silent, and `rate_min` the bytes/s that it must give while we wait for it,
        measured over that time; neither can hold for Python readers, which have the thread meanwhile.
        `urgent=False` yields to what is urgent and shares the directory's throttle.

        Where only the bytes tell their index, `meta_or_index` is a function that reads it in an Image
        of them: called once, when all are written and before they have a name. What it raises ends
        the save, and SnapshotExists and SnapshotBusy come after it.

        Raises SnapshotExists before a byte is read (the stored one is kept), SnapshotBusy when this
        index is being saved by this process, SnapshotTruncated, SnapshotTooLarge and SnapshotCorrupt
        for a bad source, NoRoom, OSError as the system gives it, and SnapshotNotDurable when only the
        last fsync failed. After any of them but the last nothing is left of the attempt.
        """
        meta = meta_or_index if callable(meta_or_index) else to_meta(meta_or_index)
        if size is None:
            size = expected.size if expected else known_size(source)
        if size_max is None:
            size_max = self.size_max
        with self._begun(meta) as file, self._room.held(file, size, size_max):
            return self._fill(
                file,
                source,
                meta,
                size=size,
                size_max=size_max,
                chunk_size=chunk_size,
                expected=expected,
                progress=progress,
                idle_timeout_s=idle_timeout_s,
                rate_min=rate_min,
                urgent=urgent,
            )

    @contextlib.contextmanager
    def _begun(self, meta: SnapshotMeta | _MetaOf) -> Iterator[_fastpipe.SaveFile]:
        """Yield a new file; its index is claimed meanwhile where it is known."""
        if callable(meta):
            self._check_usable()
            self.check_sound()
            with self._naming_disk_errors(None), self._new_file(None) as file:
                yield file
            return
        with self._claimed(meta.index):
            self._refuse_existing(meta.index)
            with self._naming_disk_errors(meta.index), self._new_file(meta.index) as file:
                yield file

    @contextlib.contextmanager
    def receive(
        self, meta: SnapshotMeta, *, size: int | None, chunk_size: int, data_size: int = 0
    ) -> Iterator[Reception]:
        """Begin a save from a line that may break, or go on with one: `kept` tells from where.

        The arguments say what is known before the bytes: `meta` without its data, which will have
        `data_size` bytes, and `size`, None where only the end will tell. After a break, what was
        verified stays in hidden files for a while (`reception.PARTIAL_AGE_MAX_S`, and not more than
        `PARTIALS_MAX` of them), also when this process is killed; a full or failing disk leaves
        nothing. Raises SnapshotExists, SnapshotBusy and NoRoom as `save_from` does.
        """
        with self._claimed(meta.index):
            self._refuse_existing(meta.index)
            # Up to one chunk there is nothing to go on with, and a nameless file leaves nothing.
            note = note_of(meta, size, chunk_size, data_size) if size is None or size > chunk_size else None
            with self._naming_disk_errors(meta.index):
                self._sweep_partials(meta.index)
            with self._naming_disk_errors(meta.index), self._new_file(meta.index, named=bool(note)) as file:
                reception = Reception(self._fd, file, meta.index, size, chunk_size, note, self._fill)
                try:
                    reception.begin()
                    with self._naming_disk_errors(meta.index), self._room.held(file, size, self.size_max):
                        yield reception
                except BaseException as error:
                    reception.settle(error)
                    raise
                reception.settle(None)

    def _fill(
        self,
        file: _fastpipe.SaveFile,
        source: object,
        meta: SnapshotMeta | _MetaOf,
        *,
        size: int | None = None,
        size_max: int | None = None,
        chunk_size: int | None = None,
        expected: Manifest | None = None,
        **options: Any,
    ) -> SavedSnapshot:
        unit = chunk_size or (expected.chunk_size if expected else self.chunk_size)
        size_max = min(self.size_max if size_max is None else size_max, MANIFEST_CHUNKS_MAX * unit)
        with self.counts.judging(), self._room.filling(file, size, size_max) as (size_max, grow):
            copied = file.fill(
                open_source(source),
                size=size,
                size_max=size_max,
                grow=grow,
                chunk_size=unit,
                direct=self._direct,
                expected=expected.chunk_digests if expected else None,
                throttle=self._throttle,
                **options,
            )
        if not callable(meta):
            return self._publish(file, Manifest(meta, copied.size, copied.digest, unit, copied.chunk_digests))
        with _fastpipe.Image(file.fd, copied.size, close_fd=False) as image:
            meta = to_meta(meta(image))
        with self._claimed(meta.index):
            self._refuse_existing(meta.index)
            return self._publish(file, Manifest(meta, copied.size, copied.digest, unit, copied.chunk_digests))

    def _new_file(self, index: int | None, *, named: bool = False) -> _fastpipe.SaveFile:
        if os.fstat(self._fd).st_nlink == 0:  # What the system says later differs, and none is clear.
            raise FileNotFoundError(errno.ENOENT, "the directory was removed", str(self.path))
        try:
            if named and index is not None:
                return open_partial(self._fd, index)
            return _fastpipe.SaveFile(self._fd, disk.temp_name(index or 0).encode(), nameless=self._nameless)
        except OSError as error:
            error.filename = self._place(index)
            raise

    def _publish(self, file: _fastpipe.SaveFile, manifest: Manifest) -> SavedSnapshot:
        self.check_sound()  # Another save may have failed while these bytes came.
        index = manifest.meta.index
        stage, code, sync_s = file.publish(
            disk.snapshot_name(index).encode(),
            manifest=manifest.to_bytes(),
            manifest_name=disk.manifest_name(index).encode(),
            manifest_temp_name=disk.temp_name(index).encode(),
            sync=self._directory_sync,
        )
        path = self._path(index)
        error = OSError(code, os.strerror(code), str(path))
        if stage == "sync_directory":
            self._leave_marker()
            raise SnapshotNotDurable(
                f"{path} is there, but fsync of its directory failed; open the directory anew"
            ) from error
        if stage == "done":
            self.counts.fsync.observe(sync_s)
            return SavedSnapshot(index, path, manifest.size, manifest, sync_s=sync_s)
        if stage == "name" and code == errno.EEXIST:
            raise SnapshotExists(f"{path} was saved by somebody else meanwhile; it was kept", path)
        raise error

    @contextlib.contextmanager
    def _naming_disk_errors(self, index: int | None) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.filename is None and error.errno in _DISK_ERRORS:
                error.filename = self._place(index)
            raise

    def _place(self, index: int | None) -> str:
        return str(self.path if index is None else self._path(index))
