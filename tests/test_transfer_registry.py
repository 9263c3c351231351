"""Transfers as they are seen: how far, how fast, stalled or not, how they ended; in a node and in its log."""

from __future__ import annotations

import logging
import threading
from concurrent.futures import ThreadPoolExecutor

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
from snapstore._fastpipe import Progress, digest
from snapstore.errors import (
    NoRoom,
    PeerRejected,
    PeerUnreachable,
    PipeClosed,
    SnapshotBusy,
    SnapshotExists,
    SnapshotTemporarilyUnavailable,
)
from snapstore.retry import RetryPolicy
from snapstore.stream import SnapshotStream
from snapstore.testing import FakeClock
from snapstore.transfer import ERROR_SIZE_MAX, RATE_WINDOW_S, STALLED_AFTER_S, Direction, State
from snapstore.transfers import ENDED_MAX, TransferRegistry, to_text
from snapstore.transport.http import SnapshotClient

#: Some pieces, so that a sender can stand still between two that are on their way.
PIECE = 1024 * 1024
LARGE = bytes(8 * PIECE)


class Time:
    """Seconds that stand still until they are moved."""

    def __init__(self):
        self.now_s = 100.0

    def __call__(self):
        return self.now_s


@pytest.fixture
def time():
    return Time()


@pytest.fixture
def registry(time):
    return TransferRegistry(monotonic=time)


def move(transfer, count):
    """Let the C core count so many bytes."""
    digest(bytes(count), progress=transfer.progress)


def watch(registry, total=1000):
    return registry.watch(Direction.OUT, "http://peer:1", 7, total=total)


def ended_with(registry, error, moved=0, *, cancelled=False):
    """A transfer that ended so."""
    ended = []

    def fail():
        with registry.watch(Direction.IN, "peer", 7) as transfer:
            ended.append(transfer)
            if moved:
                move(transfer, moved)
            if cancelled:
                transfer.progress.cancel()
            raise error

    with pytest.raises(type(error)):
        fail()
    return ended[0]


# One transfer.


def test_bytes_rate_and_time_left_follow_the_progress(registry, time):
    with watch(registry) as transfer:
        assert transfer.look() == (State.OFFERED, 0, 0.0, None, False, 0.0, None)
        time.now_s += 2
        move(transfer, 400)
        look = transfer.look()
        assert look == (State.MOVING, 400, 200.0, 3.0, False, 2.0, None)
        move(transfer, 600)
        assert (transfer.state, transfer.bytes, transfer.eta_s) == (State.SETTLING, 1000, None)
    assert transfer.look() == (State.DONE, 1000, 500.0, None, False, 2.0, None)


def test_the_rate_is_that_of_now_and_not_of_the_whole(registry, time):
    with watch(registry, total=None) as transfer:
        for _ in range(20):
            time.now_s += 1
            move(transfer, 10_000)
            transfer.look()
        assert transfer.rate == pytest.approx(10_000)
        for _ in range(round(RATE_WINDOW_S) + 1):
            time.now_s += 1
            move(transfer, 100)
            transfer.look()
        assert transfer.rate == pytest.approx(100)
        assert (transfer.total, transfer.eta_s) == (None, None)


def test_stalled_is_what_does_not_move_and_what_moves_again_is_not(registry, time):
    with watch(registry) as transfer:
        time.now_s += STALLED_AFTER_S - 0.001
        assert not transfer.stalled
        time.now_s += 0.001
        assert transfer.stalled  # Offered, and nobody answers.
        move(transfer, 1)
        assert not transfer.stalled
        time.now_s += STALLED_AFTER_S
        assert transfer.stalled
        move(transfer, 999)
        assert transfer.state is State.SETTLING
        time.now_s += 100 * STALLED_AFTER_S
        assert not transfer.stalled  # An fsync of gigabytes, which has a deadline of its own.


def test_another_attempt_begins_its_bytes_anew_and_forgets_none(registry):
    with watch(registry) as transfer:
        move(transfer, 900)
        transfer.begin_attempt()
        assert (transfer.state, transfer.bytes, transfer.moved) == (State.OFFERED, 0, 900)
        move(transfer, 300)
        assert (transfer.state, transfer.bytes, transfer.moved) == (State.MOVING, 300, 1200)


def test_a_progress_that_was_used_before_counts_from_where_it_stands(registry):
    progress = Progress()
    digest(bytes(500), progress=progress)
    with registry.watch(Direction.OUT, "peer", 1, total=10, progress=progress) as transfer:
        assert transfer.bytes == 0
        move(transfer, 10)
    digest(bytes(500), progress=progress)  # Somebody else's: it has ended.
    assert (transfer.bytes, transfer.moved) == (10, 10)
    assert registry.moved()[Direction.OUT] == 10


@pytest.mark.parametrize(
    ("error", "moved", "state"),
    [
        (PeerRejected(503, "busy"), 0, State.REFUSED),
        (PeerRejected(422, "the digest is wrong"), 5, State.FAILED),
        (OSError(5, "Input/output error"), 0, State.FAILED),
        (PipeClosed("cancelled"), 5, State.CANCELLED),
        (KeyboardInterrupt(), 5, State.CANCELLED),
        (SnapshotExists("it is here"), 0, State.EXISTED),
        (SnapshotExists("another one was quicker"), 5, State.EXISTED),
        (SnapshotBusy("it is being saved"), 0, State.REFUSED),
        (NoRoom("it is full"), 0, State.REFUSED),
        (NoRoom("it is full"), 5, State.FAILED),
    ],
)
def test_how_it_ended_is_told_by_the_error(registry, error, moved, state):
    transfer = ended_with(registry, error, moved)
    assert (transfer.state, transfer.moved) == (state, moved)
    assert transfer.error.startswith(type(error).__name__)


def test_a_save_that_was_cancelled_is_no_refusal(registry):
    refusal = PeerRejected(503, "closing")
    refusal.__cause__ = PipeClosed("the transfer was cancelled")
    assert ended_with(registry, refusal).state is State.CANCELLED


def test_who_waits_for_a_peer_and_is_cancelled_did_not_fail(registry):
    """No bytes move there to be cancelled: the line is cut, and says only that it broke."""
    transfer = ended_with(registry, PeerUnreachable("the line broke"), cancelled=True)
    assert transfer.state is State.CANCELLED


@pytest.mark.parametrize("told", [NoRoom("it filled up"), PeerRejected(507, "it filled up")])
def test_a_disk_that_fills_up_under_a_save_has_cancelled_nothing(registry, told):
    """Where the size is not known, the save is ended by its progress."""
    told.__cause__ = NoRoom("it filled up") if isinstance(told, PeerRejected) else PipeClosed("cancelled")
    assert ended_with(registry, told, moved=5, cancelled=True).state is State.FAILED


def test_of_a_long_error_the_beginning_is_kept(registry):
    assert len(ended_with(registry, OSError("x" * 10_000)).error) == ERROR_SIZE_MAX


# The registry.


def test_those_under_way_come_first_and_of_the_ended_few_are_kept():
    registry = TransferRegistry(ended_max=2)
    with watch(registry) as live:
        ended = [ended_with(registry, OSError(str(turn)), moved=10) for turn in range(4)]
        assert registry.transfers() == [live, ended[3], ended[2]]
        assert registry.in_flight() == {Direction.IN: 0, Direction.OUT: 1}
        assert registry.moved() == {Direction.IN: 40, Direction.OUT: 0}  # Also of those that are forgotten.
    assert registry.in_flight()[Direction.OUT] == 0
    with pytest.raises(ValueError, match="ended_max"):
        TransferRegistry(ended_max=-1)


def test_many_threads_lose_no_transfer():
    changes = []
    registry = TransferRegistry(on_change=lambda transfer: changes.append(transfer.state))

    def some(_):
        for _ in range(50):
            with registry.watch(Direction.OUT, "peer", 1) as transfer:
                move(transfer, 3)
                assert transfer in registry.transfers()
                assert registry.moved()[Direction.OUT] >= 3

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(some, range(4)))
    assert registry.moved() == {Direction.IN: 0, Direction.OUT: 600}
    assert registry.seconds[Direction.OUT, State.DONE].read()[0][-1] == 200
    assert len(registry.transfers()) == ENDED_MAX
    assert changes.count(State.DONE) == changes.count(State.OFFERED) == 200


def test_on_change_may_ask_the_registry_and_may_fail(caplog):
    seen = []

    def on_change(transfer):
        seen.append((transfer.state, len(registry.transfers())))
        raise RuntimeError("the node's own fault")

    registry = TransferRegistry(on_change=on_change)
    with registry.watch(Direction.OUT, "peer", 1):
        pass
    assert seen == [(State.OFFERED, 1), (State.DONE, 1)]
    assert [record.message for record in caplog.records] == ["on_change failed; the transfer goes on"] * 2


def test_ctrl_c_as_it_begins_is_its_end(registry):
    def interrupt(transfer):
        if transfer.state is State.OFFERED:
            raise KeyboardInterrupt

    registry = TransferRegistry(on_change=interrupt)
    with pytest.raises(KeyboardInterrupt), watch(registry):
        pytest.fail("it was interrupted")
    assert [it.state for it in registry.transfers()] == [State.CANCELLED]
    assert registry.in_flight() == {Direction.IN: 0, Direction.OUT: 0}


# The log.


def test_the_log_has_a_line_at_the_start_and_one_at_the_end_with_the_same_fields(registry, caplog):
    caplog.set_level(logging.INFO, "snapstore.transfers")
    transfer = ended_with(registry, OSError('two words,\n"quoted" line'), moved=5)
    begins, ends = caplog.records
    assert begins.message.startswith("transfer begins direction=in peer=peer index=7 bytes=0 total=null ")
    assert "transfer ends direction=in peer=peer index=7 bytes=5 " in ends.message
    assert r'error="OSError: two words,\n\"quoted\" line"' in ends.message
    assert {name: getattr(ends, name) for name in transfer.to_json()} == transfer.to_json()
    assert set(transfer.to_json()) <= set(vars(begins))
    assert (begins.state, ends.state) == ("offered", "failed")


@pytest.mark.parametrize(
    "value", ["", "null", "7", "a b", 'a"b', "a=b", "a\nb", "\x1b[2J", "ü", None, 7, True]
)
def test_each_value_in_the_log_is_one_word_or_quoted(value):
    text = to_text({"key": value})
    assert text.isprintable()
    assert text.isascii()
    word = text.removeprefix("key=")
    assert word.startswith('"') or not set(word) & set(' "=')


# In a node.


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
