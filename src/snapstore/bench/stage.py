"""Where ways play: a directory with a file to read, and the two children that do the other side's work.

It gives the ways of the hardware itself, which all others are measured by: the disk alone and the wire alone.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from snapstore.bench.cache import load
from snapstore.bench.child import child
from snapstore.bench.hardware import refuses_direct
from snapstore.bench.ways import Way

if TYPE_CHECKING:
    from typing_extensions import Self

    from snapstore.bench.content import Content


class Stage:
    """`source` is a file with the content, `target` the path that copies are made at, one after the other.

    Use it as a context manager; the children end with it, and the directory is left to who made it.
    """

    def __init__(self, directory: Path, content: Content) -> None:
        """Write the source, and start the children. Raises OSError."""
        self.directory = directory
        self.content = content
        self.source = directory / "source"
        self.target = directory / "target"
        self._opened = ExitStack()
        with ExitStack() as opened:
            content.write(self.source)
            self.hardware = opened.enter_context(child("snapstore.bench.hardware"))
            self.receiver = opened.enter_context(child("snapstore.bench.receiver"))
            self.port: int = self.receiver.ask("listen")
            self._opened = opened.pop_all()

    def warm(self) -> None:
        """Have the source in the page cache."""
        load(self.source)

    def check_target(self) -> None:
        """Verify what is at `target`, and remove it."""
        self.content.check(self.target)
        os.unlink(self.target)

    def disk(self) -> Way:
        """Return the disk alone: 4 MiB after 4 MiB past the page cache, and an fsync."""
        direct = not refuses_direct(self.directory)

        def run() -> float:
            path, size = str(self.target), self.content.size
            written_s: float = self.hardware.ask("write_disk", path=path, size=size, direct=direct)
            return written_s

        def check() -> None:
            if os.stat(self.target).st_size != self.content.size:
                raise ValueError("the disk was written another size")
            os.unlink(self.target)

        name = "disk alone" if direct else "disk alone, no direct I/O here"
        return Way(name, run, check, processes=(self.hardware.pid,))

    def wire(self) -> Way:
        """Return loopback alone: the file read and sent by one process, discarded by another."""

        def run() -> float:
            self.receiver.tell("discard")
            sent_s: float = self.hardware.ask("send_file", path=str(self.source), port=self.port)
            self.receiver.answer()
            return sent_s

        pids = (self.hardware.pid, self.receiver.pid)
        return Way("wire alone", run, prepare=self.warm, processes=pids)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._opened.close()
