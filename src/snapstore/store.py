"""Decides when a snapshot exists and who holds it. Never touches a byte of one.

It must not know any concrete KV, raft engine or transport, and no thread: what takes time goes to
the clock's background, what comes later to the clock's timers.

Plan: at most one snapshot, the *pin*, is stored. Its states are in the table below and `_move` goes
along it. Each stream handed out has a *share* in its pin (`share.py`); when the last one is given back
or revoked, the pin is closed. Decisions are made under the lock and return what is to be closed, which
is done after it.
"""

from __future__ import annotations

import enum
import logging
import os
import threading
from functools import partial
from typing import TYPE_CHECKING

from snapstore.clock import SystemClock
from snapstore.errors import (
    ForkedProcess,
    PipeClosed,
    SnapshotTemporarilyUnavailable,
    StoreClosed,
)
from snapstore.lease import check_ttl
from snapstore.meta import check_index
from snapstore.share import Pin, Shares
from snapstore.transfers import TransferRegistry

if TYPE_CHECKING:
    from typing_extensions import Self

    from snapstore.lease import Lease
    from snapstore.protocols import KV, Clock, Raft, SnapshotTransport
    from snapstore.share import Share
    from snapstore.stream import SnapshotStream
    from snapstore.transfer import Transfer

logger = logging.getLogger("snapstore")


class State(enum.Enum):
    """What a store has to give."""

    EMPTY = "empty"
    CREATING = "creating"
    READY = "ready"
    IN_USE = "in use"
    CLOSED = "closed"


#: Where each state may lead, and on what occasion.
MOVES: dict[State, frozenset[State]] = {
    # get_snap asks for a snapshot; close.
    State.EMPTY: frozenset({State.CREATING, State.CLOSED}),
    # The creation succeeded; it failed, or was compacted meanwhile; close.
    State.CREATING: frozenset({State.READY, State.EMPTY, State.CLOSED}),
    # get_snap hands it out; it stayed unused or was compacted; close.
    State.READY: frozenset({State.IN_USE, State.EMPTY, State.CLOSED}),
    # The last holder gave it back or it was compacted; close.
    State.IN_USE: frozenset({State.EMPTY, State.CLOSED}),
    State.CLOSED: frozenset(),
}

#: The upper limit of the heartbeat interval: raft asks again with each heartbeat's answer, so one
#: heartbeat is enough to fetch a snapshot that was created for it (etcd, clearUnusedSnapshotInterval).
CLEAR_UNUSED_AFTER_S = 5.0

#: One at a time, as in etcd; each further one is another follower sent to at the same time.
STREAMS_MAX = 1


class SnapshotStore:
    """The one place that creates a node's snapshot and hands it out to be sent.

    `kv` is what is pinned, `raft` says between which entries. A snapshot that nobody fetches within
    `clear_unused_after_s` is closed. Up to `streams_max` streams of the same point in time are out
    at once, where the KV's snapshots have an `image()`; where not, one. `transport`, where given, is
    told of each stream by `snapshot_ready(stream, index)`. A `clock` that is given is not closed.
    `registry` is the node's, which its clients and servers are given too; None: one of its own.

    Thread-safe. Only `close_snap_before`, the release of a stream and `close` may take as long as
    the KV needs to close a snapshot. After `close`, methods raise `StoreClosed`; in a forked child
    `ForkedProcess`, except that closing does nothing there.

    The behaviour is that of etcd's snapshotStore of 2015, mended where it could hang or panic.
    """

    def __init__(
        self,
        kv: KV,
        raft: Raft,
        *,
        transport: SnapshotTransport | None = None,
        clear_unused_after_s: float = CLEAR_UNUSED_AFTER_S,
        streams_max: int = STREAMS_MAX,
        clock: Clock | None = None,
        registry: TransferRegistry | None = None,
    ) -> None:
        if not clear_unused_after_s > 0:
            raise ValueError(f"clear_unused_after_s must be above 0 seconds, not {clear_unused_after_s!r}")
        if check_index(streams_max, "streams_max") < 1:
            raise ValueError("streams_max must be 1 or more")
        self._kv = kv
        self._raft = raft
        self._transport = transport
        self._clear_unused_after_s = clear_unused_after_s
        self._streams_max = streams_max
        self._own_clock: SystemClock | None = None
        if clock is None:
            clock = self._own_clock = SystemClock()
        self._clock: Clock = clock
        #: What shows the transfers of the node.
        self.registry = registry or TransferRegistry()
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._state = State.EMPTY
        # Counts creations, so that a timer or a creation that comes late knows that it is too late.
        self._generation = 0
        self._pin: Pin | None = None
        self._shares = Shares(clock, self._release, self._lapse)
        self._last_error: BaseException | None = None
        # How far the log was compacted during this creation: what was captured before may be older.
        self._compacted_to = -1
        self.registry.watch_pins(self)

    @property
    def state(self) -> State:
        """The state at this moment; it may be another one a moment later."""
        return self._state

    @property
    def last_error(self) -> BaseException | None:
        """What the last creation failed with, or None if it succeeded or there was none.

        Without a traceback: the log has it, and here it would keep what its frames hold alive.
        """
        return self._last_error

    @property
    def pinned_age_s(self) -> float | None:
        """How long the KV has been pinned for the stored snapshot, in seconds; None without one."""
        pin = self._pin
        return None if pin is None else self._clock.monotonic() - pin.pinned_s

    def leases(self) -> list[Lease]:
        """Return the leases that keep the stored snapshot pinned, one for each stream, oldest first."""
        self._check_process()
        with self._lock:
            return [share.lease for share in self._shares.holding(self._pin)]

    def transfers(self) -> list[Transfer]:
        """Return the transfers of its registry: those under way, then the last ones that have ended."""
        return self.registry.transfers()

    def get_snap(self, *, owner: str | None = None, ttl_s: float | None = None) -> SnapshotStream:
        """Hand out the stored snapshot. Never blocks: raft's loop may call it.

        The caller closes the stream when the receiver has got it, best by `with`, or calls
        `clear_used_snap`. Raises `SnapshotTemporarilyUnavailable` when there is none, and then has
        one created in the background, or when it is in use; try again with the next heartbeat.
        What the transport's `snapshot_ready` raises passes through; the snapshot is released then.

        `owner` is what `leases` and the log call the holder; None: the thread. What is not closed within
        `ttl_s` seconds is logged, with where it was taken and what it costs, and revoked: its reader gets
        `LeaseExpired`. None: it is logged after `lease.PIN_TTL_S`, and stays.
        """
        self._check_process()
        if ttl_s is not None:
            check_ttl(ttl_s)
        stream: SnapshotStream | None = None
        with self._lock:
            self._check_open()
            if self._state is State.EMPTY:
                self._generation += 1
                self._compacted_to = -1
                self._move(State.CREATING)
                refusal = self._refusal("none was stored, one is being created now")
            else:
                stream = self._lend(owner, ttl_s)
            generation = self._generation
        if stream is None:
            self._begin_creation(generation)
            raise refusal
        if self._transport is not None:
            try:
                self._transport.snapshot_ready(stream, stream.meta.index)
            except BaseException as error:
                stream.close(error)
                raise
        return stream

    def clear_used_snap(self, stream: SnapshotStream | None = None) -> None:
        """Close `stream`, or the one that was handed out longest ago and is still owed.

        Each stream handed out is owed until its holder closes it or calls this, also if it was
        compacted meanwhile: so a late release never hits the stream of a newer holder. Raises
        `SnapshotNotInUse`, and changes nothing, when none is owed, or not this one.
        """
        self._check_process()
        with self._lock:
            self._check_open()
            share = self._shares.find(stream)
            owed = share.stream()
            self._shares.settle(share)
            unpinned = self._unused(share.pin)
        if owed is not None:
            owed.close()
        if unpinned is not None:
            unpinned.close()

    def close_snap_before(self, index: int) -> bool:
        """Close the stored snapshot now, also in use, if its index is `index` or lower.

        For when raft's log was compacted up to `index`: a follower could not go on from that
        snapshot, nor from one that is being created and turns out to be as old. Its streams raise
        `PipeClosed` from then on. Returns whether one was closed; the next `get_snap` creates a new
        one. Raises TypeError or ValueError for what is no index.
        """
        index = check_index(index)
        self._check_process()
        with self._lock:
            self._check_open()
            self._compacted_to = max(self._compacted_to, index)
            pin = self._pin
            if pin is None or pin.meta.index > index:
                return False
            streams = self._shares.streams(pin)
            self._unpin(State.EMPTY)
        for stream in streams:
            stream.revoke(
                PipeClosed(f"snapshot {pin.meta.index} was closed: the log was compacted up to {index}")
            )
        pin.close()
        return True

    def close(self) -> None:
        """Close the snapshot and the streams of it, which raise `StoreClosed` then. May come twice.

        A creation under way is not waited for; its snapshot is closed as soon as it comes.
        """
        if self._pid != os.getpid():
            return
        with self._lock:
            if self._state is State.CLOSED:
                return
            streams = self._shares.streams()
            unpinned = self._unpin(State.CLOSED)
        for stream in streams:
            stream.close(StoreClosed("the store that lent the snapshot was closed"))
        if unpinned is not None:
            unpinned.close()
        if self._own_clock is not None:
            self._own_clock.close()

    # Creation, on the clock's background thread.

    def _begin_creation(self, generation: int) -> None:
        try:
            self._clock.run_soon(partial(self._create, generation))
        except BaseException as error:
            self._give_up(generation, error)
            raise

    def _create(self, generation: int) -> None:
        if not self._is_creating(generation):
            return
        try:
            pin = Pin.capture(self._kv, self._raft, self._clock)
        except BaseException as error:
            logger.warning("creating a snapshot failed; the next get_snap tries again", exc_info=error)
            self._give_up(generation, error)
            if not isinstance(error, Exception):
                raise
            return
        with self._lock:
            creating = self._is_creating(generation)
            stored = creating and pin.meta.index > self._compacted_to
            if stored:
                self._pin = pin
            if creating:
                self._last_error = None
                self._move(State.READY if stored else State.EMPTY)
        if stored:
            self._clock.call_later(self._clear_unused_after_s, partial(self._expire, generation))
        else:
            pin.close()

    def _give_up(self, generation: int, error: BaseException) -> None:
        with self._lock:
            if self._is_creating(generation):
                self._last_error = error.with_traceback(None)
                self._move(State.EMPTY)

    def _is_creating(self, generation: int) -> bool:
        return self._state is State.CREATING and self._generation == generation

    def _expire(self, generation: int) -> None:
        with self._lock:
            if self._state is not State.READY or self._generation != generation:
                return
            unpinned = self._unpin(State.EMPTY)
        if unpinned is not None:
            unpinned.close()

    # What ends a share: its stream was closed, or its time is up.

    def _release(self, share: Share) -> None:
        """Take `share` back from a stream that its holder closed."""
        with self._lock:
            unpinned = self._unused(share.pin) if self._shares.settle(share) else None
        if unpinned is not None:
            unpinned.close()

    def _lapse(self, share: Share) -> None:
        """The time of a lease is up; a share that is strict holds nothing from now on."""
        with self._lock:
            if share not in self._shares.holding(self._pin):
                return
            share.revoked = share.strict
            unpinned = self._unused(share.pin)
        share.tell_overdue()
        if unpinned is not None:
            unpinned.close()

    # Decisions, under the lock.

    def _move(self, state: State) -> None:
        if state not in MOVES[self._state]:
            raise AssertionError(f"a store cannot go from {self._state.name} to {state.name}")
        self._state = state

    def _unpin(self, state: State) -> Pin | None:
        """Move on without the pin; return it, to be closed."""
        self._move(state)
        pin, self._pin = self._pin, None
        return pin

    def _lend(self, owner: str | None, ttl_s: float | None) -> SnapshotStream:
        pin = self._pin
        if pin is None:
            raise self._refusal("one is being created")
        if len(self._shares.holding(pin)) >= (self._streams_max if pin.imaged else 1):
            raise self._refusal(f"snapshot {pin.meta.index} is in use")
        stream = self._shares.lend(pin, owner, ttl_s)
        if self._state is State.READY:
            self._move(State.IN_USE)
        return stream

    def _unused(self, pin: Pin) -> Pin | None:
        """If nobody holds `pin` any more, move on without it and return it, to be closed."""
        if pin is not self._pin or self._shares.holding(pin):
            return None
        return self._unpin(State.EMPTY)

    def _refusal(self, words: str) -> SnapshotTemporarilyUnavailable:
        if self._last_error is not None:
            words += f" (the creation before failed: {self._last_error!r})"
        return SnapshotTemporarilyUnavailable(f"no snapshot to hand out: {words}; ask again later")

    def _check_open(self) -> None:
        if self._state is State.CLOSED:
            raise StoreClosed("the store was closed")

    def _check_process(self) -> None:
        if self._pid != os.getpid():
            raise ForkedProcess("this SnapshotStore was made before a fork; make a new one in the child")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        self.close()

    def __repr__(self) -> str:
        pin = self._pin
        index = "" if pin is None else f" index={pin.meta.index}"
        return f"<SnapshotStore {self._state.value}{index} owed={len(self._shares)}>"
