"""A pull from an etcd that we did not write, and what etcdctl makes of the file that comes of it."""

import itertools
import json
import os
import statistics
import threading
import time

import pytest

from command_line import snapstore
from real_etcd import CALL_S_MAX, Etcd, etcdctl, require_etcd
from snapstore.directory import SnapshotDir
from snapstore.errors import PeerRejected, SnapshotExists

for needed in ("grpc", "google.protobuf"):
    pytest.importorskip(needed, reason="ETCD IS NOT TESTED: snapstore[etcd] is not installed")

from snapstore.etcd.dial import EtcdTls  # noqa: E402 - It needs what was just looked for.
from snapstore.etcd.pull import EtcdClient  # noqa: E402

pytestmark = pytest.mark.slow

KEYS, VALUE_SIZE = 500, 100_000

#: How often the two pulls are timed, in turn.
ROUNDS = 3


@pytest.fixture(autouse=True)
def etcd_is_here():
    require_etcd()


@pytest.fixture
def etcd(tmp_path):
    with Etcd(tmp_path / "etcd") as etcd:
        yield etcd


@pytest.fixture
def directory(tmp_path):
    with SnapshotDir(tmp_path / "snapshots") as directory:
        yield directory


def fill(etcd):
    """50 MB, and what there is of each key by the revision that made it."""
    with etcd.client() as keys:
        return {
            keys.put(key, value): (key, value)
            for key, value in ((b"k%04d" % number, os.urandom(VALUE_SIZE)) for number in range(KEYS))
        }


def status(path):
    """What etcdctl says of a snapshot's file, after looking through all of it."""
    return json.loads(etcdctl("snapshot", "status", path, "--write-out=json"))


def serving(path, data):
    """An etcd on what `etcdctl snapshot restore` makes of `path`, its hash check on."""
    etcdctl("snapshot", "restore", path, f"--data-dir={data}")
    return Etcd(data)


def damaged(path, target):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    target.write_bytes(content)
    return target


class Writer:
    """Changes keys, one after the other, until `with` is left; `made` are its changes by revision."""

    def __init__(self, etcd):
        self.made = {}
        self._more, self._over = threading.Event(), threading.Event()
        self._keys = etcd.client()
        self._thread = threading.Thread(target=self._run)

    def _run(self):
        with self._keys as keys:
            for number in itertools.count():
                if self._over.is_set():
                    return
                key, value = b"k%04d" % (number % KEYS), b"later %d" % number
                self.made[keys.put(key, value)] = (key, value)
                self._more.set()

    def wait_for_more(self):
        """Until it has made a change since now, or one that it was just making."""
        self._more.clear()
        assert self._more.wait(CALL_S_MAX)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *exception):
        self._over.set()
        self._thread.join()


def test_etcdctl_takes_the_file_and_every_key_is_as_of_its_revision(etcd, directory, tmp_path):
    changes = fill(etcd)
    with Writer(etcd) as writer:
        writer.wait_for_more()
        saved = EtcdClient(etcd.url).pull(directory)
        writer.wait_for_more()
    assert max(changes) < saved.index < max(writer.made), "nothing was written meanwhile"
    changes |= writer.made

    target = tmp_path / "restored.db"
    code, _, complaint = snapstore("restore", directory.path, saved.index, target)
    assert code == 0, complaint
    found = status(target)
    assert (found["revision"], found["totalSize"]) == (saved.index, saved.size - 32)

    expected = {key: value for revision, (key, value) in sorted(changes.items()) if revision <= saved.index}
    with serving(target, tmp_path / "anew") as anew, anew.client() as keys:
        assert keys.count() == len(expected)
        assert all(keys.get(key) == value for key, value in expected.items())

    words = etcdctl(
        "snapshot",
        "restore",
        damaged(target, tmp_path / "damaged.db"),
        f"--data-dir={tmp_path / 'never'}",
        fails=True,
    )
    assert "expected sha256" in words


def test_the_file_is_the_one_that_etcdctl_saves(etcd, directory, tmp_path):
    with etcd.client() as keys:
        keys.put(b"key", b"value")
    theirs = tmp_path / "theirs.db"
    etcd.ctl("snapshot", "save", theirs)
    saved = EtcdClient(etcd.url).pull(directory)
    # Of the same revision, though in two transactions of bbolt.
    ours = status(saved.path)
    assert ours == status(theirs)
    assert saved.size == theirs.stat().st_size


def test_a_removal_that_was_compacted_away_counts(etcd, directory):
    client = EtcdClient(etcd.url)
    assert client.pull(directory).index == client.status().revision == 1
    with etcd.client() as keys:
        for number in range(20):
            keys.put(b"key", b"%d" % number)
        last = keys.remove(b"key")
    etcd.ctl("compact", last, "--physical")
    saved = client.pull(directory)
    assert saved.index == client.status().revision == last == 22
    # etcdctl 3.4 counts entries only, and there is none left.
    assert status(saved.path)["revision"] < last
    with pytest.raises(SnapshotExists):
        client.pull(directory)


def test_a_user_and_a_certificate(tmp_path, directory, node):
    tls = EtcdTls(node.ca, node.cert, node.key)
    with Etcd(tmp_path / "etcd", node=node) as etcd:
        with etcd.client() as keys:
            keys.put(b"key", b"value")
        for name in ("root", "guest"):
            etcd.ctl("user", "add", f"{name}:sesame")
        etcd.ctl("user", "grant-role", "root", "root")
        etcd.ctl("auth", "enable")
        with pytest.raises(PeerRejected, match="it wants a user"):
            EtcdClient(etcd.url, tls=tls).pull(directory)
        with pytest.raises(PeerRejected, match="authentication failed"):
            EtcdClient(etcd.url, tls=tls, user="root", password="wrong").pull(directory)
        with pytest.raises(PeerRejected, match="only users with the role root"):
            EtcdClient(etcd.url, tls=tls, user="guest", password="sesame").pull(directory)
        saved = EtcdClient(etcd.url, tls=tls, user="root", password="sesame").pull(directory)
    assert saved.index == status(saved.path)["revision"] == 2


def test_its_time_and_etcdctl_s(etcd, tmp_path):
    fill(etcd)
    ours, theirs, started = [], [], []
    for number in range(ROUNDS):
        with SnapshotDir(tmp_path / f"ours{number}") as directory:
            ours.append(timed(EtcdClient(etcd.url).pull, directory))
        theirs.append(timed(etcd.ctl, "snapshot", "save", tmp_path / f"{number}.db"))
        started.append(timed(etcdctl, "version"))
    size = (tmp_path / "0.db").stat().st_size
    ratio = statistics.median(theirs) / statistics.median(ours)
    print(
        f"\n{size / 1e6:.0f} MB: pull {_spread(ours)}, etcdctl snapshot save {_spread(theirs)}"
        f" of which it takes {statistics.median(started):.2f} s to start: {ratio:.2f} times as fast"
    )


def timed(call, *arguments):
    started_s = time.perf_counter()
    call(*arguments)
    return time.perf_counter() - started_s


def _spread(times_s):
    return f"{statistics.median(times_s):.2f} s ({min(times_s):.2f} to {max(times_s):.2f})"
