"""What is moved: bytes that no file system can make smaller, and of which each piece can be told.

Verified without the code that is measured: piece by piece, compared with what it has to be.
"""

from __future__ import annotations

import mmap
import os
import random
import struct
from collections.abc import Iterator

#: Each piece begins with its number; no file system compresses over as many bytes.
PIECE_SIZE = 1024 * 1024

_NUMBER = struct.Struct("<Q")


class Content:
    """`size` bytes. `memory` has them all: pages of this process's own, as a store's in memory."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._noise = random.Random(2015).randbytes(PIECE_SIZE)
        # Private, as a process's own memory is: what is shared is a file in memory to the kernel.
        pages = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        for piece in self._pieces():
            pages.write(piece)
        # A view: what has a `read` would be taken for a file, as a mmap is.
        self.memory = memoryview(pages).toreadonly()

    def _pieces(self) -> Iterator[bytes]:
        for begin in range(0, self.size, PIECE_SIZE):
            piece = _NUMBER.pack(begin) + self._noise[_NUMBER.size :]
            yield piece[: self.size - begin]

    def write(self, path: str | os.PathLike[str]) -> None:
        """Make a file of them, and wait until it is on the disk."""
        with open(path, "wb") as file:
            file.writelines(self._pieces())
            file.flush()
            os.fsync(file.fileno())

    def check(self, path: str | os.PathLike[str]) -> None:
        """Raise ValueError where the file at `path` is not these bytes."""
        with open(path, "rb", buffering=0) as file:
            for number, piece in enumerate(self._pieces()):
                if file.read(len(piece)) != piece:
                    raise ValueError(f"{os.fspath(path)}: piece {number} is not what was written")
            if file.read(1):
                raise ValueError(f"{os.fspath(path)} is longer than {self.size} bytes")
