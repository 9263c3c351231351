"""The room on a directory's disk: who may take how much, decided before the bytes come.

Counts what was promised to saves and is not on the disk yet, and leaves a reserve alone. Reads no names
and moves no bytes; what a disk says of itself comes in through the constructor.

Plan: a save *holds* its room from its offer until its bytes are written. What fallocate has taken for it
is on the disk already, and is seen there; the rest of all promises is kept in the account here. A save
whose size nobody knows holds its next step, and asks for another when it has come to the end of that.

The account is one object's. Savers in other processes are seen when they have allocated, which those do
that know their size, before their first byte. btrfs tells what is allocated with its next commit; until then
the fallocate of a second save has the last word.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from snapstore.errors import NoRoom, SnapshotTooLarge

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from snapstore._fastpipe import SaveFile

#: Raft's log goes on beside the snapshots, most often on the same disk, and a node whose log cannot grow
#: stops: sixteen segments of etcd's log, an hour of a busy cluster's.
RESERVE_SIZE = 1024**3

#: On a small disk one part in so many stays free instead: what ext4 keeps for root.
RESERVE_PARTS = 20

#: What a file system has that does not say: tmpfs without a limit and many of FUSE tell of no blocks at all.
FREE_UNTOLD = 2**62

#: How often the disk is asked anew where a save has allocated meanwhile: once will do for what takes all
#: at once, and one that waits for its next step writes out what it has in hand, a few chunks.
LOOKS_MAX = 8

#: The longest step of a save whose size nobody knows. Each asks for the GIL, for which a busy node lets one
#: wait some milliseconds: with four in a second, at the pace of a fast disk, that is nothing.
STEP_SIZE_MAX = 256 * 1024 * 1024

#: Where less is left a step is one part in so many of it, so that a short save does not shut out others.
STEP_PARTS = 8

#: And never less than so much, but for the last of all.
STEP_SIZE_MIN = 1024 * 1024


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
        try:
            self._hold(file, 1 if size is None else size, size_max, grows=size is None)
            yield
        finally:
            self._let_go(file)

    @contextlib.contextmanager
    def filling(
        self, file: SaveFile, size: int | None, size_max: int
    ) -> Iterator[tuple[int, Callable[[int], int] | None]]:
        """Yield the `size_max` and the `grow` to fill `file` with. Afterwards nothing is held for it.

        Where `size` is not known it grows step by step, for as long as there is room beside what was promised
        to others. It waits for nobody, and does not shrink while its source is silent.
        """
        if size is None:
            grow = partial(self._hold, file, size_max=size_max, grows=True)
            yield grow(os.fstat(file.fd).st_size + 1), grow
        else:
            yield size_max, None
        self._let_go(file)

    def _hold(self, file: SaveFile, wanted: int, size_max: int, *, grows: bool) -> int:
        """Hold room for `wanted` bytes in all, and for one that `grows` the next step; how many then."""
        if wanted > size_max:
            raise SnapshotTooLarge(f"{wanted} bytes are more than the limit, {size_max} bytes")
        with self._lock:
            self._held.pop(file, None)
            if grows:
                self._held[file] = 0  # What it held is asked for anew.
            room = self._measure()
            allocated = _allocated_size(file)  # Last: what is written meanwhile is its own, not missing.
            missing = max(0, wanted - allocated)
            if missing > room.left:
                # With what it has: that comes back with it, as what the others have.
                raise room.refusal(wanted if grows else missing)
            if grows:
                step = min(STEP_SIZE_MAX, max(STEP_SIZE_MIN, room.left // STEP_PARTS))
                # From what it asks for on: a disk that compresses, or tells late, would have each chunk ask.
                wanted = min(size_max, max(wanted, allocated) + min(step, room.left - missing))
            self._held[file] = wanted
        return wanted

    def _measure(self) -> Room:
        for _ in range(LOOKS_MAX):
            before, status, after = self._sizes(), self._statvfs(), self._sizes()
            if before == after:
                break
        # What is allocated meanwhile counts twice then, and never not at all.
        reserved = sum(max(0, size - allocated) for size, allocated in before)
        reserve = self._reserve
        if reserve is None:
            reserve = min(RESERVE_SIZE, status.f_blocks * status.f_frsize // RESERVE_PARTS)
        free = status.f_bavail * status.f_frsize if status.f_blocks else FREE_UNTOLD
        return Room(free, reserved, reserve, sum(allocated for _, allocated in after))

    def _sizes(self) -> list[tuple[int, int]]:
        """What is held for each save, and what of that the disk has given."""
        # One that was closed holds nothing, whatever kept its saver from saying so.
        return [(size, _allocated_size(file)) for file, size in self._held.items() if file.fd >= 0]

    def _let_go(self, file: SaveFile) -> None:
        with self._lock:
            self._held.pop(file, None)

    def __repr__(self) -> str:
        return f"<RoomAccount holds={sorted(self._held.values())}>"


def _allocated_size(file: SaveFile) -> int:
    """What of `file` the disk has, written or not: a file keeps its descriptor while it holds room."""
    return os.fstat(file.fd).st_blocks * 512
