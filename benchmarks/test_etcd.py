"""A real etcd's snapshots against ours: from a leader to a follower, and pulled by a client.

Rates are compared, since etcd's database and our store differ somewhat in size. What etcd's leader takes
is its own word for it: from before the POST to the follower's answer, as its log has it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from datetime import datetime

import pytest

from built import leave_out
from snapstore import SnapshotDir
from snapstore.bench.content import PIECE_SIZE, Content
from snapstore.bench.lmdb_content import LmdbContent
from snapstore.bench.report import Line
from snapstore.bench.saves import forget
from snapstore.bench.stage import Stage
from snapstore.bench.walks import Follower
from snapstore.bench.ways import Way
from snapstore.kv.lmdb import LmdbKV
from tests.real_etcd import Etcd, etcdctl, free_port, require_etcd

pytest.importorskip("grpc", reason="NOT MEASURED: snapstore[etcd] is not installed")

from snapstore.etcd.pull import EtcdClient

#: As large as etcd's guide calls usual, and no larger: it has to be put in key by key.
DATABASE_SIZE_MAX = 256 * 1024 * 1024

#: etcd keeps 5000 entries of its log behind its own last snapshot, which it takes every so many: with more
#: entries than both, a member that begins with nothing needs a snapshot. Many at once share an fsync.
WRITES, SNAPSHOT_COUNT, WRITERS = 6000, 500, 32

#: The log of this one is read; later ones write JSON.
VERSION = "3.4"


def require_version():
    """Leave the test out where etcd is another one than VERSION."""
    said = subprocess.run(["etcd", "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"^etcd Version: (([0-9]+\.[0-9]+)\S*)", said, re.MULTILINE)
    if found is None or found[2] != VERSION:
        leave_out(f"the log of etcd {VERSION} is read, and this is {found[1] if found else said}")


@pytest.fixture(scope="module")
def leader(size, tmp_path_factory):
    require_etcd()
    require_version()
    value_size = min(size, DATABASE_SIZE_MAX) // WRITES
    options = [f"--snapshot-count={SNAPSHOT_COUNT}"]
    with Etcd(tmp_path_factory.mktemp("etcd") / "leader", options=options) as leader:

        def write(numbers):
            with leader.client() as keys:
                for number in numbers:
                    keys.put(b"key %d" % number, os.urandom(value_size))

        with ThreadPoolExecutor(WRITERS) as pool:
            list(pool.map(write, [range(start, WRITES, WRITERS) for start in range(WRITERS)]))
        yield leader


def check_database(path):
    """Raise where the file at `path` is no database with every key."""
    found = json.loads(etcdctl("snapshot", "status", path, "--write-out=json"))
    assert found["totalKey"] >= WRITES, found


class Joining:
    """New members, one after the other: each begins with nothing, and gets a snapshot from `leader`.

    `close` ends the one that is left where a round failed.
    """

    def __init__(self, leader, path):
        self._leader, self._path = leader, path
        self._member = self._follower = None

    def way(self, size):
        # What both take to start and to agree is none of a snapshot's.
        return Way("etcd to etcd", self._join, self._check, self._prepare, size=size, tells_cpu=False)

    def _prepare(self):
        self._url = f"http://127.0.0.1:{free_port()}"
        self._member = self._leader.add_learner(self._url)

    def _join(self):
        options = [f"--listen-peer-urls={self._url}"]
        self._follower = Etcd(self._path, joins=self._leader, peer_url=self._url, options=options)
        assert self._leader.wait_said(f"to: {self._member:x}] sent out successfully")
        began = self._leader.lines(f"to {self._member:x}, size")[-1]
        ended = self._leader.lines(f"to: {self._member:x}] sent out successfully")[-1]
        return (_time(ended) - _time(began)).total_seconds()

    def _check(self):
        assert self._follower.wait_said("finished applying incoming snapshot")
        self._leader.remove(self._member)
        self.close()
        check_database(self._path / "member" / "snap" / "db")
        shutil.rmtree(self._path)

    def close(self):
        follower, self._follower = self._follower, None
        if follower is not None:
            follower.__exit__()


def _time(line):
    """When etcd said a line of its log: to the microsecond."""
    return datetime.strptime(line[:26], "%Y-%m-%d %H:%M:%S.%f")  # noqa: DTZ007 - Two of them are compared.


def etcdctl_way(leader, target, size):
    """`etcdctl snapshot save`: pulled over gRPC, synced, renamed."""

    def save():
        leader.ctl("snapshot", "save", target)

    def check():
        check_database(target)
        target.unlink()

    return Way("etcdctl", save, check, size=size, processes=[leader.pid])


def fetch_way(leader, directory, size):
    """The same pull by us, with the hash and the database's pages verified."""

    def fetch():
        EtcdClient(leader.url).pull(directory)

    def check():
        (saved,) = directory.list()
        check_database(saved.path)
        forget(directory, saved.index)

    return Way("fetch from etcd", fetch, check, size=size, processes=[leader.pid])


@contextmanager
def our_way(path, size):
    """Lend ours, of a store as large as etcd's database."""
    path.mkdir()
    store = LmdbContent(path / "store", size)
    with Stage(path, Content(PIECE_SIZE)) as stage, LmdbKV(store.path, map_size=store.map_size) as kv:
        yield Follower(stage).pinned_way(store, kv)


def test_against_etcd(race, leader, tmp_path):
    leader.ctl("snapshot", "save", tmp_path / "saved")
    size = (tmp_path / "saved").stat().st_size
    with (
        our_way(tmp_path / "ours", size) as ours,
        SnapshotDir(tmp_path / "fetched") as fetched,
        closing(Joining(leader, tmp_path / "joining")) as joining,
    ):
        etcd = joining.way(size)
        ctl = etcdctl_way(leader, tmp_path / "ctl", size)
        fetch = fetch_way(leader, fetched, size)
        race.run([ours, etcd, ctl, fetch], size=size)
        race.judge(
            Line("lmdb-against-etcd", ours.name, etcd.name),
            Line("lmdb-against-etcdctl", ours.name, ctl.name),
            Line("fetch-against-etcdctl", fetch.name, ctl.name),
        )
