"""The store: what etcd's snapshotStore promised, and each way in which it could hang, panic or leak."""

from __future__ import annotations

import gc
import itertools
import logging
import math
import os
import threading

import pytest

from processes import is_refused
from snapstore import _fastpipe
from snapstore.capture import CaptureQueue
from snapstore.clock import SystemClock
from snapstore.errors import (
    CaptureTimeout,
    PipeClosed,
    SnapshotNotInUse,
    SnapshotTemporarilyUnavailable,
    StoreClosed,
)
from snapstore.meta import SnapshotMeta
from snapstore.store import MOVES, SnapshotStore, State
from snapstore.testing import FakeClock

WAIT_S = 20.0
CONTENT = b"as of the pinned moment" * 1000


class FakeSnapshot:
    """Written out only; counts how often it is closed."""

    def __init__(self, kv, number):
        self.kv, self.number = kv, number
        self.size = len(CONTENT)
        self.closed = 0

    def write_to(self, writer):
        if self.kv.write_error is not None:
            writer.write(CONTENT[:10])
            raise self.kv.write_error
        writer.write(CONTENT)
        return len(CONTENT)

    def close(self):
        self.closed += 1
        if self.kv.close_error is not None:
            raise self.kv.close_error


class FakeImagedSnapshot(FakeSnapshot):
    """Stands in a file in memory, so that it can be read at random."""

    def __init__(self, kv, number):
        super().__init__(kv, number)
        fd = os.memfd_create("snapshot")
        os.write(fd, CONTENT)
        self._image = _fastpipe.Image(fd, len(CONTENT))

    def image(self):
        if self.kv.image_error is not None:
            raise self.kv.image_error
        self.kv.image_threads.append(threading.get_ident())
        return self._image

    def close(self):
        self._image.close()
        super().close()


class FakeNode:
    """A KV and the raft over it in one: each capture stands one entry further, from index 10 on."""

    def __init__(self, imaged):
        self.imaged = imaged
        self.snapshots = []
        self.indices = itertools.count(10)
        self.capture_error = self.image_error = self.write_error = self.close_error = None
        self.image_threads = []
        self.while_capturing = lambda: None

    def snapshot(self):
        kind = FakeImagedSnapshot if self.imaged else FakeSnapshot
        self.snapshots.append(kind(self, len(self.snapshots)))
        return self.snapshots[-1]

    def capture(self, take):
        if self.capture_error is not None:
            raise self.capture_error
        result = take()
        self.while_capturing()
        return SnapshotMeta(next(self.indices), 1), result

    @property
    def closed(self):
        return [snapshot.closed for snapshot in self.snapshots]


@pytest.fixture(params=[True, False], ids=["imaged", "written"])
def node(request):
    return FakeNode(request.param)


@pytest.fixture
def imaged_node():
    return FakeNode(imaged=True)


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def store(node, clock):
    with SnapshotStore(node, node, clock=clock) as store:
        yield store


def ask(store, words="being created"):
    """Ask for a snapshot where none can be given now."""
    with pytest.raises(SnapshotTemporarilyUnavailable, match=words):
        store.get_snap()


def created(store, clock):
    """Have a snapshot created."""
    ask(store)
    clock.run_pending()
    assert store.state is State.READY
    return store


def read(stream):
    return b"".join(bytes(memoryview(chunk)) for chunk in stream.chunks())


class TestAsInEtcd:
    def test_a_snapshot_is_created_in_the_background_when_first_asked_for(self, store, node, clock):
        assert store.state is State.EMPTY
        ask(store, "none was stored")
        assert store.state is State.CREATING
        assert node.snapshots == []
        ask(store, "is being created")
        assert clock.run_pending() == 1  # At most one creation, however often it is asked for.
        assert store.state is State.READY
        with store.get_snap() as stream:
            assert stream.meta == SnapshotMeta(10, 1)
            assert stream.size == len(CONTENT)
            assert read(stream) == CONTENT

    def test_a_snapshot_in_use_is_not_handed_out_twice(self, store, node, clock):
        stream = created(store, clock).get_snap()
        assert store.state is State.IN_USE
        ask(store, "snapshot 10 is in use")
        assert clock.run_pending() == 0
        stream.close()

    def test_unused_it_is_there_after_4_9_seconds_and_gone_after_5(self, store, node, clock):
        created(store, clock)
        clock.advance(4.9)
        assert store.state is State.READY
        assert node.closed == [0]
        clock.advance(0.1)
        assert store.state is State.EMPTY
        assert node.closed == [1]
        created(store, clock)

    def test_in_use_it_stays_however_long(self, store, node, clock):
        with created(store, clock).get_snap():
            clock.advance(3600)
            assert store.state is State.IN_USE
            assert node.closed == [0]

    def test_clearing_the_used_one_closes_it_and_the_next_is_a_new_one(self, store, node, clock):
        stream = created(store, clock).get_snap()
        store.clear_used_snap()
        assert stream.closed
        assert store.state is State.EMPTY
        assert node.closed == [1]
        with created(store, clock).get_snap() as stream:
            assert stream.meta.index == 11

    @pytest.mark.parametrize("in_use", [False, True])
    @pytest.mark.parametrize(("index", "closed"), [(8, False), (9, False), (10, True), (11, True)])
    def test_compaction_closes_up_to_its_index(self, store, node, clock, index, closed, in_use):
        created(store, clock)
        stream = store.get_snap() if in_use else None
        assert store.close_snap_before(index) is closed
        assert node.closed == [closed]
        if stream is not None:
            assert stream.closed is closed
            stream.close()

    def test_compaction_without_a_snapshot_closes_none(self, store, clock):
        assert store.close_snap_before(100) is False
        ask(store)
        assert clock.run_pending() == 1
        assert store.state is State.READY

    @pytest.mark.parametrize(("index", "state"), [(9, State.READY), (10, State.EMPTY)])
    def test_a_snapshot_compacted_while_it_was_created_is_not_handed_out(
        self, store, node, clock, index, state
    ):
        ask(store)
        assert store.close_snap_before(index) is False
        assert clock.run_pending() == 1
        assert store.state is state
        assert node.closed == [state is State.EMPTY]
        if state is State.EMPTY:  # The next one stands where the log stands, and is handed out.
            created(store, clock)
            store.get_snap().close()


def collect(held):
    """Let go of what is in `held`, and have it collected: not before, as it might come by itself."""
    held.clear()
    gc.collect()


class TestRelease:
    def test_leaving_with_releases(self, store, node, clock):
        with created(store, clock).get_snap():
            pass
        assert store.state is State.EMPTY
        assert node.closed == [1]

    def test_leaving_by_an_exception_releases_too(self, store, node, clock):
        with pytest.raises(OSError, match="peer gone"), created(store, clock).get_snap():
            raise OSError("peer gone")
        assert store.state is State.EMPTY
        assert node.closed == [1]

    def test_releasing_what_nobody_holds_is_refused_and_breaks_nothing(self, store, node, clock):
        with pytest.raises(SnapshotNotInUse):
            store.clear_used_snap()
        created(store, clock)
        with pytest.raises(SnapshotNotInUse):
            store.clear_used_snap()
        assert store.state is State.READY
        stream = store.get_snap()
        store.clear_used_snap(stream)
        for again in (store.clear_used_snap, lambda: store.clear_used_snap(stream)):
            with pytest.raises(SnapshotNotInUse, match="released already"):
                again()
        stream.close()
        assert node.closed == [1]
        with created(store, clock).get_snap() as stream:
            assert read(stream) == CONTENT

    def test_a_stream_is_of_no_use_after_its_release(self, store, clock):
        stream = created(store, clock).get_snap()
        store.clear_used_snap()
        with pytest.raises(PipeClosed, match="snapshot 10"):
            stream.readinto(bytearray(1))

    def test_a_stream_of_another_store_is_not_in_use_here(self, store, node, clock):
        stream = created(store, clock).get_snap()
        other_node = FakeNode(imaged=True)
        with SnapshotStore(other_node, other_node, clock=clock) as other:
            other_stream = created(other, clock).get_snap()
            with pytest.raises(SnapshotNotInUse):
                store.clear_used_snap(other_stream)
        assert not stream.closed
        store.clear_used_snap(stream)

    def test_a_dropped_stream_is_released_in_the_background(self, store, node, clock):
        stream = created(store, clock).get_snap()
        with pytest.warns(ResourceWarning, match="unclosed"):
            del stream
        # A finalizer may run while this very thread is inside the store: it only leaves a note.
        assert store.state is State.IN_USE
        assert clock.run_pending() == 1
        assert store.state is State.EMPTY
        assert node.closed == [1]

    def test_a_finalizer_under_the_stores_lock_does_not_hang(self, store, node, clock):
        cycle = [created(store, clock).get_snap()]
        cycle.append(cycle)
        held = [cycle]
        del cycle
        with pytest.warns(ResourceWarning), store._lock:
            collect(held)
        assert clock.run_pending() == 1
        assert node.closed == [1]

    def test_a_dropped_stream_is_still_the_oldest_to_be_cleared(self, store, node, clock):
        stream = created(store, clock).get_snap()
        with pytest.warns(ResourceWarning):
            del stream
        store.clear_used_snap()
        assert node.closed == [1]
        created(store, clock)  # Runs the finalizer's late release too, which must not hit this one.
        assert store.state is State.READY


class TestCompactedInUse:
    def test_the_reader_is_told_and_the_next_get_makes_a_new_one(self, store, node, clock):
        stream = created(store, clock).get_snap()
        assert stream.readinto(bytearray(5)) == 5
        assert store.close_snap_before(10)
        assert node.closed == [1]
        with pytest.raises(PipeClosed, match="compacted up to 10"):
            stream.readinto(bytearray(5))
        assert store.close_snap_before(10) is False
        with created(store, clock).get_snap() as newer:
            assert newer.meta.index == 11
            assert read(newer) == CONTENT
        stream.close()
        assert node.closed == [1, 1]

    @pytest.mark.parametrize("settle", ["clear", "clear by name", "close", "drop"])
    def test_its_late_release_does_not_hit_the_stream_of_a_newer_holder(self, store, node, clock, settle):
        old = created(store, clock).get_snap()
        assert store.close_snap_before(10)
        new = created(store, clock).get_snap()
        if settle == "clear":
            store.clear_used_snap()
        elif settle == "clear by name":
            store.clear_used_snap(old)
        elif settle == "close":
            old.close()
        else:
            with pytest.warns(ResourceWarning):
                del old
            clock.run_pending()
        assert not new.closed
        assert read(new) == CONTENT
        store.clear_used_snap()
        assert new.closed
        assert node.closed == [1, 1]
        with pytest.raises(SnapshotNotInUse):
            store.clear_used_snap()

    @pytest.mark.parametrize("index", [-1, 2**64, True, 1.0, "1", None])
    def test_an_index_that_is_none_is_refused(self, store, clock, index):
        created(store, clock)
        with pytest.raises((TypeError, ValueError), match="index"):
            store.close_snap_before(index)
        assert store.state is State.READY


class TestTimers:
    def test_a_late_timer_leaves_the_next_snapshot_alone(self, store, node, clock):
        created(store, clock)  # Would be cleared at 5.
        clock.advance(4)
        store.get_snap().close()
        created(store, clock)  # At 4, to be cleared at 9.
        clock.advance(1)
        assert store.state is State.READY
        clock.advance(4)
        assert store.state is State.EMPTY
        assert node.closed == [1, 1]

    def test_a_timer_that_fires_while_the_next_is_being_created_leaves_it_alone(self, store, node, clock):
        created(store, clock)
        store.close_snap_before(10)
        ask(store)
        clock.advance(5)
        assert store.state is State.CREATING
        clock.run_pending()
        assert store.state is State.READY

    def test_the_interval_can_be_set(self, node, clock):
        with SnapshotStore(node, node, clock=clock, clear_unused_after_s=0.5) as store:
            created(store, clock)
            clock.advance(0.5)
            assert store.state is State.EMPTY

    def test_an_infinite_interval_is_never(self, node, clock):
        with SnapshotStore(node, node, clock=clock, clear_unused_after_s=math.inf) as store:
            created(store, clock)
            clock.advance(1e9)
            assert store.state is State.READY

    @pytest.mark.parametrize("option", [{"clear_unused_after_s": 0}, {"clear_unused_after_s": math.nan}])
    def test_an_interval_that_is_none_is_refused(self, node, clock, option):
        with pytest.raises(ValueError, match="clear_unused_after_s"):
            SnapshotStore(node, node, clock=clock, **option)


class TestFailedCreation:
    def test_it_is_kept_logged_once_told_and_tried_again(self, store, node, clock, caplog):
        node.capture_error = CaptureTimeout("the loop is stuck")
        ask(store)
        clock.run_pending()
        assert store.state is State.EMPTY
        assert store.last_error is node.capture_error
        assert [record.exc_info[1] for record in caplog.records] == [node.capture_error]
        node.capture_error = None
        ask(store, "the loop is stuck")
        clock.run_pending()
        assert store.state is State.READY
        assert store.last_error is None

    def test_a_backend_that_fails_to_prepare_its_image_leaks_no_pin(self, imaged_node, clock):
        imaged_node.image_error = OSError(5, "media error")
        with SnapshotStore(imaged_node, imaged_node, clock=clock) as store:
            ask(store)
            clock.run_pending()
            assert store.last_error is imaged_node.image_error
            assert imaged_node.closed == [1]

    def test_what_is_no_meta_is_a_failed_creation(self, store, node, clock):
        node.indices = itertools.repeat("ten")
        ask(store)
        clock.run_pending()
        assert isinstance(store.last_error, TypeError)
        assert store.state is State.EMPTY

    def test_an_interrupt_while_creating_does_not_leave_it_creating(self, store, node, clock):
        node.capture_error = KeyboardInterrupt()
        ask(store)
        with pytest.raises(KeyboardInterrupt):
            clock.run_pending()
        assert store.state is State.EMPTY

    def test_a_clock_that_takes_no_task_does_not_leave_it_creating(self, node):
        clock = SystemClock()
        with SnapshotStore(node, node, clock=clock) as store:
            clock.close()
            for _ in range(2):
                with pytest.raises(RuntimeError, match="closed"):
                    store.get_snap()
            assert store.state is State.EMPTY

    def test_a_kv_that_fails_while_it_is_written_out_reaches_the_reader(self, clock):
        node = FakeNode(imaged=False)
        node.write_error = OSError(5, "media error")
        with SnapshotStore(node, node, clock=clock) as store:
            with pytest.raises(OSError, match="media error"), created(store, clock).get_snap() as stream:
                read(stream)
            assert store.state is State.EMPTY
            assert node.closed == [1]

    def test_a_close_that_fails_is_logged_and_breaks_nothing(self, store, node, clock, caplog):
        node.close_error = OSError(5, "media error")
        with created(store, clock).get_snap():
            pass
        assert store.state is State.EMPTY
        created(store, clock).close_snap_before(100)
        created(store, clock)
        clock.advance(5)
        assert node.closed == [1, 1, 1]
        assert [record.levelno for record in caplog.records] == [logging.ERROR] * 3


class TestTransport:
    class Transport:
        def __init__(self):
            self.told = []
            self.error = None

        def snapshot_ready(self, stream, index):
            assert self.store.state is State.IN_USE  # Takes no lock, yet shows that none is held:
            assert not self.store.close_snap_before(index - 1)
            self.told.append((stream, index))
            if self.error is not None:
                raise self.error

    @pytest.fixture
    def transport(self):
        return self.Transport()

    @pytest.fixture
    def store(self, node, clock, transport):
        with SnapshotStore(node, node, clock=clock, transport=transport) as store:
            transport.store = store
            yield store

    def test_it_is_told_of_each_stream_after_the_lock_is_left(self, store, clock, transport):
        with created(store, clock).get_snap() as stream:
            assert transport.told == [(stream, 10)]
        transport.told.clear()

    def test_one_that_raises_gets_its_stream_released(self, store, node, clock, transport):
        transport.error = OSError("no route")
        with pytest.raises(OSError, match="no route"):
            created(store, clock).get_snap()
        stream = transport.told[0][0]
        assert stream.reason is transport.error
        assert store.state is State.EMPTY
        assert node.closed == [1]


class TestSeveralStreams:
    @pytest.fixture
    def store(self, imaged_node, clock):
        with SnapshotStore(imaged_node, imaged_node, clock=clock, streams_max=2) as store:
            yield store

    def test_they_are_of_the_same_pin_which_the_last_one_closes(self, store, imaged_node, clock):
        first = created(store, clock).get_snap()
        second = store.get_snap()
        assert second is not first
        ask(store, "in use")
        assert first.meta == second.meta
        assert first.source is second.source
        first.readinto(bytearray(100))
        assert read(second) == CONTENT
        second.close()
        assert imaged_node.closed == [0]
        assert read(first) == CONTENT[100:]
        third = store.get_snap()
        first.close()
        assert imaged_node.closed == [0]
        third.close()
        assert imaged_node.closed == [1]
        assert store.state is State.EMPTY

    def test_clearing_goes_from_the_oldest_on_or_by_name(self, store, imaged_node, clock):
        first, second = created(store, clock).get_snap(), store.get_snap()
        store.clear_used_snap()
        assert (first.closed, second.closed) == (True, False)
        third = store.get_snap()
        store.clear_used_snap(third)
        assert (second.closed, third.closed) == (False, True)
        store.clear_used_snap()
        assert second.closed
        assert imaged_node.closed == [1]

    def test_compaction_closes_all_of_them(self, store, imaged_node, clock):
        streams = [created(store, clock).get_snap(), store.get_snap()]
        assert store.close_snap_before(10)
        for stream in streams:
            with pytest.raises(PipeClosed, match="compacted"):
                read(stream)
            stream.close()
        assert imaged_node.closed == [1]

    def test_debts_of_older_holders_take_no_room(self, store, clock):
        owed = [created(store, clock).get_snap(), store.get_snap()]
        store.close_snap_before(10)
        with created(store, clock).get_snap(), store.get_snap():
            ask(store, "in use")
        for stream in owed:
            store.clear_used_snap(stream)

    def test_a_backend_without_images_gives_one_at_a_time(self, clock):
        node = FakeNode(imaged=False)
        with SnapshotStore(node, node, clock=clock, streams_max=9) as store, created(store, clock).get_snap():
            ask(store, "in use")

    @pytest.mark.parametrize("streams_max", [0, -1, 1.5, "2", True])
    def test_a_number_that_is_none_is_refused(self, imaged_node, clock, streams_max):
        with pytest.raises((TypeError, ValueError), match="streams_max"):
            SnapshotStore(imaged_node, imaged_node, clock=clock, streams_max=streams_max)


class TestClose:
    def test_it_closes_what_is_ready(self, store, node, clock):
        created(store, clock).close()
        store.close()
        assert store.state is State.CLOSED
        assert node.closed == [1]
        clock.advance(5)
        assert node.closed == [1]

    def test_it_closes_what_is_in_use_and_tells_the_reader(self, store, node, clock):
        stream = created(store, clock).get_snap()
        store.close()
        with pytest.raises(StoreClosed, match="store"):
            stream.readinto(bytearray(1))
        stream.close()
        assert node.closed == [1]

    def test_a_creation_under_way_is_closed_when_it_comes(self, store, node, clock):
        node.while_capturing = store.close
        ask(store)
        clock.run_pending()
        assert store.state is State.CLOSED
        assert node.closed == [1]

    def test_a_creation_not_begun_is_not_made(self, store, node, clock):
        ask(store)
        store.close()
        clock.run_pending()
        assert node.snapshots == []

    def test_a_creation_that_fails_after_it_changes_nothing(self, store, node, clock):
        def close_and_fail():
            store.close()
            raise OSError("loop gone")

        node.while_capturing = close_and_fail
        ask(store)
        clock.run_pending()
        assert store.state is State.CLOSED

    def test_a_stream_of_a_compacted_snapshot_is_settled_by_it(self, store, node, clock):
        stream = created(store, clock).get_snap()
        store.close_snap_before(10)
        store.close()
        assert isinstance(stream.reason, PipeClosed)
        assert node.closed == [1]

    def test_everything_else_is_refused_after_it(self, store):
        store.close()
        for call in (store.get_snap, store.clear_used_snap, lambda: store.close_snap_before(1)):
            with pytest.raises(StoreClosed):
                call()

    def test_only_its_own_clock_is_closed_with_it(self, node):
        before = set(threading.enumerate())
        store = SnapshotStore(node, node)
        own_threads = set(threading.enumerate()) - before
        store.close()
        for thread in own_threads:
            thread.join(WAIT_S)
            assert not thread.is_alive()
        with SystemClock() as clock:
            SnapshotStore(node, node, clock=clock).close()
            done = threading.Event()
            clock.run_soon(done.set)
            assert done.wait(WAIT_S)


def test_the_table_lets_every_state_be_closed_and_nothing_come_back():
    assert set(MOVES) == set(State)
    assert MOVES[State.CLOSED] == frozenset()
    for state in set(State) - {State.CLOSED}:
        assert State.CLOSED in MOVES[state]
        assert state not in MOVES[state]


def test_a_move_that_is_not_in_the_table_is_a_fault(store):
    with pytest.raises(AssertionError, match="from EMPTY to IN_USE"):
        store._move(State.IN_USE)


def test_repr_shows_the_state(store, clock):
    assert repr(store) == "<SnapshotStore empty owed=0>"
    with created(store, clock).get_snap():
        assert repr(store) == "<SnapshotStore in use index=10 owed=1>"


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_child_is_refused_and_touches_nothing(store, node, clock):
    stream = created(store, clock).get_snap()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        calls = (store.get_snap, store.clear_used_snap, lambda: store.close_snap_before(99))
        refused = sum(map(is_refused, calls))
        stream.close()
        store.close()
        del stream
        gc.collect()
        os.write(writer, bytes([refused, clock.pending, node.closed[0]]))
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as answers:
        assert answers.read() == bytes([3, 0, 0])
    assert os.waitpid(child, 0)[1] == 0
    assert read(stream) == CONTENT
    stream.close()
    assert node.closed == [1]


class ApplyLoop:
    """A real apply loop: a thread that sleeps until something wants to be captured."""

    def __init__(self):
        self.asked = threading.Semaphore(0)
        self.captures = CaptureQueue(timeout_s=WAIT_S, wake=self.asked.release)
        self.ended = False
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self):
        for index in itertools.count(10):
            self.asked.acquire()
            if self.ended:
                return
            self.captures.serve(SnapshotMeta(index))

    def close(self):
        self.captures.close()
        self.ended = True
        self.asked.release()
        self.thread.join(WAIT_S)


@pytest.fixture
def apply_loop():
    loop = ApplyLoop()
    yield loop
    loop.close()


def test_the_pin_is_taken_in_the_apply_loop_and_the_image_prepared_elsewhere(imaged_node, apply_loop):
    with SystemClock() as clock, SnapshotStore(imaged_node, apply_loop.captures, clock=clock) as store:
        ask(store)
        background = threading.Event()
        clock.run_soon(background.set)  # Comes after the creation.
        assert background.wait(WAIT_S)
        with store.get_snap() as stream:
            assert stream.meta == SnapshotMeta(10)
        assert imaged_node.image_threads
        assert not {threading.get_ident(), apply_loop.thread.ident} & set(imaged_node.image_threads)


def read_unless_compacted(stream):
    try:
        return read(stream)
    except PipeClosed as error:
        if "compacted" not in str(error):
            raise
        return None


@pytest.mark.parametrize("streams_max", [1, 3])
def test_many_threads_get_read_compact_and_release_without_leaks(imaged_node, apply_loop, streams_max):
    rounds, readers = 60, 4
    failures, start = [], threading.Barrier(readers + 1)
    with SystemClock() as clock:
        store = SnapshotStore(imaged_node, apply_loop.captures, clock=clock, streams_max=streams_max)

        def created_anew():
            # Tasks run in order: when this one has run, so has the creation asked for before it.
            run = threading.Event()
            clock.run_soon(run.set)
            assert run.wait(WAIT_S)

        def use(number):
            start.wait(WAIT_S)
            done = 0
            while done < rounds:
                try:
                    stream = store.get_snap()
                except SnapshotTemporarilyUnavailable:
                    created_anew()
                    continue
                done += 1
                assert read_unless_compacted(stream) in (CONTENT, None)
                if (done + number) % 2:
                    stream.close()
                else:
                    store.clear_used_snap(stream)

        def compact():
            start.wait(WAIT_S)
            for index in range(10, 10 + rounds):
                store.close_snap_before(index)
                created_anew()

        def guarded(work, *args):
            try:
                work(*args)
            except BaseException as error:
                failures.append(error)
                raise

        threads = [threading.Thread(target=guarded, args=(use, n)) for n in range(readers)]
        threads.append(threading.Thread(target=guarded, args=(compact,)))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT_S)
            assert not thread.is_alive()
        assert failures == []
        store.close()
        created_anew()
        assert set(imaged_node.closed) == {1}
