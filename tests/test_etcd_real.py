"""A real etcd takes our server for its learner, and sends it a snapshot that etcdctl and etcd then take."""

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from etcd_peers import Member
from real_etcd import CALL_S_MAX, Etcd, etcdctl, require_etcd
from snapstore.etcd import bolt
from snapstore.etcd.receiver import wait_unless_gone

pytestmark = pytest.mark.slow

#: etcd keeps 5000 entries of its log behind its own last snapshot, which it takes every so many: so a
#: member that begins with nothing needs a snapshot.
WRITES, SNAPSHOT_COUNT = 6000, 100

WRITERS = 8


@pytest.fixture(autouse=True)
def etcd_is_here():
    require_etcd()


@pytest.fixture
def etcd(tmp_path):
    with Etcd(tmp_path / "etcd", options=[f"--snapshot-count={SNAPSHOT_COUNT}"]) as etcd:
        yield etcd


def value_of(number):
    return b"value %d " % number * 40


def fill(etcd, numbers):
    """Write so many keys, several at a time."""

    def write(numbers):
        with etcd.client() as keys:
            for number in numbers:
                keys.put(b"key %d" % number, value_of(number))

    with ThreadPoolExecutor(WRITERS) as pool:
        list(pool.map(write, [numbers[start::WRITERS] for start in range(WRITERS)]))


def cluster_of(etcd):
    (status,) = json.loads(etcd.ctl("endpoint", "status", "--write-out=json"))
    return status["Status"]["header"]["cluster_id"]


def add_learner(etcd, url):
    """Tell the cluster of us; our member id."""
    said = etcd.ctl("member", "add", "ours", "--learner", f"--peer-urls={url}", "--write-out=json")
    return json.loads(said)["member"]["ID"]


def has_all(etcd, count):
    with etcd.client() as keys:
        assert keys.count() == count
        assert all(keys.get(b"key %d" % number) == value_of(number) for number in range(count))


def test_a_leader_delivers_and_what_it_delivered_serves_every_key(etcd, nothing_lost, tmp_path):
    fill(etcd, range(WRITES))
    delivered = threading.Event()

    def on_saved(saved, message):
        arrived.append((saved, message))
        delivered.set()

    arrived = []
    with Member(tmp_path / "member", cluster_id=cluster_of(etcd), on_saved=on_saved) as member:
        ours = add_learner(etcd, member.url)
        assert delivered.wait(CALL_S_MAX)
        saved, message = arrived[0]
        assert saved.index > WRITES
        assert message.to == ours
        assert saved.meta.conf_state.learners == (ours,)
        assert json.loads(saved.meta.data)["Root"]["Path"] == "/"
        assert bolt.read_file(saved.path).size == saved.size
        assert member.directory.verify(saved.index).problem is None
        assert member.delays_s == []
        # The leader lives, and goes on: it was told nothing that stops it.
        with etcd.client() as keys:
            keys.put(b"later", b"not in the snapshot")

        data = tmp_path / "restored"
        etcdctl("snapshot", "restore", saved.path, "--skip-hash-check", f"--data-dir={data}")
    with Etcd(data) as restored:
        has_all(restored, WRITES)


def test_a_refused_leader_sends_again_and_later_a_newer_one(etcd, nothing_lost, tmp_path):
    fill(etcd, range(WRITES))
    arrived, delivered, again = [], threading.Event(), threading.Event()

    def on_saved(saved, message):
        arrived.append(saved.index)
        if len(arrived) == 1:
            raise RuntimeError("not now")
        (delivered if len(set(arrived)) == 1 else again).set()

    held_back = []

    def delay(exchange, seconds):
        held_back.append(seconds)
        wait_unless_gone(exchange, 0.01)

    options = {"cluster_id": cluster_of(etcd), "on_saved": on_saved, "delay": delay}
    with Member(tmp_path / "member", **options) as member:
        add_learner(etcd, member.url)
        assert delivered.wait(CALL_S_MAX)
        assert held_back
        assert arrived[0] == arrived[1]  # Saved already: the second time no byte of it was read.
        # What follows our snapshot is kept for us for 30 s, in case that we want it. Then it goes.
        fill(etcd, range(WRITES))
        until_s = time.monotonic() + CALL_S_MAX
        while not again.wait(0.5):
            assert time.monotonic() < until_s, "waited in vain"
            fill(etcd, range(SNAPSHOT_COUNT))
        assert member.directory.newest().index > arrived[0] + WRITES
