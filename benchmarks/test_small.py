"""Small and many: what a save costs where there is next to nothing to write, against the bare calls.

The bare calls are write, fsync, rename, and fsync of the directory, in the same directory and in turn with
ours, so that the median of one is worth something beside the median of the other. Who comes first changes
from round to round. The ceilings only catch what is broken; what is reached on a quiet machine stands above.
"""

import os
import statistics
import time

import pytest

from snapstore import SnapshotDir, SnapshotMeta, SnapshotStream
from snapstore.bench.child import child
from snapstore.disk import snapshot_name
from snapstore.kv.lmdb import LmdbKV
from snapstore.transport.http import SnapshotClient

#: A median of so many is steady to a few in a hundred on a quiet disk.
ROUNDS = 200
WARMUP_ROUNDS = 10

SMALL = 4 * 1024

#: What ours may cost, by the bare calls, before something is broken. With a core for each side and bare calls
#: of 0.7 ms it is 1.5 for a save and 3.3 end to end: about a millisecond more than a save, which are four
#: messages between two processes and their heads. The longer the disk takes, the less that is.
SAVE_CEILING = 4.0
END_TO_END_CEILING = 8.0

#: And so much besides, where the bare calls take next to nothing: a disk whose fsync is nearly free makes a
#: large ratio of any fixed cost.
SLACK_S = 0.005

#: The many: so many saves into one directory, and how much slower the last may be than the first.
SAVES = 1000
PART = 100
SLOWDOWN_CEILING = 1.5


class Bare:
    """The least that a lasting file under a new name takes."""

    def __init__(self, path, data):
        self.path = path
        self.data = data
        self.directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)

    def save(self, number):
        name = self.path / f"bare-{number}"
        temp = f"{name}.tmp"
        fd = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            assert os.write(fd, self.data) == len(self.data)
            os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(temp, name)
        os.fsync(self.directory)

    def close(self):
        os.close(self.directory)


def seconds(call, *arguments):
    began = time.perf_counter()
    call(*arguments)
    return time.perf_counter() - began


def tell(benchmark, ours, bare, **more):
    """Write down the medians, and ours by bare's."""
    ratio = statistics.median(ours) / statistics.median(bare)
    tenths = statistics.quantiles(ours, n=10)
    benchmark.extra_info.update(
        ratio_p50=round(ratio, 2),
        ours_p50_ms=round(statistics.median(ours) * 1e3, 3),
        ours_p10_ms=round(tenths[0] * 1e3, 3),
        ours_p90_ms=round(tenths[-1] * 1e3, 3),
        bare_p50_ms=round(statistics.median(bare) * 1e3, 3),
        **more,
    )
    print(f"\n{benchmark.name}: {benchmark.extra_info}")


def holds(ours, bare, ceiling):
    """Whether ours costs no more than `ceiling` times the bare calls, and SLACK_S besides."""
    return statistics.median(ours) < ceiling * statistics.median(bare) + SLACK_S


def both(number, ours, bare):
    """The seconds of `ours(number)` and of the bare calls; every second time these come first."""
    if number % 2:
        ours_s = ours(number)
        return ours_s, seconds(bare.save, number)
    bare_s = seconds(bare.save, number)
    return ours(number), bare_s


def in_turn(benchmark, ours, bare):
    """Time `ours(number)` and the bare calls one after the other; the seconds of both."""
    rounds = []

    def once():
        rounds.append(both(len(rounds) + 1, ours, bare))

    benchmark.pedantic(once, rounds=ROUNDS, warmup_rounds=WARMUP_ROUNDS)
    return tuple(zip(*rounds[WARMUP_ROUNDS:], strict=True))


@pytest.fixture
def follower(tmp_path):
    """The URL and the directory of a follower in a process of its own: two sides in one wait for the GIL."""
    path = tmp_path / "follower"
    with child("snapstore.bench.receiver") as receiver:
        yield receiver.ask("follow", path=str(path)), path


def test_end_to_end(benchmark, follower, tmp_path):
    """64 KiB of LMDB, pinned: from the leader's pin over loopback to a file that lasts in the follower.

    What was saved is moved out of the way before the next: a node keeps a few, and each offer has a look at
    all of them. Not removed: a file system like ext4 passes over what was removed in the last minutes, one
    by one, whenever it makes a file.
    """
    url, path = follower
    past = tmp_path / "past"
    past.mkdir()
    client = SnapshotClient()
    with LmdbKV(tmp_path / "kv") as kv:
        with kv.env.begin(write=True) as txn:
            for number in range(38):  # Sixteen pages, with those of the tree.
                txn.put(b"key-%d" % number, os.urandom(1000))
        with SnapshotStream(SnapshotMeta(1), kv.snapshot()) as stream:
            data = b"".join(stream.chunks())
        bare = Bare(path, data)

        def ours(number):
            with SnapshotStream(SnapshotMeta(number, 1), kv.snapshot()) as stream:
                assert stream.size == len(data)
                taken_s = seconds(client.send_snapshot, url, stream)
            assert (path / snapshot_name(number)).read_bytes() == data
            for saved in path.iterdir():
                saved.rename(past / saved.name)
            return taken_s

        taken = in_turn(benchmark, ours, bare)
        bare.close()
    tell(benchmark, *taken, bytes=len(data))
    assert holds(*taken, END_TO_END_CEILING)


@pytest.mark.parametrize("size", [SMALL, 64 * 1024])
def test_save_from_memory(benchmark, size, tmp_path):
    data = os.urandom(size)
    with SnapshotDir(tmp_path / "snapshots") as directory:
        bare = Bare(directory.path, data)
        taken = in_turn(benchmark, lambda number: seconds(directory.save_from, data, number), bare)
        bare.close()
        assert directory.verify(ROUNDS).size == size
    tell(benchmark, *taken, bytes=size)
    assert holds(*taken, SAVE_CEILING)


def test_a_thousand_saves_in_one_directory(benchmark, tmp_path):
    """The last hundred against the first, each by the bare calls between them: the disk drifts, too."""
    data = os.urandom(SMALL)
    (tmp_path / "bare").mkdir()
    bare = Bare(tmp_path / "bare", data)
    rounds = []
    with SnapshotDir(tmp_path / "snapshots") as directory:

        def ours(number):
            return seconds(directory.save_from, data, number)

        def all_of_them():
            rounds.extend(both(number, ours, bare) for number in range(WARMUP_ROUNDS + SAVES))

        benchmark.pedantic(all_of_them, rounds=1)
        assert len(directory.list()) == len(rounds)
    bare.close()
    saves, bares = zip(*rounds[WARMUP_ROUNDS:], strict=True)
    first, last = (
        statistics.median(saves[part]) / statistics.median(bares[part])
        for part in (slice(PART), slice(-PART, None))
    )
    tell(benchmark, saves, bares, bytes=SMALL, first_ratio=round(first, 2), last_ratio=round(last, 2))
    assert last / first < SLOWDOWN_CEILING
