"""Peers and files that have certain bytes: what a target hands to the parser that it tests."""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Self


class Pieces:
    """A peer that says `data` in pieces of `sizes` bytes, in turn, and then leaves; for heads.

    Each time somebody asks for the descriptor, to receive from it, the next piece is there: so no piece is
    received together with another.
    """

    def __init__(self, data: bytes, sizes: bytes) -> None:
        self._data = data
        self._sizes = sizes or b"\xff"
        self._turn = 0
        self._near, self._far = socket.socketpair()

    def fileno(self) -> int:
        """Return the descriptor that the next piece, or the end, is received from."""
        count = 1 + self._sizes[self._turn % len(self._sizes)]
        self._turn += 1
        piece, self._data = self._data[:count], self._data[count:]
        if piece:
            self._far.sendall(piece)
        else:
            self._far.close()
        return self._near.fileno()

    @property
    def left(self) -> bytes:
        """What nobody asked for."""
        return self._data

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._near.close()
        self._far.close()


@contextlib.contextmanager
def peer_that_sent(data: bytes) -> Iterator[int]:
    """Yield the descriptor of a socket whose peer sent `data`, which it must have room for, and left."""
    near, far = socket.socketpair()
    with near:
        with far:
            far.setblocking(False)
            far.sendall(data)
        yield near.fileno()


@contextlib.contextmanager
def file_with(data: bytes) -> Iterator[int]:
    """Yield the descriptor of a file in memory; `/proc/self/fd/N` is a path of it."""
    fd = os.memfd_create("fuzz")
    try:
        os.write(fd, data)
        yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def directory() -> Iterator[Path]:
    """Yield an empty directory, in memory where there is one: a fuzzer makes thousands a second."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as path:
        yield Path(path)
