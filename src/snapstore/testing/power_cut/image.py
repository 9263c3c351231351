"""The disk's bytes as files: what was flushed so far, and the image of one crash state.

Files and writes; no devices, no mounts. Images are sparse, and live where memory is, so that one is
made in milliseconds.

Two images are the same if their fingerprints are: the exclusive or of one digest for each block that
is not as it was at the beginning. So a state that was seen already costs no copy and no mount.
"""

from __future__ import annotations

import errno
import hashlib
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from snapstore.testing.power_cut.log import Write

#: The unit of fingerprints and of copies: a page, which file systems write as a whole.
BLOCK_SIZE = 4096

_COPY_SIZE = 1024 * 1024
_ZEROS = bytes(_COPY_SIZE)


def copy_sparse(source_fd: int, target_fd: int, size: int) -> None:
    """Make the target the same as the source, `size` bytes; holes and zeros become holes."""
    os.ftruncate(target_fd, 0)
    os.ftruncate(target_fd, size)
    for start, end in _extents(source_fd, size):
        for at in range(start, end, _COPY_SIZE):
            data = os.pread(source_fd, min(_COPY_SIZE, end - at), at)
            if not _ZEROS.startswith(data):
                os.pwrite(target_fd, data, at)


def _extents(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield where a sparse file has data."""
    end = 0
    while end < size:
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:  # No data behind this point.
                raise
            return
        end = os.lseek(fd, start, os.SEEK_HOLE)
        yield start, end


class CrashImages:
    """Makes the images of crash states, one after the other, in one file: `target_fd`.

    `origin_fd` is the disk before the first record; `durable_fd` is a file of ours. The descriptors
    are borrowed. One thread at a time.
    """

    def __init__(self, origin_fd: int, durable_fd: int, target_fd: int) -> None:
        self._origin = origin_fd
        self._durable = durable_fd
        self._target = target_fd
        self.size = os.fstat(origin_fd).st_size
        self.rewind()

    def rewind(self) -> None:
        """Go back to the disk before the first record."""
        copy_sparse(self._origin, self._durable, self.size)
        self._digests: dict[int, int] = {}
        self._fingerprint = 0

    def flush(self, writes: Iterable[Write]) -> None:
        """Let these writes be there for good, in all images from now on."""
        blocks = self._overlaid(writes)
        self._fingerprint = self._fingerprint_with(blocks)
        for block, data in blocks.items():
            self._digests[block] = _digest(block, data)
            os.pwrite(self._durable, data, block * BLOCK_SIZE)

    def make(self, writes: Iterable[Write], seen: set[tuple[int, object]], besides: object) -> bool:
        """Write the image with these writes to the target; False, and nothing, if it was `seen` already.

        `besides` is what else tells two states apart.
        """
        blocks = self._overlaid(writes)
        key = (self._fingerprint_with(blocks), besides)
        if key in seen:
            return False
        seen.add(key)
        copy_sparse(self._durable, self._target, self.size)
        for block, data in blocks.items():
            os.pwrite(self._target, data, block * BLOCK_SIZE)
        return True

    def _overlaid(self, writes: Iterable[Write]) -> dict[int, bytearray]:
        """The blocks that the writes touch, as they are afterwards."""
        blocks: dict[int, bytearray] = {}
        for write in writes:
            at, end = write.offset, write.offset + len(write.data)
            while at < end:
                block, within = divmod(at, BLOCK_SIZE)
                if block not in blocks:
                    blocks[block] = bytearray(os.pread(self._durable, BLOCK_SIZE, block * BLOCK_SIZE))
                count = min(end - at, BLOCK_SIZE - within)
                from_ = at - write.offset
                blocks[block][within : within + count] = write.data[from_ : from_ + count]
                at += count
        return blocks

    def _fingerprint_with(self, blocks: dict[int, bytearray]) -> int:
        found = self._fingerprint
        for block, data in blocks.items():
            if block not in self._digests:
                self._digests[block] = _digest(block, os.pread(self._durable, BLOCK_SIZE, block * BLOCK_SIZE))
            found ^= self._digests[block] ^ _digest(block, data)
        return found


def _digest(block: int, data: bytes | bytearray) -> int:
    name = block.to_bytes(8, "little")
    return int.from_bytes(hashlib.blake2b(data, digest_size=16, salt=name).digest(), "little")
