"""What is held of a directory: the leases of its open files, and what comes of them when time is up.

It must not know what is read. The lease is a lock on the open file (`flock`), so the kernel keeps every
purge off, another process's too, and takes it back from who dies.

Plan: each lease has a descriptor of its own, a duplicate of the reader's, and the two share the lock.
Whoever takes it out of the lease's list owns it: the end of the lease closes it, the end of its time
unlocks the file first, and the reader goes on with his own. Nothing here takes a lock, since a finalizer
may come at any moment; each step is one operation on a list or a dict.
"""

from __future__ import annotations

import fcntl
import os
from typing import TYPE_CHECKING

from snapstore.lease import Kind, Lease

if TYPE_CHECKING:
    from collections.abc import Callable

    from snapstore.stored import SavedSnapshot


class FileLease(Lease):
    """The lease of a stored snapshot's file."""

    def __init__(
        self,
        fd: int,
        saved: SavedSnapshot,
        *,
        owner: str | None,
        ttl_s: float,
        monotonic: Callable[[], float],
        held: dict[int, FileLease],
    ) -> None:
        super().__init__(
            Kind.STORED, saved.index, owner=owner, ttl_s=ttl_s, monotonic=monotonic, cost=lambda: saved.size
        )
        self._fds = [os.dup(fd)]
        self._held = held
        held[id(self)] = self

    def end(self) -> None:
        """The holder is done. May come twice, from any thread, also from a finalizer."""
        self._held.pop(id(self), None)
        self._take_fd(unlock=False)

    def lapse(self) -> None:
        """Report that the time is up, and let a purge take the file; its reader reads on."""
        self.report("a purge may take the file; its reader can read on")
        self._take_fd(unlock=True)

    def _take_fd(self, *, unlock: bool) -> None:
        try:
            fd = self._fds.pop()
        except IndexError:  # Taken already.
            return
        try:
            if unlock:
                fcntl.flock(fd, fcntl.LOCK_UN)
        finally:
            os.close(fd)


class Leases:
    """The leases of one SnapshotDir. From any thread."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._held: dict[int, FileLease] = {}

    def begin(self, fd: int, saved: SavedSnapshot, *, owner: str | None, ttl_s: float) -> FileLease:
        """Return the lease of `saved`, which is open and locked as `fd`; `end` gives it back."""
        return FileLease(fd, saved, owner=owner, ttl_s=ttl_s, monotonic=self._monotonic, held=self._held)

    def look(self) -> list[Lease]:
        """Return what is held, the oldest first. What is overdue is reported, and keeps no purge off."""
        leases = list(self._held.values())
        for lease in leases:
            if lease.overdue:
                lease.lapse()
        return [*leases]
