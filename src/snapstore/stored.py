"""What a directory has: a snapshot as it is listed, and one that is open and leased.

Values and a descriptor; how they come to be is directory.py's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from snapstore import _fastpipe
from snapstore.manifest import Manifest, digest_text
from snapstore.meta import SnapshotMeta
from snapstore.stream import SnapshotStream

if TYPE_CHECKING:
    from pathlib import Path

    from typing_extensions import Self

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
        with SnapshotStream(self.meta, _Borrowed(self)) as stream:
            for chunk in stream.chunks():
                writer.write(chunk)
        return self.size

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


class _Borrowed:
    """A StoredSnapshot lent to a stream: the stream's end does not end the lease."""

    def __init__(self, stored: StoredSnapshot) -> None:
        self.size, self.image, self.write_to = stored.size, stored.image, stored.write_to

    def close(self) -> None:
        pass
