"""Peers and files that have certain bytes: what a target hands to the parser that it tests."""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path


class Pieces:
    """A socket's twin for heads: gives `data` in pieces of `sizes` bytes, in turn, then the end."""

    def __init__(self, data: bytes, sizes: bytes) -> None:
        self._data = data
        self._sizes = sizes or b"\xff"
        self._turn = 0

    def settimeout(self, timeout_s: float) -> None:
        """Nothing here takes time."""

    def recv(self, size: int) -> bytes:
        """Return the next piece."""
        count = min(size, 1 + self._sizes[self._turn % len(self._sizes)])
        self._turn += 1
        piece, self._data = self._data[:count], self._data[count:]
        return piece

    @property
    def left(self) -> bytes:
        """What nobody asked for."""
        return self._data


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
