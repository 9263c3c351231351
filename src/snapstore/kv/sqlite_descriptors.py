"""The descriptors of database files that are read beside SQLite, and why they are hardly ever closed.

Knows POSIX's locks and nothing of SQLite's API.

Plan: one table for the process, a descriptor for each file in it, and a count of who reads it now.
"""

from __future__ import annotations

import os
import stat
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(slots=True)
class _Descriptor:
    fd: int
    users: int = 0


class Descriptors:
    """One read-only descriptor for each database file, kept open as long as the file has a name.

    Closing any descriptor of a file drops every POSIX lock that the process holds on it, those of
    SQLite's connections too, silently (fcntl(2); "How To Corrupt An SQLite Database", 2.2). SQLite puts
    off its own closes for that reason; ours would have to know of all connections in the process. So
    they are never closed, unless the file was unlinked and nobody reads it: then a descriptor would
    only keep its space from being freed. Safe from any thread.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._by_file: dict[tuple[int, int], _Descriptor] = {}
        # The child of a fork has one thread, and the lock's holder may be another.
        os.register_at_fork(after_in_child=self._renew_lock)

    @contextmanager
    def hold(self, path: str) -> Iterator[int]:
        """Give the descriptor of the file at `path`; it stays open until the block is left."""
        descriptor = self._acquire(path)
        try:
            yield descriptor.fd
        finally:
            with self._lock:
                descriptor.users -= 1
            self.close_unlinked()

    def close_unlinked(self) -> None:
        """Close the descriptors of files that have no name any more and that nobody reads."""
        with self._lock:
            unlinked = [
                (file, descriptor.fd)
                for file, descriptor in self._by_file.items()
                if not descriptor.users and os.fstat(descriptor.fd).st_nlink == 0
            ]
            for file, _ in unlinked:
                del self._by_file[file]
        for _, fd in unlinked:
            os.close(fd)

    def _acquire(self, path: str) -> _Descriptor:
        # Looking and opening are one step, or two threads would open the file twice.
        with self._lock:
            status = os.stat(path)
            if not stat.S_ISREG(status.st_mode):
                raise ValueError(f"{path} is not a regular file, so it cannot be a SQLite database")
            descriptor = self._by_file.get((status.st_dev, status.st_ino))
            if descriptor is None:
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                status = os.fstat(fd)
                # If the path was replaced since by a file that is known, this second descriptor
                # stays open unused: it must not be closed either.
                descriptor = self._by_file.setdefault((status.st_dev, status.st_ino), _Descriptor(fd))
            descriptor.users += 1
            return descriptor

    def _renew_lock(self) -> None:
        self._lock = threading.Lock()


#: POSIX counts by process, so there is one table for the process.
DESCRIPTORS = Descriptors()
