"""What a transfer leaves of the writer's speed: LMDB commits in the leader's process, during one and before.

The writer is a Python thread with a core of its own, as an apply loop is; the leader's sending and the
follower share the others. So what is seen is what a transfer does to a writer within one process: the
GIL, LMDB's locks, pages that the pin withholds. The rate is bytes put by commits.

With durable commits the disk is asked, too. Here both nodes have the same one, so the writer's fsyncs wait
behind the follower's writes; between two machines they would not.
"""

from __future__ import annotations

import os
import threading
import time
from functools import partial

import lmdb
import pytest

from built import leave_out
from snapstore.bench.content import PIECE_SIZE, Content
from snapstore.bench.lmdb_content import LmdbContent
from snapstore.bench.report import Line
from snapstore.bench.stage import Stage
from snapstore.bench.walks import PINNED, Follower
from snapstore.bench.ways import Way
from snapstore.kv.lmdb import LmdbKV

#: A command as a node applies it: some keys of this value's size in a transaction.
VALUE_SIZE, VALUES = 1024, 4
COMMIT_SIZE = VALUE_SIZE * VALUES

#: While a snapshot is pinned no page is used again, so the store grows by all that is written.
MAP_SIZE = 64 * 1024**3

#: How long it is watched while nothing is sent: about as long as a transfer.
WATCH_S = 1.0

#: It writes these keys over, again and again: behind all that the store begins with.
_FIRST, _KEYS = 2**32, 4096


class Writer:
    """Commits from its own thread, on the core `core`, until it is stopped. `commits` counts them."""

    def __init__(self, env, core):
        self.commits = 0
        self._env, self._core = env, core
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self):
        os.sched_setaffinity(0, {self._core})
        value = os.urandom(VALUE_SIZE)
        number = 0
        while not self._over.is_set():
            with self._env.begin(write=True) as txn:
                for _ in range(VALUES):
                    txn.put((_FIRST + number).to_bytes(8, "big"), value)
                    number = (number + 1) % _KEYS
            self.commits += 1

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *exception):
        self._over.set()
        self._thread.join()


@pytest.fixture(scope="module")
def own_core():
    """The writer's core; this thread, and what it starts, keep off it."""
    cores = os.sched_getaffinity(0)
    if len(cores) < 2:
        leave_out("a writer with a core of its own needs two")
    own = max(cores)
    os.sched_setaffinity(0, cores - {own})
    yield own
    os.sched_setaffinity(0, cores)


def seconds_of_a_commit(env, core, work):
    """Do `work()` while a writer commits; the seconds for each of its commits meanwhile."""
    with Writer(env, core) as writer:
        began_s = time.perf_counter()
        work()
        elapsed_s, commits = time.perf_counter() - began_s, writer.commits
    return elapsed_s / max(commits, 1)


def judged(race, size, own_core, path, name, *, durable):
    """Time the commits of a writer before a transfer, beside a pin alone, and during a transfer, in turn.

    The store changes all the time, so what was sent is not looked at here.
    """
    store = LmdbContent(path / "store", size)
    with (
        Stage(path, Content(PIECE_SIZE)) as stage,
        lmdb.open(str(store.path), map_size=MAP_SIZE, sync=durable) as env,
        LmdbKV(env) as kv,
    ):
        transfer = Follower(stage).pinned_way(store, kv)
        watched = partial(seconds_of_a_commit, env, own_core)

        def pinned():
            with kv.snapshot():
                return watched(partial(time.sleep, WATCH_S))

        # The seconds are of one commit, and the CPU's of all that went on meanwhile.
        before = Way("before", partial(watched, partial(time.sleep, WATCH_S)), tells_cpu=False)
        forget = partial(stage.receiver.ask, "forget", index=PINNED.index)
        during = Way("during", partial(watched, transfer.run), forget, tells_cpu=False)
        race.run([before, Way("pinned, nothing sent", pinned, tells_cpu=False), during], size=COMMIT_SIZE)
        race.judge(Line(name, during.name, before.name))


def test_commits_during_a_transfer(race, size, own_core, tmp_path):
    judged(race, size, own_core, tmp_path, "commits-during-transfer", durable=False)


def test_durable_commits_during_a_transfer(race, size, own_core, tmp_path):
    judged(race, size, own_core, tmp_path, "durable-commits-during-transfer", durable=True)
