"""The receiving side of what is sent over loopback: `python -m snapstore.bench.receiver`, told what to do.

`listen` opens a port, and each of the others takes one connection to its end: to discard what comes, or to
save it durably as people write it in Python. Then the sender gets one byte. `follow` is a follower of ours,
which serves until the process ends; `forget` has it remove what it saved.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

from snapstore.bench.child import serve
from snapstore.bench.python_ways import copy_durably
from snapstore.bench.saves import forget
from snapstore.directory import SnapshotDir
from snapstore.transport.http import SnapshotServer

if TYPE_CHECKING:
    from typing import BinaryIO

#: What a receiver that discards takes at once.
_DISCARD_SIZE = 1024 * 1024

#: What asyncio's own streams read at most, unless told otherwise.
_STREAM_SIZE = 64 * 1024


class Receiver:
    """One side of each transfer. Not for several threads."""

    def __init__(self) -> None:
        self._listener: socket.socket | None = None
        self._directory: SnapshotDir | None = None
        self._server: SnapshotServer | None = None

    def listen(self) -> int:
        """Open a port for the connections to come; its number."""
        self._listener = socket.create_server(("127.0.0.1", 0))
        port: int = self._listener.getsockname()[1]
        return port

    def discard(self) -> None:
        """Take one connection, and keep nothing."""
        buffer = bytearray(_DISCARD_SIZE)
        with self._accept() as connection:
            while connection.recv_into(buffer):
                pass
            connection.sendall(b"1")

    def copy(self, path: str, buffer_size: int) -> None:
        """Take one connection into a file by `shutil.copyfileobj`, and sync it."""
        with self._accept() as connection:
            with connection.makefile("rb") as source, open(path, "wb") as target:
                copy_durably(source, target, buffer_size)
            connection.sendall(b"1")

    def stream(self, path: str) -> None:
        """Take one connection into a file by asyncio's streams, written in threads, and sync it."""
        with self._accept() as connection, open(path, "wb") as target:
            asyncio.run(_stream(connection, target))

    def follow(self, path: str) -> str:
        """Become a follower that saves in the directory `path`; its URL."""
        self._directory = SnapshotDir(path)
        self._server = SnapshotServer(self._directory)
        return self._server.url

    def forget(self, index: int) -> None:
        """Remove the snapshot `index` that the follower saved."""
        if self._directory is None:
            raise ValueError("this is no follower")
        forget(self._directory, index)

    def _accept(self) -> socket.socket:
        if self._listener is None:
            raise ValueError("nothing listens here")
        return self._listener.accept()[0]


async def _stream(connection: socket.socket, target: BinaryIO) -> None:
    connection.setblocking(False)
    reader, writer = await asyncio.open_connection(sock=connection)
    while piece := await reader.read(_STREAM_SIZE):
        # As asyncio wants it: what waits for the disk waits in a thread.
        await asyncio.to_thread(target.write, piece)
    await asyncio.to_thread(_sync, target)
    writer.write(b"1")
    await writer.drain()
    writer.close()
    await writer.wait_closed()


def _sync(target: BinaryIO) -> None:
    target.flush()
    os.fsync(target.fileno())


if __name__ == "__main__":
    receiver = Receiver()
    tasks: list[Callable[..., object]] = [
        receiver.listen, receiver.discard, receiver.copy, receiver.stream, receiver.follow, receiver.forget
    ]  # fmt: skip
    serve({task.__name__: task for task in tasks})
