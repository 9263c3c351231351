"""The push in good times: what arrives, when the answer comes, what becomes of the node's own word."""

from __future__ import annotations

import os
import socket
import threading

import pytest

from nodes import (
    CONTENT,
    META,
    UNIT,
    WAIT_S,
    Follower,
    ImagedSnapshot,
    RawPeer,
    endless,
    frames,
    push,
    put_head,
    written,
)
from snapstore import _fastpipe
from snapstore.errors import PeerRejected, PeerUnreachable
from snapstore.meta import ConfState, SnapshotMeta
from snapstore.stream import SnapshotStream
from snapstore.transport.http import SnapshotClient

#: More than sockets hold, so that the two sides really take turns.
LARGE = os.urandom(1024 * 1024) * 8

#: Some of an engine's own, larger than a piece of the head.
ENGINE_DATA = b"engine" * 50_000

pytestmark = pytest.mark.usefixtures("nothing_lost")


@pytest.fixture(params=["ipv4", "ipv6", "unix"])
def address(request, tmp_path):
    if request.param == "ipv6":
        try:
            socket.create_server(("::1", 0), family=socket.AF_INET6).close()
        except OSError as error:
            pytest.skip(f"IPv6 IS NOT TESTED: this machine has none ({error})")
    return {"ipv4": "127.0.0.1:0", "ipv6": "[::1]:0", "unix": f"unix:{tmp_path}/node.sock"}[request.param]


@pytest.mark.parametrize(
    ("size_known", "data"),
    [
        pytest.param(True, b"", id="size known"),
        pytest.param(False, ENGINE_DATA, id="size unknown, data"),
        pytest.param(True, ENGINE_DATA, id="size known, data", marks=pytest.mark.slow),
        pytest.param(False, b"", id="size unknown", marks=pytest.mark.slow),
    ],
)
def test_what_is_sent_is_what_is_saved_on_every_kind_of_address(tmp_path, address, size_known, data):
    meta = SnapshotMeta(2**64 - 1, 2**63, ConfState((1,), (2,), (3,), (4,), True), data)
    with Follower(tmp_path / "follower", address) as follower:
        sent = push(follower, written(LARGE, meta, size_known=size_known))
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
    push(follower, written())
    with Follower(tmp_path / "next") as next_follower:
        stored = follower.directory.open(META.index)
        assert push(next_follower, SnapshotStream(stored.meta, stored)).size == len(CONTENT)
        assert next_follower.directory.verify(META.index).manifest.digest == _fastpipe.crc32c(CONTENT)


def test_what_on_saved_raises_is_the_answer_and_the_snapshot_stays(tmp_path):
    errors = [RuntimeError("raft is stopped"), PeerRejected(425, "too early"), None]

    def step(saved):
        # It is durable by now: all of it can be read back and is verified.
        assert follower.directory.verify(saved.index).path.read_bytes() == CONTENT
        error = errors.pop(0)
        if error is not None:
            raise error

    with Follower(tmp_path / "follower", on_saved=step) as follower:
        with pytest.raises(PeerRejected) as first:
            push(follower, written())
        assert first.value.status == 500
        assert first.value.reason == "saved, but the node refused it: raft is stopped"
        assert follower.indexes == [7]
        with pytest.raises(PeerRejected, match="425: too early"):
            push(follower, written())
        assert push(follower, written()).existed
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


def test_a_closed_server_is_not_reachable_and_closes_twice(tmp_path):
    with Follower(tmp_path / "follower", f"unix:{tmp_path}/s") as follower:
        assert "serving" in repr(follower.server)
        follower.server.close()
        assert "closed" in repr(follower.server)
        assert not (tmp_path / "s").exists()
        with Follower(tmp_path / "other", f"unix:{tmp_path}/s") as other:
            follower.server.close()
            assert push(other, written()).index == 7
        with pytest.raises(PeerUnreachable, match="cannot be reached"):
            push(follower, endless())


def test_closing_the_server_ends_a_save_under_way_without_a_trace(tmp_path):
    with Follower(tmp_path / "follower") as follower, RawPeer(follower.url) as peer:
        peer.say(put_head())
        peer.hear_continue()
        peer.say(frames()[:100])
        follower.server.close()
        peer.hear_all()
        assert follower.names() == []


@pytest.mark.parametrize("limits", [{"saves_max": 0}, {"connections_max": 0}])
def test_limits_that_allow_nothing_are_refused(tmp_path, limits):
    with pytest.raises(ValueError, match="1 or more"):
        Follower(tmp_path / "follower", **limits)
