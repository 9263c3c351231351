"""What a directory has: a snapshot as it is listed, and one that is open and leased.

How a file and its manifest are read together, whether they agree, and how a purge is kept off. What
is saved, set aside or removed, and when, is decided elsewhere.

Broken is what will be no better tomorrow. A disk that cannot be read now is an OSError, and speaks
against no snapshot.
"""

from __future__ import annotations

import errno
import fcntl
import os
import warnings
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from snapstore import _fastpipe, disk
from snapstore.errors import SnapshotCorrupt, SnapshotNotFound, SnapshotTruncated
from snapstore.manifest import MANIFEST_SIZE_MAX, Manifest, digest_text
from snapstore.meta import SnapshotMeta

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from typing_extensions import Self

    from snapstore._fastpipe import Progress
    from snapstore.leases import FileLease
    from snapstore.protocols import Writer


class FileIdentity(NamedTuple):
    """Which file it is, as its status tells. The same again: nobody has written to it since."""

    inode: int
    size: int
    mtime_ns: int


@dataclass(frozen=True, slots=True)
class SavedSnapshot:
    """A snapshot in a directory. `size` in bytes; `sync_s` is what its fsyncs took, in seconds.

    `manifest` is None, and `problem` says why, where the file has none that can be read. `identity`
    is that of the file that was looked at; None for what `save_from` returns.
    """

    index: int
    path: Path
    size: int
    manifest: Manifest | None
    problem: str | None = None
    sync_s: float = 0.0
    identity: FileIdentity | None = field(default=None, compare=False, repr=False)

    @property
    def meta(self) -> SnapshotMeta:
        """The applied entry it stands at; a bare index where the manifest is missing."""
        return self.manifest.meta if self.manifest else SnapshotMeta(self.index)

    @property
    def digest(self) -> str | None:
        """`crc32c:` and 8 hexadecimal digits, of the whole; None without a manifest."""
        return digest_text(self.manifest.digest) if self.manifest else None

    def to_json(self) -> dict[str, Any]:
        """Return what is told of it to machines; `size` in bytes."""
        return {
            "index": self.index,
            "term": self.meta.term,
            "size": self.size,
            "digest": self.digest,
            "problem": self.problem,
        }


def find_saved(directory: int, path: Path, index: int) -> SavedSnapshot | None:
    """Return what the directory has under `index`, at `path`, unverified; None where it has nothing."""
    status = disk.regular_status(directory, disk.snapshot_name(index))
    return None if status is None else _describe(directory, path, index, status)


def open_stored(
    directory: int,
    path: Path,
    index: int,
    *,
    from_disk: bool = False,
    lend: Callable[[int, SavedSnapshot], FileLease] | None = None,
) -> StoredSnapshot:
    """Open the snapshot of `index`, at `path`, locked; SnapshotNotFound where there is none.

    `from_disk` is for those who verify: what they read then passes the page cache by, and a manifest
    that cannot be read now is an OSError, and no problem of the snapshot. `lend` makes the lease
    of who is to hold it, from its descriptor; without, it is for a moment, and nobody's but ours.
    """
    missing = SnapshotNotFound(f"no snapshot of index {index} in {path.parent}")
    try:
        fd = disk.open_regular(directory, disk.snapshot_name(index))
    except FileNotFoundError:
        raise missing from None
    except OSError as error:
        error.filename = str(path)
        raise
    with ExitStack() as undo:
        undo.callback(os.close, fd)
        if not _lock(fd):
            raise missing
        if from_disk:
            disk.drop_cache(fd)
        saved = _describe(directory, path, index, os.fstat(fd), from_disk=from_disk)
        lease = None if lend is None else lend(fd, saved)
        if lease is not None:
            undo.callback(lease.end)
        stored = StoredSnapshot(saved, fd, lease)
        undo.pop_all()
    return stored


def _lock(fd: int) -> bool:
    """Keep every purge off; False where one was quicker."""
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return os.fstat(fd).st_nlink > 0


def _describe(
    directory: int, path: Path, index: int, status: os.stat_result, *, from_disk: bool = False
) -> SavedSnapshot:
    """What is known of the file with this `status` by the manifest beside it."""
    identity = FileIdentity(status.st_ino, status.st_size, status.st_mtime_ns)
    manifest: Manifest | None = None
    problem: str | None = None
    try:
        manifest = _read_manifest(directory, index, from_disk)
        if manifest.size != status.st_size:
            problem = f"it has {status.st_size} bytes, its manifest {manifest.size}"
    except SnapshotCorrupt as error:
        problem = str(error)
    except OSError as error:
        if from_disk:
            raise
        problem = str(error)
    return SavedSnapshot(index, path, status.st_size, manifest, problem, identity=identity)


def _read_manifest(directory: int, index: int, from_disk: bool) -> Manifest:
    """Raises SnapshotCorrupt for what is no manifest of this index, OSError for what cannot be read."""
    name = disk.manifest_name(index)
    try:
        manifest = Manifest.from_bytes(
            disk.read_small(directory, name, MANIFEST_SIZE_MAX, from_disk=from_disk)
        )
    except FileNotFoundError:
        raise SnapshotCorrupt("it has no manifest, so nothing tells whether it is whole") from None
    except OSError as error:
        if error.errno == errno.EFBIG or disk.stranger_named(directory, name):
            raise SnapshotCorrupt(str(error)) from error
        raise
    if manifest.meta.index != index:
        raise SnapshotCorrupt(f"its manifest is that of index {manifest.meta.index}")
    return manifest


class StoredSnapshot:
    """A snapshot opened for reading: leased, so that no purge takes it away, until `close`.

    It is an `ImagedSnapshot`: `SnapshotStream(stored.meta, stored)` sends it on to another node. One that
    is dropped unclosed emits a ResourceWarning, which says who took it and where, and is closed.
    """

    def __init__(self, saved: SavedSnapshot, fd: int, lease: FileLease | None = None) -> None:
        self.saved = saved
        self.meta = saved.meta
        self.path = saved.path
        #: Who holds it, until when; once that is over, the bytes stay readable here, and the name may go.
        self.lease = lease
        self._pid = os.getpid()
        self._image = _fastpipe.Image(fd, saved.size)

    @property
    def size(self) -> int:
        """Length in bytes."""
        return self._image.size

    def image(self) -> _fastpipe.Image:
        """Return its bytes, readable at random; closed with this object."""
        return self._image

    def write_to(self, writer: Writer) -> int:
        """Write all of it to `writer`; how many bytes."""
        return self._image.write_to(writer)

    def verify(self, progress: Progress | None = None) -> None:
        """Read all of it and compare it with its manifest.

        Raises SnapshotCorrupt or SnapshotTruncated, which name the first bad chunk.
        """
        path, manifest = self.path, self.saved.manifest
        if manifest is None:
            raise SnapshotCorrupt(f"{path}: {self.saved.problem}")
        if self.size != manifest.size:
            kind = SnapshotTruncated if self.size < manifest.size else SnapshotCorrupt
            chunk = min(self.size, manifest.size) // manifest.chunk_size
            raise kind(f"{path} has {self.size} bytes, its manifest {manifest.size}", chunk)
        try:
            _fastpipe.digest(
                self._image,
                size=manifest.size,
                chunk_size=manifest.chunk_size,
                expected=manifest.chunk_digests,
                progress=progress,
            )
        except SnapshotCorrupt as error:
            raise type(error)(f"{path}: {error}", error.chunk) from error
        except OSError as error:
            error.filename = str(path)
            raise

    def close(self) -> None:
        """Give the lease back. May come twice, from any thread."""
        self._image.close()
        if self.lease is not None:
            self.lease.end()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __del__(self) -> None:
        if not hasattr(self, "_image"):  # The constructor failed.
            return
        try:
            if not self._image.closed and self._pid == os.getpid():
                holder = "" if self.lease is None else f", held by {self.lease.holder}"
                warnings.warn(f"unclosed {self!r}{holder}", ResourceWarning, stacklevel=2, source=self)
        finally:
            self.close()

    def __repr__(self) -> str:
        state = "closed" if self._image.closed else "leased"
        return f"<StoredSnapshot {self.path.name} {self.size} bytes {state}>"
