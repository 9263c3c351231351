"""The push in good times, and the follower's decision before any byte of a body."""

from __future__ import annotations

import os
import socket
import threading

import pytest
from nodes import CONTENT, META, UNIT, WAIT_S, Follower, ImagedSnapshot, RawPeer, endless, frames
from nodes import nothing_lost, put_head, written

from snapstore import _fastpipe
from snapstore.errors import PeerRejected, PeerUnreachable
from snapstore.meta import ConfState, SnapshotMeta
from snapstore.stream import SnapshotStream
from snapstore.transport.http import SnapshotClient

#: More than sockets and pipes hold between them: what is sent of it has been received in part.
LARGE = os.urandom(1024 * 1024) * 24


@pytest.fixture(autouse=True)
def _nothing_lost():
    with nothing_lost():
        yield


@pytest.fixture
def follower(tmp_path):
    with Follower(tmp_path / "follower") as follower:
        yield follower


@pytest.fixture(params=["ipv4", "ipv6", "unix"])
def address(request, tmp_path):
    if request.param == "ipv6":
        try:
            socket.create_server(("::1", 0), family=socket.AF_INET6).close()
        except OSError as error:
            pytest.skip(f"IPv6 IS NOT TESTED: this machine has none ({error})")
    return {"ipv4": "127.0.0.1:0", "ipv6": "[::1]:0", "unix": f"unix:{tmp_path}/node.sock"}[request.param]


def send(follower, stream, **options):
    with stream:
        return SnapshotClient(**options).send_snapshot(follower.url, stream, chunk_size=UNIT)


def rejected(follower, stream, **options):
    with pytest.raises(PeerRejected) as raised:
        send(follower, stream, **options)
    return raised.value


@pytest.mark.parametrize("data", [b"", b"engine" * 50_000], ids=["no data", "data"])
@pytest.mark.parametrize("size_known", [True, False], ids=["size known", "size unknown"])
def test_what_is_sent_is_what_is_saved_on_every_kind_of_address(tmp_path, address, size_known, data):
    meta = SnapshotMeta(2**64 - 1, 2**63, ConfState((1,), (2,), (3,), (4,), True), data)
    with Follower(tmp_path / "follower", address) as follower:
        sent = send(follower, written(LARGE, meta, size_known=size_known))
        saved = follower.directory.verify(meta.index)
        assert saved.path.read_bytes() == LARGE
        assert (saved.meta, saved.digest, saved.size) == (meta, sent.digest, sent.size)
        assert (sent.index, sent.size, sent.existed) == (meta.index, len(LARGE), False)
        assert sent.digest == f"crc32c:{_fastpipe.crc32c(LARGE):08x}"
        assert sent.sync_s > 0
        assert follower.saved == [meta.index]


@pytest.mark.parametrize("content", [b"", b"x", CONTENT[:UNIT], CONTENT])
def test_an_image_is_sent_whatever_its_size(tmp_path, follower, content):
    (tmp_path / "image").write_bytes(content)
    progress = _fastpipe.Progress()
    with SnapshotStream(META, ImagedSnapshot(tmp_path / "image")) as stream:
        SnapshotClient().send_snapshot(follower.url, stream, progress=progress)
    assert follower.directory.verify(META.index).path.read_bytes() == content
    assert progress.bytes == len(content)


def test_a_stored_snapshot_can_be_sent_on_to_the_next_node(tmp_path, follower):
    send(follower, written())
    with Follower(tmp_path / "next") as next_follower:
        stored = follower.directory.open(META.index)
        assert send(next_follower, SnapshotStream(stored.meta, stored)).size == len(CONTENT)
        assert next_follower.directory.verify(META.index).manifest.digest == _fastpipe.crc32c(CONTENT)


def test_a_follower_of_another_cluster_refuses(tmp_path):
    with Follower(tmp_path / "follower", cluster="blue") as follower:
        for options in ({"cluster": "green"}, {}):
            error = rejected(follower, endless(), **options)
            assert error.status == 412
            assert "'blue'" in error.reason
        assert send(follower, written(), cluster="blue").size == len(CONTENT)


def test_a_snapshot_older_than_the_newest_stored_is_stale(follower):
    follower.directory.save_from(CONTENT, 8)
    error = rejected(follower, endless())
    assert (error.status, error.reason) == (409, "stale: snapshot 8 is stored already")


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
    send(follower, written())
    error = rejected(follower, stream())
    assert (error.status, error.reason) == (409, "a different snapshot of this index is stored")


def test_a_stored_snapshot_without_a_manifest_is_a_conflict(follower):
    send(follower, written())
    (follower.directory.path / f"{META.index:016x}.json").unlink()
    error = rejected(follower, written())
    assert error.status == 409
    assert "a broken one is stored" in error.reason


def test_a_snapshot_that_is_stored_is_told_again_and_not_sent_again(follower):
    send(follower, written())
    sent = send(follower, endless())
    assert (sent.existed, sent.size) == (True, len(CONTENT))
    assert follower.saved == [7, 7]


def test_a_snapshot_that_is_stored_needs_no_room(tmp_path, monkeypatch, follower):
    send(follower, written())
    follower.directory.size_max = 1
    assert send(follower, written()).existed


def test_a_snapshot_over_the_limit_is_refused_before_and_while_it_comes(tmp_path):
    with Follower(tmp_path / "follower", size_max=100_000) as follower:
        error = rejected(follower, written(LARGE, pace=unread))
        assert (error.status, error.reason) == (413, "the limit is 100000 bytes")
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
        first = threading.Thread(target=send, args=(follower, written(pace=pace, size_known=False)))
        first.start()
        assert begun.wait(WAIT_S)
        error = rejected(follower, written(meta=SnapshotMeta(8), pace=unread))
        go_on.set()
        first.join()
        assert (error.status, error.retry_after_s) == (503, 1.0)
        assert "busy" in error.reason
        assert not send(follower, written(meta=SnapshotMeta(8))).existed
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


def test_a_node_that_fails_at_an_offer_answers_nevertheless(tmp_path, caplog):
    def fail(offer):
        raise KeyError("a bug in the node")

    with Follower(tmp_path / "follower", on_offer=fail) as follower:
        assert rejected(follower, written(pace=unread)).status == 500
    assert "a bug in the node" in caplog.text


def test_what_on_saved_raises_is_the_answer_and_the_snapshot_stays(tmp_path):
    errors = [RuntimeError("raft is stopped"), PeerRejected(425, "too early"), None]

    def step(saved):
        # It is durable by now: all of it can be read back and is verified.
        assert follower.directory.verify(saved.index).path.read_bytes() == CONTENT
        error = errors.pop(0)
        if error is not None:
            raise error

    with Follower(tmp_path / "follower", on_saved=step) as follower:
        first = rejected(follower, written())
        assert (first.status, first.reason) == (500, "saved, but the node refused it: raft is stopped")
        assert follower.indexes == [7]
        assert rejected(follower, written()).status == 425
        assert send(follower, written()).existed
        assert follower.saved == [7, 7, 7]


def test_the_answer_waits_for_the_closing_frame_and_for_on_saved(tmp_path):
    stepping, go_on = threading.Event(), threading.Event()

    def step(saved):
        stepping.set()
        assert go_on.wait(WAIT_S)

    body = frames()
    with Follower(tmp_path / "follower", on_saved=step) as follower, RawPeer(follower.url) as peer:
        peer.say(put_head())
        peer.hear_continue()
        peer.say(body[:-1])
        assert is_silent(peer)
        assert follower.indexes == []
        peer.say(body[-1:])
        assert stepping.wait(WAIT_S)
        assert is_silent(peer)
        assert follower.indexes == [7]
        go_on.set()
        assert peer.hear()[0] == 201


def is_silent(peer):
    peer.socket.setblocking(False)
    try:
        return not peer.socket.recv(1)
    except BlockingIOError:
        return True
    finally:
        peer.socket.settimeout(WAIT_S)


def test_a_save_whose_name_may_not_last_is_never_told_as_stored(tmp_path, monkeypatch):
    """After a failed fsync of the directory, only a new opening may vouch for what it has."""
    with Follower(tmp_path / "follower") as follower:
        send(follower, written())
        follower.directory._poison = OSError(5, "Input/output error")
        error = rejected(follower, written())
        assert error.status == 500
        assert "open a new SnapshotDir" in error.reason
        assert follower.saved == [7]


def test_two_leaders_with_the_same_snapshot_leave_one_of_it(tmp_path):
    outcomes = []

    def push():
        try:
            outcomes.append(send(follower, written(LARGE)).existed)
        except PeerRejected as error:
            outcomes.append(error.status)

    with Follower(tmp_path / "follower") as follower:
        leaders = [threading.Thread(target=push) for _ in range(4)]
        for leader in leaders:
            leader.start()
        for leader in leaders:
            leader.join()
        assert outcomes.count(False) == 1
        assert set(outcomes) <= {False, True, 503}
        assert follower.directory.verify(7).size == len(LARGE)


def test_a_closed_server_is_not_reachable_and_closes_twice(tmp_path):
    with Follower(tmp_path / "follower", f"unix:{tmp_path}/s") as follower:
        assert "serving" in repr(follower.server)
        follower.server.close()
        assert "closed" in repr(follower.server)
        assert not (tmp_path / "s").exists()
        with Follower(tmp_path / "other", f"unix:{tmp_path}/s") as other:
            follower.server.close()
            assert send(other, written()).index == 7
        with pytest.raises(PeerUnreachable, match="cannot be reached"):
            send(follower, written(pace=unread))


def test_closing_the_server_ends_a_save_under_way_without_a_trace(tmp_path):
    with Follower(tmp_path / "follower") as follower, RawPeer(follower.url) as peer:
        peer.say(put_head())
        peer.hear_continue()
        peer.say(frames()[:100])
        follower.server.close()
        peer.hear_all()
        assert follower.names() == []


@pytest.mark.parametrize(
    "limits", [{"saves_max": 0}, {"connections_max": 0}, {"idle_timeout_s": 0}, {"head_timeout_s": -1}]
)
def test_limits_that_allow_nothing_are_refused(tmp_path, limits):
    with pytest.raises(ValueError, match="1 or more"):
        Follower(tmp_path / "follower", **limits)
