"""A workload on a real file system, with every write and flush below it: how it is taken and kept.

Puts file system, loop device and recorder together; judges nothing, and draws no states.

The workload runs in a process of its own, and beside it a thread that appends to a log and fsyncs it,
as a raft node's does all the time. Without it the journal hardly ever commits in the wrong moment, and
savers that name a file too early look sound.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from snapstore.testing.power_cut import kernel, log
from snapstore.testing.power_cut.children import Child
from snapstore.testing.power_cut.errors import needed
from snapstore.testing.power_cut.filesystems import FILE_SYSTEMS, FileSystem
from snapstore.testing.power_cut.image import copy_sparse
from snapstore.testing.power_cut.recorder import recording

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import TypeAlias

#: A workload is seconds long; one that takes so much longer hangs.
WORKLOAD_S_MAX = 300.0

#: The file beside the workload's own that is written and fsynced all the time.
BESIDE_NAME = "beside.log"

#: An entry of a log without its data.
_ENTRY_SIZE = 100


class Marker:
    """How a workload says what it promises. Any thread of the workload's process may call it."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def begin(self, index: int) -> None:
        """Say that the save of `index` begins: from now on it may be there."""
        self._say(log.Mark("begin", index))

    def ok(self, index: int) -> None:
        """Say that it returned: from now on it must be there."""
        self._say(log.Mark("ok", index))

    def gone(self, index: int) -> None:
        """Say that it may be removed: from now on it need not be there. Before the removal."""
        self._say(log.Mark("gone", index))

    def _say(self, mark: log.Mark) -> None:
        os.write(self._fd, mark.to_bytes())


#: Works below a path, the root of a new file system, and marks what it promises.
Workload: TypeAlias = "Callable[[Path, Marker], None]"


@dataclass(frozen=True, slots=True)
class Recording:
    """A directory with `origin`, the disk as it was, and `log`, what came then."""

    file_system: FileSystem
    path: Path

    @property
    def origin(self) -> Path:
        """Return the path of the image before the first record."""
        return self.path / "origin"

    def records(self) -> list[log.Record]:
        """Return the records, in order."""
        return log.from_bytes((self.path / "log").read_bytes())

    def keep(self, path: Path) -> None:
        """Copy it to an empty directory, from which `kept` finds it again."""
        with self.origin.open("rb") as source, (path / "origin").open("xb") as target:
            copy_sparse(source.fileno(), target.fileno(), self.file_system.size)
        shutil.copyfile(self.path / "log", path / "log")
        (path / "file-system").write_text(self.file_system.name, encoding="ascii")

    @classmethod
    def kept(cls, path: Path) -> Recording:
        """Return what `keep` left at `path`."""
        return cls(FILE_SYSTEMS[(path / "file-system").read_text(encoding="ascii")], path)

    @classmethod
    def take(cls, file_system: FileSystem, path: Path, workload: Workload, *, log_beside: bool) -> Recording:
        """Run `workload` on a new file system, all within the empty directory `path`."""
        taken = cls(file_system, path)
        fuse, mounted = path / "fuse", path / "mounted"
        fuse.mkdir()
        mounted.mkdir()
        file_system.format(path / "formatted")
        with (path / "formatted").open("rb") as source:
            for copy in (taken.origin, path / "disk"):
                with copy.open("xb") as target:
                    copy_sparse(source.fileno(), target.fileno(), file_system.size)
        (path / "formatted").unlink()
        with contextlib.ExitStack() as layers:
            layers.enter_context(recording(fuse, path / "disk", path / "log"))
            with needed("a loop device"):
                device = layers.enter_context(kernel.attached(fuse / "disk"))
            with needed(file_system.name):
                layers.enter_context(
                    kernel.mounted(device.path, mounted, file_system.name, file_system.mount_options)
                )
            child = layers.enter_context(
                Child(lambda: _work(workload, mounted, fuse / "mark", log_beside=log_beside))
            )
            child.result(WORKLOAD_S_MAX)
        (path / "disk").unlink()
        return taken


def _work(workload: Workload, mounted: Path, mark_path: Path, *, log_beside: bool) -> None:
    fd = os.open(mark_path, os.O_WRONLY | os.O_CLOEXEC)
    ended = threading.Event()
    beside = threading.Thread(target=_fsync_beside, args=(mounted / BESIDE_NAME, ended))
    if log_beside:
        beside.start()
    try:
        workload(mounted, Marker(fd))
    finally:
        ended.set()
        if log_beside:
            beside.join()
        os.close(fd)


def _fsync_beside(path: Path, ended: threading.Event) -> None:
    with path.open("ab", buffering=0) as file:
        while not ended.is_set():
            file.write(bytes(_ENTRY_SIZE))
            os.fsync(file.fileno())
