"""The follower's decision, before any byte of a body: each no with its status and its reason."""

from __future__ import annotations

import os
import threading

import pytest

from nodes import (
    CONTENT,
    META,
    UNIT,
    WAIT_S,
    Follower,
    RawPeer,
    endless,
    push,
    put_head,
    written,
)
from snapstore.errors import PeerRejected
from snapstore.meta import SnapshotMeta

#: More than sockets hold, so that the two sides really take turns.
LARGE = os.urandom(1024 * 1024) * 8


pytestmark = pytest.mark.usefixtures("nothing_lost")


def rejected(follower, stream, **options):
    with pytest.raises(PeerRejected) as raised:
        push(follower, stream, **options)
    return raised.value


def test_a_follower_of_another_cluster_refuses(tmp_path):
    with Follower(tmp_path / "follower", cluster="blue") as follower:
        for options in ({"cluster": "green"}, {}):
            error = rejected(follower, endless(), **options)
            assert error.status == 412
            assert "'blue'" in error.reason
        assert push(follower, written(), cluster="blue").size == len(CONTENT)


def test_a_snapshot_older_than_the_newest_stored_is_stale(follower):
    follower.directory.save_from(CONTENT, 8)
    error = rejected(follower, endless())
    assert (error.status, error.reason) == (409, "stale: snapshot 8 is stored already")


def test_who_sends_its_body_unasked_reads_the_refusal_all_the_same(follower):
    """What is left unread would turn the answer into a reset."""
    follower.directory.save_from(CONTENT, 8)
    with RawPeer(follower.url) as peer:
        length = len(LARGE) + 20 * (len(LARGE) // UNIT + 1)
        peer.say(put_head(expect=False, Snapstore_Size=str(len(LARGE)), Content_Length=str(length)))
        peer.say(bytes(length))
        assert peer.hear()[0] == 409
        assert peer.socket.recv(1) == b""


@pytest.mark.parametrize(
    "stream",
    [
        lambda: written(CONTENT[1:]),
        lambda: endless(SnapshotMeta(7, 4, META.conf_state)),
        lambda: endless(SnapshotMeta(7, 3)),
        lambda: endless(SnapshotMeta(7, 3, META.conf_state, b"engine")),
    ],
    ids=["size", "term", "conf state", "data"],
)
def test_a_different_snapshot_of_a_stored_index_is_a_conflict(follower, stream):
    push(follower, written())
    error = rejected(follower, stream())
    assert (error.status, error.reason) == (409, "a different snapshot of this index is stored")


def test_a_stored_snapshot_that_is_known_to_be_broken_makes_way(follower):
    push(follower, written())
    (follower.directory.path / f"{META.index:016x}.json").unlink()
    assert not push(follower, written()).existed
    assert follower.directory.verify(META.index).path.read_bytes() == CONTENT
    (aside,) = follower.directory.broken()
    assert aside.path.read_bytes() == CONTENT


def test_a_snapshot_that_is_stored_is_told_again_and_not_sent_again(follower):
    push(follower, written())
    sent = push(follower, endless())
    assert (sent.existed, sent.size) == (True, len(CONTENT))
    assert follower.saved == [7, 7]


def test_a_snapshot_that_is_stored_needs_no_room(tmp_path, monkeypatch, follower):
    push(follower, written())
    follower.directory.size_max = 1
    assert push(follower, written()).existed


def test_a_snapshot_over_the_limit_is_refused_before_and_while_it_comes(tmp_path):
    with Follower(tmp_path / "follower", limits={"size_max": 100_000}) as follower:
        error = rejected(follower, written(LARGE, pace=unread))
        assert error.status == 413
        assert error.reason == f"{len(LARGE)} bytes are more than the limit, 100000 bytes"
        assert rejected(follower, endless()).status == 413
        assert follower.names() == []


def unread(offset):
    pytest.fail("a byte was read")


def test_a_snapshot_larger_than_the_disk_is_refused(follower):
    with RawPeer(follower.url) as peer:
        offered = 2**45
        length = offered + 20 * (offered // UNIT + 1)
        peer.say(put_head(Snapstore_Size=str(offered), Content_Length=str(length)))
        status, _, words = peer.hear()
    assert status == 507
    assert b"bytes free" in words


def test_a_busy_follower_says_when_to_come_again(tmp_path):
    go_on, begun = threading.Event(), threading.Event()

    def pace(offset):
        if offset:
            begun.set()
            assert go_on.wait(WAIT_S)

    with Follower(tmp_path / "follower", saves_max=1) as follower:
        first = threading.Thread(target=push, args=(follower, written(pace=pace, size_known=False)))
        first.start()
        assert begun.wait(WAIT_S)
        error = rejected(follower, written(meta=SnapshotMeta(8), pace=unread))
        go_on.set()
        first.join()
        assert (error.status, error.retry_after_s) == (503, 1.0)
        assert "busy" in error.reason
        assert not push(follower, written(meta=SnapshotMeta(8))).existed
        assert follower.indexes == [7, 8]


def test_the_node_may_refuse_an_offer_in_its_own_words(tmp_path):
    offers = []

    def refuse(offer):
        offers.append(offer)
        raise PeerRejected(429, "this node is restoring", 90)

    with Follower(tmp_path / "follower", on_offer=refuse) as follower:
        error = rejected(follower, written(pace=unread))
    assert (error.status, error.reason, error.retry_after_s) == (429, "this node is restoring", 90.0)
    assert (offers[0].meta, offers[0].size) == (META, len(CONTENT))


@pytest.mark.parametrize("failure", [KeyError, ConnectionRefusedError, TimeoutError])
def test_a_node_that_fails_at_an_offer_answers_nevertheless(tmp_path, caplog, failure):
    """Errors that look like a broken line are the node's own here, and the line is whole."""

    def fail(offer):
        raise failure("a bug in the node")

    with Follower(tmp_path / "follower", on_offer=fail) as follower:
        error = rejected(follower, written(pace=unread))
    assert error.status == 500
    assert "a bug in the node" in error.reason
    assert "a bug in the node" in caplog.text


def test_a_save_whose_name_may_not_last_is_never_told_as_stored(tmp_path, monkeypatch):
    """After a failed fsync of the directory, only a new opening may vouch for what it has."""
    with Follower(tmp_path / "follower") as follower:
        push(follower, written())
        follower.directory._directory_sync.fail(5)
        error = rejected(follower, written())
        assert error.status == 500
        assert "open a new SnapshotDir" in error.reason
        assert follower.saved == [7]


def test_two_leaders_with_the_same_snapshot_leave_one_of_it(tmp_path):
    outcomes = []

    def lead():
        try:
            outcomes.append(push(follower, written(LARGE)).existed)
        except PeerRejected as error:
            outcomes.append(error.status)

    with Follower(tmp_path / "follower") as follower:
        leaders = [threading.Thread(target=lead) for _ in range(4)]
        for leader in leaders:
            leader.start()
        for leader in leaders:
            leader.join()
        assert outcomes.count(False) == 1
        assert set(outcomes) <= {False, True, 503}
        assert follower.directory.verify(7).size == len(LARGE)
