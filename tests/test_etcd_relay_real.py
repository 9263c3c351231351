"""A real leader and a real follower, and between them a relay of ours that saves and sends on.

The follower is known to its leader by the address of a plain line. That leads to the relay, or, to
see what etcd does without one, to the follower itself, and does what lines do: it breaks, and flips bits.
"""

import contextlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from etcd_relay import CutOnce, Flip, Line, Relay
from nodes import ImagedSnapshot
from real_etcd import CALL_S_MAX, Etcd, require_etcd
from rotten import rot
from snapstore.errors import SnapshotTruncated
from snapstore.stream import SnapshotStream
from snapstore.transport.http import SnapshotClient

pytestmark = pytest.mark.slow

#: etcd keeps 5000 entries of its log behind its own last snapshot, which it takes every so many: so a
#: member that begins with nothing needs a snapshot.
WRITES, SNAPSHOT_COUNT, WRITERS = 6000, 100, 8

#: A value that is nowhere else, and what is left of it by one bit.
TRUE, FALSE = b"the one and only " * 16, b"the one and onlx " + b"the one and only " * 15

#: How a meta record of bbolt begins: its magic number, then its version, and that with a bit more.
META_HEAD, META_FLIPPED = bytes.fromhex("edda0ced 02000000"), bytes.fromhex("edda0ced 03000000")


@pytest.fixture(scope="module")
def leader(tmp_path_factory):
    require_etcd()
    with Etcd(
        tmp_path_factory.mktemp("leader") / "data", options=[f"--snapshot-count={SNAPSHOT_COUNT}"]
    ) as leader:

        def write(numbers):
            with leader.client() as keys:
                for number in numbers:
                    keys.put(b"key %d" % number, b"value %d " % number * 40)

        with leader.client() as keys:
            keys.put(b"true", TRUE)
        with ThreadPoolExecutor(WRITERS) as pool:
            list(pool.map(write, [range(start, WRITES, WRITERS) for start in range(WRITERS)]))
        yield leader


def everything(etcd):
    with etcd.client() as keys:
        return keys.everything()


@contextlib.contextmanager
def joining(leader, line, path, relay=None):
    """A follower that begins with nothing, by way of `line`, and of `relay` where there is one."""
    member = leader.add_learner(line.url)
    with Etcd(path, joins=leader, peer_url=line.url) as follower:
        follower.member = member
        if relay is not None:
            relay.target = follower.peer_url
        line.target = follower.peer_url if relay is None else relay.url
        try:
            yield follower
        finally:
            leader.remove(member)  # While it lives: it may have got a vote.


def relayed(leader, tmp_path, *, meddle=lambda data: data, spoil=lambda saved: None):
    """Join a follower behind a relay and wait until it has caught up; the relay, ended, and the content."""
    relay = Relay(tmp_path / "relay", leader.cluster_id, spoil)
    with relay, Line(meddle) as line, joining(leader, line, tmp_path / "follower", relay) as follower:
        follower.wait_ready()
        assert everything(follower) == everything(leader)
        assert [saved.index for saved in relay.directory.list()] == [relay.sent[-1]]
    return relay


# With a relay of ours.


def test_a_follower_installs_what_the_relay_sends_on_and_votes(leader, nothing_lost, tmp_path):
    relay = Relay(tmp_path / "relay", leader.cluster_id)
    with relay, Line() as line, joining(leader, line, tmp_path / "follower", relay) as follower:
        follower.wait_ready()
        assert relay.sent[0] > WRITES
        assert relay.refusals == []
        assert everything(follower) == everything(leader)
        # It goes on from there, and becomes one without whom nothing can be written.
        leader.promote(follower.member)
        with leader.client() as keys, follower.client() as others:
            keys.put(b"later", b"by log")
            assert others.get(b"later") == b"by log"
            assert others.count() == len(everything(leader)) == WRITES + 2


def test_a_line_that_breaks_saves_nothing_and_the_leader_comes_again(leader, nothing_lost, tmp_path):
    cut = CutOnce()
    relay = relayed(leader, tmp_path, meddle=cut)
    assert cut.done
    assert relay.refusals == [[]]
    assert len(relay.sent) == 1


def test_a_bit_that_flips_in_a_meta_page_is_refused(leader, nothing_lost, tmp_path):
    flip = Flip(META_HEAD, META_FLIPPED, 1)
    relay = relayed(leader, tmp_path, meddle=flip)
    assert flip.done == 1
    assert relay.refusals == [[]]


def test_a_bit_that_flips_on_the_relay_s_disk_is_not_sent_on(leader, nothing_lost, tmp_path):
    spoiled = []

    def spoil(saved):
        if not spoiled:
            spoiled.append(saved.index)
            rot(saved.path, 8 * (saved.size // 2))

    relay = relayed(leader, tmp_path, spoil=spoil)
    (error,) = relay.broken
    assert "the digest of chunk" in str(error)
    assert relay.refusals == [[]]  # It was set aside, and the leader sent a good one.


# etcd by itself.


@pytest.mark.parametrize(
    ("old", "new", "times"),
    [(META_HEAD, META_FLIPPED, 1), (TRUE, FALSE, WRITES)],
    ids=["a meta page", "a value"],
)
def test_without_a_relay_etcd_takes_a_flipped_bit(leader, nothing_lost, tmp_path, old, new, times):
    flip = Flip(old, new, times)
    with Line(flip) as line, joining(leader, line, tmp_path / "follower") as follower:
        follower.wait_ready()
        assert flip.done
        expected = everything(leader) | ({b"true": FALSE} if old == TRUE else {})
        assert everything(follower) == expected


def test_a_database_cut_short_etcd_takes_and_dies_of_it(leader, nothing_lost, tmp_path):
    saved, over, database = threading.Event(), threading.Event(), tmp_path / "database"

    def spoil(_):
        saved.set()
        assert over.wait(CALL_S_MAX)
        raise RuntimeError("this one goes by hand")

    relay = Relay(tmp_path / "relay", leader.cluster_id, spoil)
    with relay, Line() as line, joining(leader, line, tmp_path / "follower", relay) as follower:
        try:
            assert saved.wait(CALL_S_MAX)
            with relay.directory.open_newest() as stored:
                database.write_bytes(stored.path.read_bytes())
                meta, half = stored.meta, stored.size // 2

            def send(stream, **options):
                SnapshotClient().send_etcd(
                    follower.peer_url, stream, relay.message, cluster_id=leader.cluster_id, **options
                )

            with SnapshotStream(meta, ImagedSnapshot(database)) as stream:
                os.truncate(database, half)
                with pytest.raises(OSError, match="Input/output error"):
                    send(stream)
            # The body broke off, and that etcd does notice.
            assert follower.wait_said("unexpected EOF")
            with SnapshotStream(meta, ImagedSnapshot(database)) as stream:
                with pytest.raises(SnapshotTruncated, match=f"{half} bytes of {2 * half}"):
                    send(stream)
                send(stream, verify=False)
            assert follower.wait_said("successfully received and saved database snapshot")
            assert follower.wait_said("go.etcd.io/bbolt")  # Its panic, and where that was.
        finally:
            over.set()
