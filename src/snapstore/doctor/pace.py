"""How fast a disk is: a short direct write, and some small fsyncs, in a file without a name.

Short, since a node may be at work beside it: each part ends after so many bytes or so many seconds,
whichever is first. Nothing of it lasts.
"""

from __future__ import annotations

import mmap
import os
import statistics
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from snapstore.doctor.finding import Finding, Level
from snapstore.doctor.probes import PROBE_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

#: As a save writes: in pieces of a chunk.
_PIECE_SIZE = 4 * 1024 * 1024

#: Longer would be felt by a raft log on the same disk.
WRITE_S_MAX = 2.0
SYNCS_S_MAX = 2.0

#: Enough for a median; as many commits as a busy node makes in some 100 ms.
SYNCS_MAX = 32

#: What an fsync makes last here: a page, as a log's commit.
_COMMIT_SIZE = 4096

#: No file system is filled for a look: so many times what is written has to be free.
ROOM_TIMES = 4

#: A disk of the slowest kind that is sold writes as much; below, a GiB takes a minute.
RATE_MIN = 20e6

#: The heartbeat of raft is around 100 ms: where an fsync takes as long, elections are near.
SYNC_P50_MAX_S = 0.1


@dataclass(frozen=True, slots=True)
class Pace:
    """What was measured. `written` in bytes, in `write_s` seconds with its fsync; fsyncs in seconds.

    `direct`: past the page cache.
    """

    written: int
    write_s: float
    direct: bool
    sync_p50_s: float
    sync_max_s: float

    @property
    def rate(self) -> float:
        """Bytes per second, until they are on the disk."""
        return self.written / self.write_s if self.write_s > 0 else float("inf")

    def to_json(self) -> dict[str, Any]:
        """Return it for machines."""
        return {**asdict(self), "bytes_per_s": self.rate if self.write_s > 0 else None}


def measure_pace(file: int, *, direct: bool, now_s: Callable[[], float] = time.monotonic) -> Pace:
    """Write to an open nameless file and say how long it took; OSError as the disk gives it.

    `direct` says that the file was set so. `now_s` is a clock in seconds.
    """
    with mmap.mmap(-1, _PIECE_SIZE) as piece:
        piece.write(os.urandom(_PIECE_SIZE))  # A file system that compresses must not look fast.
        began_s, written = now_s(), 0
        while written < PROBE_SIZE and now_s() - began_s < WRITE_S_MAX:
            written += os.pwrite(file, piece, written)
        os.fsync(file)
        write_s = now_s() - began_s
        syncs_s = list(_sync_times(file, piece, now_s))
    return Pace(written, write_s, direct, statistics.median(syncs_s), max(syncs_s))


def _sync_times(file: int, piece: mmap.mmap, now_s: Callable[[], float]) -> Iterator[float]:
    until_s = now_s() + SYNCS_S_MAX
    with memoryview(piece) as view, view[:_COMMIT_SIZE] as commit:
        for number in range(SYNCS_MAX):
            os.pwrite(file, commit, number * _COMMIT_SIZE)
            began_s = now_s()
            os.fsync(file)
            ended_s = now_s()
            yield ended_s - began_s
            if ended_s > until_s:
                return


def judge_pace(pace: Pace) -> Iterator[Finding]:
    """Yield whether a disk is slow."""
    way = "direct write" if pace.direct else "write"
    seen = f"{way} of {pace.written / 1e6:.0f} MB: {pace.rate / 1e6:.0f} MB/s with its fsync"
    if pace.rate < RATE_MIN:
        yield Finding(
            "slow-write",
            "speed",
            Level.HINT,
            seen,
            f"a snapshot of 1 GB takes {1e9 / pace.rate:.0f} s to save, and a follower stays behind as long",
            "look for others that load this disk (`iostat -x 1`), or use a faster one",
        )
    else:
        yield Finding("speed", "speed", Level.OK, seen)
    seen = f"{pace.sync_p50_s * 1e3:.2f} ms at the median, {pace.sync_max_s * 1e3:.2f} ms at most"
    if pace.sync_p50_s > SYNC_P50_MAX_S:
        yield Finding(
            "slow-sync",
            "small fsync",
            Level.HINT,
            seen,
            "a raft log on this disk commits so slowly that heartbeats are late and elections begin",
            "look for others that load this disk (`iostat -x 1`), or give the raft log one of its own",
        )
    else:
        yield Finding("small-sync", "small fsync", Level.OK, seen)
