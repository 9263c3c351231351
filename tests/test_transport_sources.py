"""A snapshot that fails on its way out, or is taken away: that reason comes out, and nothing is saved."""

from __future__ import annotations

import os
import threading

import pytest

from nodes import (
    CONTINUE,
    META,
    Follower,
    ImagedSnapshot,
    Impostor,
    endless,
    push,
    read_head,
    wait_until,
    written,
)
from snapstore import _fastpipe
from snapstore.errors import PipeClosed, SnapshotTruncated
from snapstore.kv.memory import MemoryKV
from snapstore.meta import SnapshotMeta
from snapstore.store import SnapshotStore
from snapstore.stream import SnapshotStream
from snapstore.testing import FakeClock
from snapstore.transport.http import SnapshotClient

pytestmark = pytest.mark.usefixtures("nothing_lost")


@pytest.mark.parametrize(
    "error",
    [
        ValueError("the KV is broken"),
        OSError(5, "Input/output error", "/kv"),
        TimeoutError("the KV timed out"),
        ConnectionResetError(104, "the KV's own server left"),
        PipeClosed("the KV was closed"),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("size_known", [True, False])
def test_what_the_kv_raises_in_the_middle_comes_out_as_it_is(follower, error, size_known):
    def pace(offset):
        if offset:
            raise error

    with pytest.raises(type(error)) as raised:
        push(follower, written(pace=pace, size_known=size_known))
    assert raised.value is error
    follower.server.close()
    assert follower.names() == []


def test_a_snapshot_shorter_than_its_size_is_truncated(follower):
    stream = written()
    stream._size += 1
    with pytest.raises(SnapshotTruncated):
        push(follower, stream)
    follower.server.close()
    assert follower.names() == []


@pytest.mark.parametrize("error", [ValueError("stopped"), TimeoutError("too slow"), None])
def test_a_stream_closed_in_the_middle_ends_the_send_with_that_reason(follower, error):
    def pace(offset):
        if offset:
            stream.close(error)

    stream = written(pace=pace)
    with pytest.raises(Exception) as raised:  # noqa: PT011 - which one it is is asserted below.
        push(follower, stream)
    assert raised.value is stream.reason
    assert isinstance(raised.value, type(error or PipeClosed("")))
    follower.server.close()
    assert follower.names() == []


def test_an_image_closed_in_the_middle_ends_the_send_with_that_reason(tmp_path, follower):
    with open(tmp_path / "image", "wb") as file:
        file.truncate(64 * 1024 * 1024)
    progress, heard = _fastpipe.Progress(), []

    def behave(connection):
        read_head(connection)
        connection.sendall(CONTINUE)
        assert closed.wait(20)
        while connection.recv(65536):
            pass

    closed = threading.Event()
    stream = SnapshotStream(META, ImagedSnapshot(tmp_path / "image"))

    def run():
        with pytest.raises(ValueError, match="stopped") as raised:
            SnapshotClient().send_snapshot(peer.url, stream, progress=progress)
        heard.append(raised.value)

    with Impostor(behave) as peer:
        sender = threading.Thread(target=run)
        sender.start()
        wait_until(lambda: progress.bytes)  # It reads the image, and cannot get rid of all of it.
        stream.close(ValueError("stopped"))
        closed.set()
        sender.join()
    assert heard == [stream.reason]


def test_a_compaction_in_the_middle_is_the_reason_that_comes_out(nothing_lost, tmp_path):
    """Of a log that is compacted between the offer and the first byte."""

    class Raft:
        def capture(self, take):
            return SnapshotMeta(7), take()

    kv, clock = MemoryKV(), FakeClock()
    for number in range(64):
        kv.put(b"%d" % number, os.urandom(256 * 1024))
    progress = _fastpipe.Progress()
    store = SnapshotStore(kv, Raft(), clock=clock)

    def compact(offer):
        assert store.close_snap_before(7)

    with store, Follower(tmp_path / "follower", on_offer=compact) as follower:
        with pytest.raises(Exception, match="created now"):
            store.get_snap()
        clock.run_pending()
        with store.get_snap() as stream, pytest.raises(PipeClosed, match="log was compacted up to 7"):
            SnapshotClient().send_snapshot(follower.url, stream, progress=progress)
        follower.server.close()
        assert follower.names() == []


def test_a_cancelled_send_ends_and_leaves_nothing(follower):
    progress = _fastpipe.Progress()
    progress.cancel()
    with endless() as stream, pytest.raises(PipeClosed, match="cancelled"):
        SnapshotClient().send_snapshot(follower.url, stream, progress=progress)
    follower.server.close()
    assert follower.names() == []
