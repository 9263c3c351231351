"""Transfers as they are seen: how far, how fast, stalled or not, how they ended, and what the log says."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor

import pytest

from snapstore._fastpipe import Progress, digest
from snapstore.errors import (
    NoRoom,
    PeerRejected,
    PeerUnreachable,
    PipeClosed,
    SnapshotBusy,
    SnapshotExists,
)
from snapstore.testing import FakeClock
from snapstore.transfer import ERROR_SIZE_MAX, RATE_WINDOW_S, STALLED_AFTER_S, Direction, State
from snapstore.transfers import ENDED_MAX, TransferRegistry, to_text


@pytest.fixture
def clock():
    return FakeClock(100.0)


@pytest.fixture
def registry(clock):
    return TransferRegistry(monotonic=clock.monotonic)


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


def test_bytes_rate_and_time_left_follow_the_progress(registry, clock):
    with watch(registry) as transfer:
        assert transfer.look() == (State.OFFERED, 0, 0.0, None, False, 0.0, None)
        clock.advance(2)
        move(transfer, 400)
        look = transfer.look()
        assert look == (State.MOVING, 400, 200.0, 3.0, False, 2.0, None)
        move(transfer, 600)
        assert (transfer.state, transfer.bytes, transfer.eta_s) == (State.SETTLING, 1000, None)
    assert transfer.look() == (State.DONE, 1000, 500.0, None, False, 2.0, None)


def test_the_rate_is_that_of_now_and_not_of_the_whole(registry, clock):
    with watch(registry, total=None) as transfer:
        for _ in range(20):
            clock.advance(1)
            move(transfer, 10_000)
            transfer.look()
        assert transfer.rate == pytest.approx(10_000)
        for _ in range(round(RATE_WINDOW_S) + 1):
            clock.advance(1)
            move(transfer, 100)
            transfer.look()
        assert transfer.rate == pytest.approx(100)
        assert (transfer.total, transfer.eta_s) == (None, None)


def test_stalled_is_what_does_not_move_and_what_moves_again_is_not(registry, clock):
    with watch(registry) as transfer:
        clock.advance(STALLED_AFTER_S - 0.001)
        assert not transfer.stalled
        clock.advance(0.001)
        assert transfer.stalled  # Offered, and nobody answers.
        move(transfer, 1)
        assert not transfer.stalled
        clock.advance(STALLED_AFTER_S)
        assert transfer.stalled
        move(transfer, 999)
        assert transfer.state is State.SETTLING
        clock.advance(100 * STALLED_AFTER_S)
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
