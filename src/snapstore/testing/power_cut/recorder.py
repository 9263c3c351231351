"""The disk that remembers: a FUSE file system of two files, below a loop device.

Takes what the kernel asks for and writes it down; knows no file systems above it, and judges nothing.

    /disk    the disk. A loop device on it turns a flush into an fsync of this file, and a write with
             FUA into a write and a flush, so that the log has what a real disk is told
    /mark    what the workload says of itself, in the same log, in order with the writes

One thread serves it, so that the log has one order. The files `disk` and `log` are beside it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import stat
from typing import TYPE_CHECKING, Any

from snapstore.testing.power_cut import kernel, log
from snapstore.testing.power_cut.children import Child
from snapstore.testing.power_cut.errors import PowerCutUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

#: What a file system without traffic takes to come up and to go.
SERVER_S_MAX = 30.0


class Recorder:
    """The operations that mfusepy calls. `disk_fd` and `log_fd` are borrowed; `on_ready` comes first."""

    use_ns = True

    def __init__(self, disk_fd: int, log_fd: int, on_ready: Callable[[], None]) -> None:
        self._disk = disk_fd
        self._log = log_fd
        self._on_ready = on_ready

    def init(self, path: str) -> None:
        """It is mounted; requests wait until this returns."""
        self._on_ready()

    def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
        """Return what stat tells of the two files and their directory."""
        if path == "/":
            return {"st_mode": stat.S_IFDIR | 0o700, "st_nlink": 2}
        size = os.fstat(self._disk).st_size if path == "/disk" else 0
        if path not in ("/disk", "/mark"):
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        return {"st_mode": stat.S_IFREG | 0o600, "st_nlink": 1, "st_size": size}

    def open(self, path: str, flags: int) -> int:
        """Allow it; paths tell the two apart."""
        return 0

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        """Read the disk."""
        return os.pread(self._disk, size, offset)

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        """Write to the disk, or make a mark; both are logged."""
        if path == "/mark":
            self._append(log.Mark.from_bytes(data))
        else:
            os.pwrite(self._disk, data, offset)
            self._append(log.Write(offset, data))
        return len(data)

    def fsync(self, path: str, datasync: int, fh: int) -> int:
        """Log a flush. It is kept in memory, as all of this is."""
        if path == "/disk":
            self._append(log.Flush())
        return 0

    def _append(self, record: log.Record) -> None:
        os.write(self._log, log.to_bytes(record))


@contextlib.contextmanager
def recording(mountpoint: Path, disk_path: Path, log_path: Path) -> Iterator[None]:
    """Serve `disk` and `mark` under `mountpoint` by another process; the log is whole at the end."""
    ready, ready_to_write = os.pipe()
    try:
        with Child(lambda: _serve(mountpoint, disk_path, log_path, ready_to_write)) as server:
            os.close(ready_to_write)
            if not os.read(ready, 1):
                server.result(SERVER_S_MAX)  # Raises what went wrong.
            try:
                yield
            finally:
                kernel.unmount(mountpoint)
            server.result(SERVER_S_MAX)
    finally:
        os.close(ready)


def _serve(mountpoint: Path, disk_path: Path, log_path: Path, ready: int) -> None:
    # Where both are installed mfusepy would take the older one.
    os.environ.setdefault("FUSE_LIBRARY_NAME", "fuse3")
    # libfuse ends in order at this signal, if nobody else waits for it.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        import mfusepy
    except (ImportError, OSError) as error:
        raise PowerCutUnavailable(f"no FUSE from Python, see the extra `powercut`: {error}") from error

    def on_ready() -> None:
        # A server that is killed must not be the last to know the mounts that stand on it: the kernel
        # takes mounts away before it closes /dev/fuse, and would wait for an answer of the dead.
        kernel.enter_own_namespace()
        kernel.forget_mount(mountpoint)
        os.write(ready, b".")

    with disk_path.open("r+b", buffering=0) as disk, log_path.open("xb", buffering=0) as log_file:
        operations = Recorder(disk.fileno(), log_file.fileno(), on_ready)
        try:
            mfusepy.FUSE(operations, str(mountpoint), foreground=True, nothreads=True, fsname="power-cut")
        except RuntimeError as error:
            raise PowerCutUnavailable(f"FUSE refuses to mount: {error}") from error
