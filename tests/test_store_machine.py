"""The store against a model of it, in thousands of random sequences on a fake clock.

The model below is the promise in its plainest form: which snapshot is stored, who owes which stream.
After each step the store must be in the model's state, at most one snapshot may be pinned, and none
may have been closed twice. At the end every one has been closed exactly once.
"""

from __future__ import annotations

import logging
import math
import warnings

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from snapstore.errors import (
    LeaseExpired,
    PipeClosed,
    SnapshotNotInUse,
    SnapshotTemporarilyUnavailable,
    StoreClosed,
)
from snapstore.meta import SnapshotMeta
from snapstore.store import SnapshotStore, State
from snapstore.testing import FakeClock

CLEAR_UNUSED_AFTER_TICKS = 5
CONTENT = b"pinned"


class CreationFailed(Exception):
    """The KV or the raft loop of the test could not give a snapshot."""


class NoRoute(Exception):
    """The transport of the test did not take a stream."""


class Snapshot:
    """Counts how often it is closed, and cannot be read after that."""

    size = len(CONTENT)

    def __init__(self, index):
        self.index = index
        self.closed = 0

    def write_to(self, writer):
        raise AssertionError("the machine reads images only")

    def close(self):
        self.closed += 1


class ImagedSnapshot(Snapshot):
    """Is its own image."""

    def image(self):
        return self

    def readinto(self, buffer, offset):
        assert not self.closed, "a closed snapshot was read"
        buffer[:] = CONTENT[offset : offset + len(buffer)]
        return len(buffer)


class Owed:
    """A stream that was handed out, as the model sees it; `stream` is None once its holder dropped it."""

    def __init__(self, stream, due_s):
        self.stream = stream
        self.index = stream.meta.index
        self.due_s = due_s
        self.revoked = False


class StoreMachine(RuleBasedStateMachine):
    """Holders, a transport, a raft loop, a compaction and a clock, in any order."""

    @initialize(imaged=st.booleans(), streams_max=st.integers(1, 3))
    def begin(self, imaged, streams_max):
        self.imaged = imaged
        self.streams_max = streams_max if imaged else 1
        self.options = {"streams_max": streams_max, "clear_unused_after_s": CLEAR_UNUSED_AFTER_TICKS}
        self.clock = FakeClock()
        self.snapshots = []
        self.creation_fails = self.transport_fails = False
        self.open_store()

    def open_store(self):
        self.store = SnapshotStore(self, self, transport=self, clock=self.clock, **self.options)
        # The model.
        self.state = State.EMPTY
        self.pin = None
        self.compacted_to = 0
        self.ready_at_s = 0
        self.owed = []
        self.settled = []
        self.dropped = []

    # What the store is given: a KV, a raft and a transport.

    def snapshot(self):
        kind = ImagedSnapshot if self.imaged else Snapshot
        self.snapshots.append(kind(100 + len(self.snapshots)))
        return self.snapshots[-1]

    def capture(self, take):
        if self.creation_fails:
            raise CreationFailed
        snapshot = take()
        return SnapshotMeta(snapshot.index), snapshot

    def snapshot_ready(self, stream, index):
        assert stream.meta.index == index
        if self.transport_fails:
            raise NoRoute

    # What the model does.

    def settle(self, owed):
        self.owed.remove(owed)
        if owed.stream is not None:
            self.settled = [*self.settled[-3:], owed.stream]
        if owed.index == self.pin and not self.in_pin():
            self.forget_pin()

    def in_pin(self):
        return [owed for owed in self.owed if owed.index == self.pin and not owed.revoked]

    def forget_pin(self):
        self.state, self.pin = State.EMPTY, None

    def held(self, choice):
        streams = [owed for owed in self.owed if owed.stream is not None]
        return streams[choice % len(streams)] if streams else None

    # What may happen.

    @rule(
        transport_fails=st.sampled_from([False, False, False, True]),
        ttl_s=st.sampled_from([None, None, 1, CLEAR_UNUSED_AFTER_TICKS]),
    )
    def get(self, transport_fails, ttl_s):
        self.transport_fails = transport_fails
        room = self.state is State.READY or (
            self.state is State.IN_USE and len(self.in_pin()) < self.streams_max
        )
        if not room:
            with pytest.raises(SnapshotTemporarilyUnavailable):
                self.store.get_snap(ttl_s=ttl_s)
            if self.state is State.EMPTY:
                self.state = State.CREATING
                self.compacted_to = 0
        elif transport_fails:
            with pytest.raises(NoRoute):
                self.store.get_snap(ttl_s=ttl_s)
            if not self.in_pin():
                self.forget_pin()
        else:
            stream = self.store.get_snap(ttl_s=ttl_s)
            assert not stream.closed
            assert stream.meta.index == self.pin
            if self.imaged:
                assert bytes(next(stream.chunks())) == CONTENT
            self.owed.append(Owed(stream, math.inf if ttl_s is None else self.clock.monotonic() + ttl_s))
            self.state = State.IN_USE

    @rule(ttl_s=st.sampled_from([None, 1, CLEAR_UNUSED_AFTER_TICKS]))
    def get_at_last(self, ttl_s):
        """What most sequences would not come to by chance: one is created, and handed out."""
        self.get(transport_fails=False, ttl_s=ttl_s)
        self.run_pending(creation_fails=False)
        self.get(transport_fails=False, ttl_s=ttl_s)

    @rule()
    def clear_oldest(self):
        if not self.owed:
            with pytest.raises(SnapshotNotInUse):
                self.store.clear_used_snap()
            return
        oldest = self.owed[0]
        self.store.clear_used_snap()
        assert oldest.stream is None or oldest.stream.closed
        self.settle(oldest)

    @rule(choice=st.integers(0, 5))
    def clear_by_name(self, choice):
        if owed := self.held(choice):
            self.store.clear_used_snap(owed.stream)
            self.settle(owed)

    @rule(choice=st.integers(0, 5), error=st.sampled_from([None, OSError("peer gone")]))
    def close_stream(self, choice, error):
        if owed := self.held(choice):
            owed.stream.close(error)
            self.settle(owed)

    @rule(choice=st.integers(0, 5))
    def leave_with(self, choice):
        if owed := self.held(choice):
            with owed.stream:
                pass
            self.settle(owed)

    @rule(choice=st.integers(0, 5))
    def drop(self, choice):
        if owed := self.held(choice):
            with warnings.catch_warnings(record=True) as warned:
                warnings.simplefilter("always")
                owed.stream = None
            assert [warning.category for warning in warned] == [ResourceWarning]
            self.dropped.append(owed)

    @rule(choice=st.integers(0, 5))
    def release_again(self, choice):
        if self.settled:
            stream = self.settled[choice % len(self.settled)]
            assert stream.closed
            stream.close()
            with pytest.raises(SnapshotNotInUse):
                self.store.clear_used_snap(stream)

    @rule(creation_fails=st.sampled_from([False, False, True]))
    def run_pending(self, creation_fails):
        self.creation_fails = creation_fails
        self.clock.run_pending()
        # A creation comes out in an empty store, a late release in the one before: order is no matter.
        if self.state is State.CREATING and creation_fails:
            self.state = State.EMPTY
            assert isinstance(self.store.last_error, CreationFailed)
        elif self.state is State.CREATING and self.snapshots[-1].index <= self.compacted_to:
            self.state = State.EMPTY
            assert self.snapshots[-1].closed
        elif self.state is State.CREATING:
            self.state, self.pin = State.READY, self.snapshots[-1].index
            self.ready_at_s = self.clock.monotonic()
            assert self.store.last_error is None
        for owed in self.dropped:
            if owed in self.owed:
                self.settle(owed)
        self.dropped.clear()

    @rule(ticks=st.integers(1, CLEAR_UNUSED_AFTER_TICKS + 1))
    def advance(self, ticks):
        self.clock.advance(ticks)
        unused_s = self.clock.monotonic() - self.ready_at_s
        if self.state is State.READY and unused_s >= CLEAR_UNUSED_AFTER_TICKS:
            self.forget_pin()
        for owed in self.in_pin():
            if self.clock.monotonic() >= owed.due_s:
                owed.revoked = True
                assert owed.stream is None or isinstance(owed.stream.reason, LeaseExpired)
        if self.state is State.IN_USE and not self.in_pin():
            self.forget_pin()

    @rule(distance=st.integers(-1, 1))
    def compact(self, distance):
        index = distance + (self.pin or 100)
        closes = self.pin is not None and self.pin <= index
        assert self.store.close_snap_before(index) is closes
        self.compacted_to = max(self.compacted_to, index)
        if closes:
            for owed in self.in_pin():
                owed.revoked = True
                assert owed.stream is None or isinstance(owed.stream.reason, PipeClosed)
            self.forget_pin()

    @rule()
    def restart(self):
        self.store.close()
        for call in (self.store.get_snap, self.store.clear_used_snap):
            with pytest.raises(StoreClosed):
                call()
        assert self.store.state is State.CLOSED
        assert all(owed.stream is None or owed.stream.closed for owed in self.owed)
        self.open_store()  # On the same clock: timers and creations of the former one come late.

    @invariant()
    def the_store_is_where_the_model_is(self):
        assert self.store.state is self.state

    @invariant()
    def at_most_the_stored_snapshot_is_pinned_and_none_was_closed_twice(self):
        assert all(snapshot.closed <= 1 for snapshot in self.snapshots)
        pinned = [snapshot.index for snapshot in self.snapshots if not snapshot.closed]
        assert pinned == ([] if self.pin is None else [self.pin])

    @invariant()
    def those_who_hold_the_pin_have_leases(self):
        assert [lease.index for lease in self.store.leases()] == [self.pin] * len(self.in_pin())

    @invariant()
    def streams_are_open_until_they_are_released_or_revoked(self):
        for owed in self.owed:
            assert owed.stream is None or owed.stream.closed is owed.revoked

    def teardown(self):
        if not hasattr(self, "store"):
            return
        self.store.close()
        self.clock.run_pending()
        self.clock.advance(2 * CLEAR_UNUSED_AFTER_TICKS)
        assert all(snapshot.closed == 1 for snapshot in self.snapshots)


@pytest.fixture
def quiet(monkeypatch):
    # Thousands of failed creations, each logged once: that this is so has its own test.
    monkeypatch.setattr(logging.getLogger("snapstore"), "disabled", True)


@pytest.mark.usefixtures("quiet")
def test_hundreds_of_random_sequences_agree_with_the_model():
    run_state_machine_as_test(
        StoreMachine,
        settings=settings(
            max_examples=150, stateful_step_count=30, deadline=None, derandomize=True, database=None
        ),
    )


@pytest.mark.slow
@pytest.mark.usefixtures("quiet")
def test_ten_thousand_random_sequences_agree_with_the_model():
    run_state_machine_as_test(
        StoreMachine,
        settings=settings(
            max_examples=10_000,
            stateful_step_count=30,
            deadline=None,
            database=None,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
