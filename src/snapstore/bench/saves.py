"""Ours: durable saves into a directory, from memory, from a file, and from a pipe of this process."""

from __future__ import annotations

import threading
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

from snapstore._fastpipe import pipe
from snapstore.bench.cache import evict
from snapstore.bench.ways import Way

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from snapstore._fastpipe import PipeReader, PipeWriter
    from snapstore.bench.stage import Stage
    from snapstore.directory import SnapshotDir

T = TypeVar("T")

#: Of the snapshot that is saved, verified and removed in each round.
INDEX = 1


def save_ways(stage: Stage, directory: SnapshotDir) -> Sequence[Way]:
    """Return `save_from` memory, a file that is in the page cache, one that is not, and a pipe."""
    content = stage.content

    def from_memory() -> None:
        directory.save_from(content.memory, INDEX)

    def from_file() -> None:
        with open(stage.source, "rb") as file:
            directory.save_from(file, INDEX)

    def from_pipe() -> None:
        through_pipe(
            lambda writer: writer.write(content.memory), lambda reader: directory.save_from(reader, INDEX)
        )

    def check() -> None:
        content.check(directory.get_snap_file_path(INDEX))
        forget(directory, INDEX)

    return [
        Way("save_from memory", from_memory, check),
        Way("save_from file", from_file, check, stage.warm),
        Way("save_from cold file", from_file, check, lambda: evict(stage.source)),
        Way("save_from pipe", from_pipe, check),
    ]


def through_pipe(write: Callable[[PipeWriter], object], read: Callable[[PipeReader], T]) -> T:
    """Return what `read` makes of what `write` puts into a pipe, on a thread of its own, which ends with it.

    Raises what either does.
    """
    reader, writer = pipe()
    feeder = threading.Thread(target=_feed, args=(writer, write), name="bench-feeder")
    feeder.start()
    try:
        # Closed, whatever comes: the feeder must not wait for one who has left.
        with reader:
            return read(reader)
    finally:
        feeder.join()


def forget(directory: SnapshotDir, index: int) -> None:
    """Remove the snapshot `index` with all that belongs to it, so that all rounds start alike."""
    directory.get_snap_file_path(index).unlink()
    directory.remove_orphans()


def _feed(writer: PipeWriter, write: Callable[[PipeWriter], object]) -> None:
    # What goes wrong at one end of a pipe is raised at the other one, too: who reads tells it.
    with suppress(Exception), writer:
        write(writer)
