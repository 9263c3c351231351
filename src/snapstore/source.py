"""What a caller may hand to `save_from`, and how the C core reads it.

Descriptors, memory, pipes and images go down as they are. Any other reader is a Python object, and
is asked chunk by chunk with everything checked that a reader can get wrong.
"""

from __future__ import annotations

import io
import os
import socket
from typing import TYPE_CHECKING, Any

from snapstore import _fastpipe
from snapstore.stream import SnapshotStream

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Buffer

    from snapstore.protocols import CoreSource

#: What a reader that fills buffers is lent at a time; it fits the cache of one core.
_PIECE_SIZE = 256 * 1024

#: What the core reads by itself, and better than through the methods that they have for Python.
_CORE_KINDS = (_fastpipe.PipeReader, _fastpipe.Image, _fastpipe.Body, _fastpipe.Frames)


def open_source(source: object) -> CoreSource:
    """Return what the C core reads for `source`.

    Takes a descriptor, a socket, a bytes-like object, a binary file, a PipeReader, an Image, a
    SnapshotStream, or anything with `readinto(buffer)` or `read(size)`. Raises TypeError for others.
    """
    if isinstance(source, SnapshotStream):
        return source.source
    if isinstance(source, _CORE_KINDS):
        return source
    if isinstance(source, bool) or source is None or isinstance(source, (str, io.TextIOBase)):
        raise TypeError(
            f"cannot read a snapshot from {type(source).__name__}: "
            "give bytes, a descriptor or a binary reader"
        )
    if isinstance(source, socket.socket) and not hasattr(source, "read"):
        # A TLS socket has its own `read`: its descriptor carries what is encrypted.
        return source.fileno()
    if isinstance(source, io.FileIO):
        return source.fileno()
    if isinstance(source, io.BufferedReader) and isinstance(source.raw, io.FileIO) and source.seekable():
        # Its buffer is ahead of what was read from it: let the descriptor stand where the reader does.
        # A seek within the buffer would leave the descriptor alone; one to the end drops the buffer.
        position = source.tell()
        source.seek(0, os.SEEK_END)
        source.seek(position)
        return source.fileno()
    if hasattr(source, "readinto"):
        return _CheckedReader(_from_readinto(source))
    if hasattr(source, "read"):
        return _CheckedReader(source.read)
    return source  # type: ignore[return-value]  # The core names what it cannot read.


def known_size(source: object) -> int | None:
    """Return how many bytes `source` will give, where it tells without being read."""
    if isinstance(source, (SnapshotStream, _fastpipe.Image)):
        return source.size
    if isinstance(source, (bytes, bytearray, memoryview)):
        return memoryview(source).nbytes
    return None


class _CheckedReader:
    """A Python reader whose every answer is looked at before the core uses it."""

    def __init__(self, read: Callable[[int], Any]) -> None:
        self._read = read

    def read(self, size: int) -> Buffer:
        data = self._read(size)
        if data is None:
            raise BlockingIOError("the reader has nothing now: give one that waits for its bytes")
        try:
            view = memoryview(data)
        except TypeError:
            raise TypeError(f"the reader returned {type(data).__name__} where bytes were due") from None
        if not view.c_contiguous:
            raise TypeError("the reader returned a view with gaps; return contiguous bytes")
        if view.nbytes > size:
            raise ValueError(f"the reader returned {view.nbytes} bytes where {size} were asked for")
        return view


def _from_readinto(source: Any) -> Callable[[int], Any]:
    # The buffer is ours and not the core's: a reader may keep a view of it for as long as it likes.
    buffer = memoryview(bytearray(_PIECE_SIZE))

    def read(size: int) -> Any:
        target = buffer[: min(size, _PIECE_SIZE)]
        count = source.readinto(target)
        if count is None:
            return None
        if isinstance(count, bool) or not isinstance(count, int) or not 0 <= count <= len(target):
            raise ValueError(f"the reader's readinto returned {count!r} for {len(target)} bytes of room")
        return target[:count]

    return read
