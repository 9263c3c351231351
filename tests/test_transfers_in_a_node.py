"""Transfers as a node shows them: pushes, fetches and what its store pins."""

from __future__ import annotations

import threading

import pytest

from cutting_line import CuttingLine
from nodes import (
    CONTENT,
    META,
    UNIT,
    WAIT_S,
    Follower,
    ImagedSnapshot,
    WrittenSnapshot,
    push,
    wait_until,
    written,
)
from snapstore import SnapshotStore
from snapstore.errors import (
    PeerRejected,
    SnapshotTemporarilyUnavailable,
)
from snapstore.retry import RetryPolicy
from snapstore.stream import SnapshotStream
from snapstore.testing import FakeClock
from snapstore.transfer import Direction, State
from snapstore.transfers import TransferRegistry
from snapstore.transport.http import SnapshotClient

#: Some pieces, so that a sender can stand still between two that are on their way.
PIECE = 1024 * 1024
LARGE = bytes(8 * PIECE)


class Standing:
    """A snapshot whose writer stands still in the middle until `go` is set."""

    def __init__(self):
        self.go = threading.Event()

    def stream(self):
        return SnapshotStream(META, WrittenSnapshot(LARGE, pace=self._pace, piece_size=PIECE))

    def _pace(self, offset):
        if offset == len(LARGE) // 2:
            assert self.go.wait(WAIT_S)


def test_a_push_is_seen_on_both_sides_while_it_moves(follower, background):
    registry, standing = TransferRegistry(), Standing()
    client = SnapshotClient(registry=registry)

    def send():
        with standing.stream() as stream:
            client.send_snapshot(follower.url, stream)

    pushed = background(send)
    try:
        for found in (registry, follower.server.registry):
            wait_until(lambda found=found: any(it.bytes for it in found.transfers()))
            (transfer,) = found.transfers()
            assert (transfer.index, transfer.state) == (META.index, State.MOVING)
            assert 0 < transfer.bytes < transfer.total == len(LARGE)
        assert client.list_transfers(follower.url)[0]["state"] == "moving"
    finally:
        standing.go.set()
    pushed.result(WAIT_S)
    sent, received = registry.transfers()[0], follower.server.registry.transfers()[0]
    assert (sent.direction, sent.peer) == (Direction.OUT, follower.url)
    assert (received.direction, received.peer.partition(":")[0]) == (Direction.IN, "127.0.0.1")
    assert {(it.state, it.bytes, it.error) for it in (sent, received)} == {(State.DONE, len(LARGE), None)}


def test_what_existed_and_what_was_refused_is_told_apart(follower):
    client = SnapshotClient()
    for meta in (META, META, 3):
        with written(meta=meta) as stream:
            if meta == 3:
                with pytest.raises(PeerRejected, match="stale"):
                    client.send_snapshot(follower.url, stream)
            else:
                client.send_snapshot(follower.url, stream)
    ends = [State.REFUSED, State.EXISTED, State.DONE]
    assert [it.state for it in client.registry.transfers()] == ends
    assert [it.state for it in follower.server.registry.transfers()] == ends


def test_a_fetch_is_seen_on_both_sides(follower, tmp_path):
    follower.directory.save_from(LARGE, META)
    with Follower(tmp_path / "other") as other:
        client = SnapshotClient()
        client.fetch(follower.url, META.index, other.directory)
    (fetched,), (given,) = client.registry.transfers(), follower.server.registry.transfers()
    assert (fetched.direction, given.direction) == (Direction.IN, Direction.OUT)
    for transfer in (fetched, given):
        assert (transfer.state, transfer.bytes, transfer.total) == (State.DONE, len(LARGE), len(LARGE))


def test_a_push_that_goes_on_after_a_break_comes_to_its_total_and_no_further(follower, tmp_path):
    (tmp_path / "image").write_bytes(LARGE)
    with CuttingLine(follower.url) as line:
        line.cut_after(len(LARGE) // 2)
        policy = RetryPolicy(sleep=lambda _seconds: line.cut_after(None), delay_s_first=0.001)
        client = SnapshotClient(retry=policy)
        with SnapshotStream(META, ImagedSnapshot(tmp_path / "image")) as stream:
            client.send_snapshot(line.url, stream, chunk_size=UNIT)
    (sent,) = client.registry.transfers()
    assert (sent.state, sent.bytes) == (State.DONE, len(LARGE))
    assert sent.moved > len(LARGE)  # What was read again for its digests.
    done, broken = follower.server.registry.transfers()
    assert (done.state, done.bytes) == (State.DONE, len(LARGE))
    assert broken.state is State.FAILED


def test_to_cancel_by_the_registry_ends_a_transfer(follower, background):
    standing = Standing()

    def send():
        with standing.stream() as stream, pytest.raises(PeerRejected):
            SnapshotClient().send_snapshot(follower.url, stream)

    pushed = background(send)
    try:
        wait_until(lambda: any(it.bytes for it in follower.server.registry.transfers()))
        (transfer,) = follower.server.registry.transfers()
        transfer.progress.cancel()
        wait_until(lambda: transfer.state is State.CANCELLED)
    finally:
        standing.go.set()
    pushed.result(WAIT_S)


def test_a_store_shows_the_transfers_of_its_registry_and_how_long_it_pins(follower):
    class Pins:
        def snapshot(self):
            return WrittenSnapshot(CONTENT)

        def capture(self, take):
            return META, take()

    clock, registry = FakeClock(), TransferRegistry()
    with SnapshotStore(Pins(), Pins(), clock=clock, registry=registry, clear_unused_after_s=60) as store:
        assert (store.pinned_age_s, registry.pinned_age_s) == (None, 0.0)
        with pytest.raises(SnapshotTemporarilyUnavailable):
            store.get_snap()
        clock.run_pending()
        clock.advance(7.0)
        assert (store.pinned_age_s, registry.pinned_age_s) == (7.0, 7.0)
        push(follower, store.get_snap(), registry=registry)
        assert (store.pinned_age_s, registry.pinned_age_s) == (None, 0.0)
        (transfer,) = store.transfers()
        assert (transfer.state, transfer.bytes) == (State.DONE, len(CONTENT))
