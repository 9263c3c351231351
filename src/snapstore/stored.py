"""What a directory has: a snapshot as it is listed, and one that is open and leased.

How a file and its manifest are read together, and whether they agree. What is saved, leased or
removed, and when, is directory.py's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from snapstore import _fastpipe, disk
from snapstore.errors import SnapshotCorrupt, SnapshotTruncated
from snapstore.manifest import MANIFEST_SIZE_MAX, Manifest, digest_text
from snapstore.meta import SnapshotMeta

if TYPE_CHECKING:
    from pathlib import Path

    from typing_extensions import Self

    from snapstore._fastpipe import Progress
    from snapstore.protocols import Writer


@dataclass(frozen=True, slots=True)
class SavedSnapshot:
    """A snapshot in a directory. `size` in bytes; `sync_s` is what its fsyncs took, in seconds.

    `manifest` is None, and `problem` says why, where the file has none that can be read.
    """

    index: int
    path: Path
    size: int
    manifest: Manifest | None
    problem: str | None = None
    sync_s: float = 0.0

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
    size = disk.regular_size(directory, disk.snapshot_name(index))
    if size is None:
        return None
    manifest: Manifest | None = None
    problem: str | None = None
    try:
        manifest = Manifest.from_bytes(
            disk.read_small(directory, disk.manifest_name(index), MANIFEST_SIZE_MAX)
        )
        if manifest.meta.index != index:
            problem, manifest = f"its manifest is that of index {manifest.meta.index}", None
        elif manifest.size != size:
            problem = f"it has {size} bytes, its manifest {manifest.size}"
    except FileNotFoundError:
        problem = "it has no manifest, so nothing tells whether it is whole"
    except (OSError, SnapshotCorrupt) as error:
        problem = str(error)
    return SavedSnapshot(index, path, size, manifest, problem)


class StoredSnapshot:
    """A snapshot opened for reading: leased, so that no purge takes it away, until `close`.

    It is an `ImagedSnapshot`: `SnapshotStream(stored.meta, stored)` sends it on to another node.
    """

    def __init__(self, saved: SavedSnapshot, fd: int) -> None:
        self.saved = saved
        self.meta = saved.meta
        self.path = saved.path
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

    def close(self) -> None:
        """Give the lease back. May come twice, from any thread."""
        self._image.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._image.closed else "leased"
        return f"<StoredSnapshot {self.path.name} {self.size} bytes {state}>"
