"""Durable copies as people write them in Python: the baselines that a user has at hand."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, BinaryIO

from snapstore.bench.cache import evict
from snapstore.bench.ways import Way

if TYPE_CHECKING:
    from collections.abc import Iterator

    from snapstore.bench.stage import Stage

#: shutil's own size, a usual one, and one of those that ought to be better because they are large.
BUFFER_SIZES = (64 * 1024, 1024 * 1024, 8 * 1024 * 1024)

#: Left out beside the busy thread: it waits for the GIL at each buffer.
IDLE_BUFFER_SIZE = 64 * 1024

#: What a report says of it.
LEFT_OUT_BUSY = (
    "copyfileobj 64 KiB beside the busy thread: it takes 150 s for each GiB, and is never the best"
)

#: Of those, what is most often the best.
BUFFER_SIZE = 1024 * 1024

#: What programs with asyncio write at once, by the example of its streams.
STREAM_SIZE = 64 * 1024


def copyfileobj_ways(stage: Stage, neighbour: str = "idle") -> Sequence[Way]:
    """Return `shutil.copyfileobj` and an fsync of a file in the page cache, once for each size of buffer.

    Beside a `neighbour` that is busy, the one of IDLE_BUFFER_SIZE is left out.
    """
    return [
        Way(f"copyfileobj {size // 1024} KiB", partial(_copy, stage, size), stage.check_target, stage.warm)
        for size in BUFFER_SIZES
        if neighbour == "idle" or size != IDLE_BUFFER_SIZE
    ]


def cold_copyfileobj_way(stage: Stage) -> Way:
    """Return the same of a file that has to come from the disk."""
    cool = partial(evict, stage.source)
    return Way("copyfileobj cold file", partial(_copy, stage, BUFFER_SIZE), stage.check_target, cool)


def _copy(stage: Stage, buffer_size: int) -> None:
    with open(stage.source, "rb") as source, open(stage.target, "wb") as target:
        copy_durably(source, target, buffer_size)


def copy_durably(source: BinaryIO, target: BinaryIO, buffer_size: int) -> None:
    """Copy all of `source`, and wait until it is on the disk."""
    shutil.copyfileobj(source, target, buffer_size)
    target.flush()
    os.fsync(target.fileno())


def sendfile_way(stage: Stage) -> Way:
    """Return `socket.sendfile` of a file here, `shutil.copyfileobj` and an fsync in the receiver."""

    def run() -> None:
        with _received(stage, "copy", buffer_size=BUFFER_SIZE), _connected(stage) as connection:
            with open(stage.source, "rb") as file:
                connection.sendfile(file)
            _await_saved(connection)

    return _walk("sendfile, copyfileobj", stage, run)


def asyncio_way(stage: Stage) -> Way:
    """Return asyncio's streams on both sides, and threads for what waits for the disk."""

    def run() -> None:
        with _received(stage, "stream"):
            asyncio.run(_stream(stage))

    return _walk("asyncio streams", stage, run)


def _walk(name: str, stage: Stage, run: Callable[[], None]) -> Way:
    return Way(name, run, stage.check_target, stage.warm, processes=(stage.receiver.pid,))


@contextmanager
def _received(stage: Stage, task: str, **options: int) -> Iterator[None]:
    """Have the receiver take one connection, and wait until it is done with it."""
    stage.receiver.tell(task, path=str(stage.target), **options)
    yield
    stage.receiver.answer()


@contextmanager
def _connected(stage: Stage) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", stage.port)) as connection:
        yield connection


def _await_saved(connection: socket.socket) -> None:
    connection.shutdown(socket.SHUT_WR)
    if not connection.recv(1):
        raise ConnectionError("the receiver left before it had all")


async def _stream(stage: Stage) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", stage.port)
    with open(stage.source, "rb") as file:
        while piece := await asyncio.to_thread(file.read, STREAM_SIZE):
            writer.write(piece)
            await writer.drain()
    writer.write_eof()
    if not await reader.read(1):
        raise ConnectionError("the receiver left before it had all")
    writer.close()
    await writer.wait_closed()
