"""16 GiB against 256 MiB: as fast, and in no more memory.

What is saved is a file in the page cache, again and again through a pipe, so that no disk has to be as
large as two of them. Verified where a fault would show: at pieces spread over all of it.
"""

from __future__ import annotations

import os
import random
import re
from dataclasses import replace

import pytest

from snapstore import SnapshotDir
from snapstore.bench.content import PIECE_SIZE, Content
from snapstore.bench.report import Line
from snapstore.bench.saves import INDEX, forget, through_pipe
from snapstore.bench.stage import Stage
from snapstore.bench.walks import STORED, Follower
from snapstore.bench.ways import Way

pytestmark = pytest.mark.slow

SMALL_SIZE, TIMES = 256 * 1024 * 1024, 64
LARGE_SIZE = SMALL_SIZE * TIMES

#: A manifest has some bytes for each chunk, and is a JSON text for a while; all else is of one size.
GROWTH_SIZE_MAX = 16 * 1024 * 1024

#: Of a large one, so many pieces are read back.
CHECKED_PIECES = 64

#: Each round takes as long as the disk takes for the large one.
ROUNDS = 3


class Repeated:
    """A snapshot that is a file so many times over."""

    def __init__(self, path, times):
        self.size = times * path.stat().st_size
        self._path, self._times = path, times

    def write_to(self, writer):
        with open(self._path, "rb") as file:
            for _ in range(self._times):
                writer.copy_from_fd(file.fileno(), 0, self.size // self._times)
        return self.size

    def close(self):
        pass

    def check(self, path):
        """Raise where the file at `path` is not it, as far as that is looked at."""
        assert path.stat().st_size == self.size
        with open(self._path, "rb") as source, open(path, "rb") as saved:
            for _ in range(CHECKED_PIECES):
                at = random.randrange(self.size - PIECE_SIZE)
                at -= at % PIECE_SIZE
                wanted = os.pread(source.fileno(), PIECE_SIZE, at % (self.size // self._times))
                assert os.pread(saved.fileno(), PIECE_SIZE, at) == wanted, f"{path} at {at}"


class Peaks:
    """The most memory that some processes had, together, in each of the runs of a way."""

    def __init__(self, *processes):
        self._processes = processes
        self.of = {}

    def watched(self, way):
        """Return the same way, watched."""

        def watch():
            for process in self._processes:
                with open(f"/proc/{process}/clear_refs", "w") as clear:
                    clear.write("5")  # The peak begins anew here (proc(5)).
            way.run()
            self.of.setdefault(way.name, []).append(sum(map(_peak, self._processes)))

        return replace(way, run=watch)


def _peak(process):
    with open(f"/proc/{process}/status") as status:
        return int(re.search(r"^VmHWM:\s+([0-9]+) kB$", status.read(), re.MULTILINE)[1]) * 1024


@pytest.fixture
def stage(tmp_path):
    with Stage(tmp_path, Content(SMALL_SIZE)) as stage:
        stage.warm()
        yield stage


def judged(race, benchmark, ways, peaks, name):
    small, large = ways
    race.run(ways, size=LARGE_SIZE, rounds=ROUNDS)
    benchmark.extra_info["peaks"] = peaks.of
    race.judge(Line(name, large.name, small.name))
    assert max(peaks.of[large.name]) - max(peaks.of[small.name]) < GROWTH_SIZE_MAX, peaks.of


def test_save_grows(race, benchmark, stage, tmp_path):
    peaks = Peaks(os.getpid())
    with SnapshotDir(tmp_path / "snapshots") as directory:

        def way(name, times):
            snapshot = Repeated(stage.source, times)

            def save():
                through_pipe(
                    snapshot.write_to, lambda reader: directory.save_from(reader, INDEX, size=snapshot.size)
                )

            def check():
                snapshot.check(directory.get_snap_file_path(INDEX))
                forget(directory, INDEX)

            return peaks.watched(Way(name, save, check, size=snapshot.size))

        judged(race, benchmark, [way("256 MiB", 1), way("16 GiB", TIMES)], peaks, "save-growth")


def test_walk_grows(race, benchmark, stage):
    peaks = Peaks(os.getpid(), stage.receiver.pid)
    follower = Follower(stage)

    def way(name, times):
        snapshot = Repeated(stage.source, times)
        walk = follower.way(name, STORED, lambda: snapshot, snapshot.check, size=snapshot.size)
        return peaks.watched(walk)

    judged(race, benchmark, [way("256 MiB", 1), way("16 GiB", TIMES)], peaks, "walk-growth")
