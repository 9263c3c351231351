"""A real etcd takes our server for its learner, and sends it a snapshot that etcdctl and etcd then take."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from etcd_peers import Member
from real_etcd import CALL_S_MAX, Etcd, etcdctl, free_port, require_etcd
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


def start(path, *options):
    return Etcd(path, options=[f"--snapshot-count={SNAPSHOT_COUNT}", *options])


@pytest.fixture
def etcd(tmp_path):
    with start(tmp_path / "etcd") as etcd:
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
    with Member(tmp_path / "member", cluster_id=etcd.cluster_id, on_saved=on_saved) as member:
        ours = etcd.add_learner(member.url)
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


def test_a_refused_leader_sends_again_and_later_a_newer_one(nothing_lost, tmp_path):
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

    # After a new start a leader has only what follows its own last snapshot. While it runs it keeps
    # thousands of entries, and all that follows a snapshot that it sends, for 30 s.
    with start(tmp_path / "etcd") as etcd:
        fill(etcd, range(2 * SNAPSHOT_COUNT))
    with start(tmp_path / "etcd") as etcd:
        options = {"cluster_id": etcd.cluster_id, "on_saved": on_saved, "delay": delay}
        with Member(tmp_path / "member", **options) as member:
            etcd.add_learner(member.url)
            assert delivered.wait(CALL_S_MAX)
            assert held_back
            assert arrived[0] == arrived[1]  # Saved already: the second time no byte of it was read.
            fill(etcd, range(2 * SNAPSHOT_COUNT))
            etcd.__exit__()
            with start(tmp_path / "etcd"):
                assert again.wait(CALL_S_MAX)
            assert member.directory.newest().index > arrived[0]


def test_a_member_of_an_older_version_may_join_beside_us(etcd, nothing_lost, tmp_path):
    """It asks all members for the cluster's version, and gives up over one that is not its own."""
    with Member(tmp_path / "member", cluster_id=etcd.cluster_id) as member:
        etcd.add_learner(member.url)
        peer = f"http://127.0.0.1:{free_port()}"
        etcd.ctl("member", "add", "second", f"--peer-urls={peer}")
        cluster = f"default={etcd.peer_url},ours={member.url},second={peer}"
        options = ["--name=second", f"--initial-cluster={cluster}", "--initial-cluster-state=existing"]
        options += [f"--listen-peer-urls={peer}", f"--initial-advertise-peer-urls={peer}"]
        with start(tmp_path / "second", *options) as second, second.client() as keys:
            keys.put(b"key", b"by both")
