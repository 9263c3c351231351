"""The room on a directory's disk: who may take how much, decided before the bytes come.

Counts what was promised to saves and is not on the disk yet, and leaves a reserve alone. Reads no names
and moves no bytes; what a disk says of itself comes in through the constructor.

Plan: a save *holds* its room from its offer until its bytes are written. What fallocate has taken for it
is on the disk already, and is seen there; the rest of all promises is kept in the account here. A save
whose size nobody knows holds nothing, but it is watched while it grows, and gives way.

The account is one object's. Savers in other processes are seen when they have allocated, which those do
that know their size, before their first byte. btrfs tells what is allocated with its next commit; until then
the fallocate of a second save has the last word.
"""

from __future__ import annotations

import _thread
import contextlib
import errno
import os
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from snapstore._fastpipe import Progress
from snapstore.errors import NoRoom, PipeClosed, SnapshotTooLarge

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from snapstore._fastpipe import SaveFile

#: Raft's log goes on beside the snapshots, most often on the same disk, and a node whose log cannot grow
#: stops: sixteen segments of etcd's log, an hour of a busy cluster's.
RESERVE_SIZE = 1024**3

#: On a small disk one part in so many stays free instead: what ext4 keeps for root.
RESERVE_PARTS = 20

#: How often a save that grows is looked at: at the pace of the fastest disks some hundred megabytes, a
#: tenth of the reserve, and they are given back at once.
WATCH_INTERVAL_S = 0.05


@dataclass(frozen=True, slots=True)
class Room:
    """What a disk has at one moment, in bytes: `free`, of that `reserved`, and the `reserve` that stays.

    `allocated` is what the saves under way have of it already: it comes back if they fail.
    """

    free: int
    reserved: int
    reserve: int
    allocated: int

    @property
    def left(self) -> int:
        """What the next save may take; below 0 where the reserve is eaten into."""
        return self.free - self.reserved - self.reserve

    def refusal(self, needed: int) -> NoRoom:
        """Return the error for a save that needs so much."""
        words = (
            f"{os.strerror(errno.ENOSPC)}: {needed} bytes needed, {self.free} bytes free, "
            f"{self.reserved} of them reserved by others, and {self.reserve} bytes stay free"
        )
        return NoRoom(
            words,
            needed=needed,
            free=self.free,
            reserved=self.reserved,
            reserve=self.reserve,
            for_now=needed <= self.free + self.allocated - self.reserve,
        )


class RoomAccount:
    """Holds room for the saves into one directory. From any thread.

    `statvfs()` asks the disk; it counts what an unprivileged user has, and a quota where the file system
    tells one so. `reserve` in bytes; None for RESERVE_SIZE, or less on a small disk.
    """

    def __init__(self, statvfs: Callable[[], os.statvfs_result], reserve: int | None = None) -> None:
        if reserve is not None and reserve < 0:
            raise ValueError(f"reserve must be 0 or more bytes, not {reserve}")
        self._statvfs = statvfs
        self._reserve = reserve
        # Held during fstat and statvfs, which wait for nothing: two offers must not see the same room.
        self._lock = threading.Lock()
        self._held: dict[SaveFile, int] = {}

    def measure(self) -> Room:
        """Return what the disk has now. Raises OSError."""
        with self._lock:
            return self._measure()

    @contextlib.contextmanager
    def held(self, file: SaveFile, size: int | None, size_max: int) -> Iterator[None]:
        """Hold room for `file` to have `size` bytes, what it has already among them; None: not known.

        Raises SnapshotTooLarge and NoRoom. Let go behind `filling`, or when the block is left.
        """
        if size is not None and size > size_max:
            raise SnapshotTooLarge(f"{size} bytes are more than the limit, {size_max} bytes")
        with self._lock:
            room = self._measure()
            needed = 1 if size is None else max(0, size - _allocated_size(file))
            if needed > room.left:
                raise room.refusal(needed)
            self._held[file] = size or 0
        try:
            yield
        finally:
            self._let_go(file)

    @contextlib.contextmanager
    def filling(
        self, file: SaveFile, size: int | None, size_max: int, progress: Progress | None
    ) -> Iterator[tuple[int, Progress | None]]:
        """Watch over `file` while it is written; yields the `size_max` and the Progress to do it with.

        Where `size` is not known it may grow up to what is left now, and is ended when others need
        that: NoRoom is raised then, and the Progress cancelled. Afterwards nothing is held for it.
        """
        if size is None:
            with self._growing(size_max, progress or Progress()) as limits:
                yield limits
        else:
            yield size_max, progress
        self._let_go(file)

    @contextlib.contextmanager
    def _growing(self, size_max: int, progress: Progress) -> Iterator[tuple[int, Progress]]:
        room = self.measure()
        watch = _Watch(self, progress)
        try:
            # Not by `threading`: that waits for its thread to begin, for ever where memory ends just then.
            _thread.start_new_thread(watch.run, ())
        except RuntimeError as error:
            raise OSError(errno.ENOMEM, f"no thread to watch the disk: {error}") from error
        try:
            yield min(size_max, max(0, room.left)), progress
        except PipeClosed as error:
            if watch.found is None:
                raise
            raise watch.found.refusal(progress.bytes + 1) from error
        except SnapshotTooLarge as error:
            if room.left >= size_max:
                raise
            raise room.refusal(room.left + 1) from error
        finally:
            watch.end()

    def _measure(self) -> Room:
        # First what is promised: what is allocated meanwhile counts twice then, and never not at all.
        sizes = [(size, _allocated_size(file)) for file, size in self._held.items()]
        reserved = sum(max(0, size - allocated) for size, allocated in sizes)
        status = self._statvfs()
        reserve = self._reserve
        if reserve is None:
            reserve = min(RESERVE_SIZE, status.f_blocks * status.f_frsize // RESERVE_PARTS)
        free = status.f_bavail * status.f_frsize
        return Room(free, reserved, reserve, sum(allocated for _, allocated in sizes))

    def _let_go(self, file: SaveFile) -> None:
        with self._lock:
            self._held.pop(file, None)

    def __repr__(self) -> str:
        return f"<RoomAccount holds={sorted(self._held.values())}>"


class _Watch:
    """Looks at the disk while a save grows, on a thread that nobody waits for."""

    def __init__(self, account: RoomAccount, progress: Progress) -> None:
        self._account = account
        self._progress = progress
        self._lock = threading.Lock()
        self._ended = threading.Event()
        #: What the disk had when the save had to end; None while it need not.
        self.found: Room | None = None

    def run(self) -> None:
        """Look now and then, until the save ends or has to."""
        with contextlib.suppress(OSError):  # Where the disk does not say, the save itself hears of it.
            while self.found is None and not self._ended.wait(WATCH_INTERVAL_S):
                room = self._account.measure()
                if room.left < 0:
                    self._stop(room)

    def _stop(self, room: Room) -> None:
        with self._lock:
            if not self._ended.is_set():
                self.found = room
                self._progress.cancel()

    def end(self) -> None:
        """Let the save be over; from now on nothing cancels it."""
        with self._lock:
            self._ended.set()


def _allocated_size(file: SaveFile) -> int:
    """What of `file` the disk has, written or not: a file keeps its descriptor while it holds room."""
    return os.fstat(file.fd).st_blocks * 512
