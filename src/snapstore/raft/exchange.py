"""What a raft engine with a Ready loop needs around a snapshot, so that a node's author writes none of it.

It must not know a concrete engine, KV, store or transport: they come in through the constructor. An
adapter to one engine is `rraft.py`.

Plan: the leader's side is transfers.py, the follower's arrivals.py, what other threads want of the raft
thread goes through inbox.py. This puts them together, and keeps errors of ours out of the raft loop.
"""

from __future__ import annotations

import logging
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Generic, TypeVar

from snapstore.clock import SystemClock
from snapstore.errors import SnapshotTemporarilyUnavailable
from snapstore.raft.arrivals import STEP_TIMEOUT_S, Arrivals
from snapstore.raft.holds import HELD_ENTRIES_MAX, HELD_S_MAX, LINGER_S, Holds
from snapstore.raft.inbox import Inbox
from snapstore.raft.transfers import Transfers
from snapstore.raft.workers import SendThreads, run_soon
from snapstore.retry import RetryPolicy

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Self

    from snapstore.meta import SnapshotMeta
    from snapstore.protocols import Clock
    from snapstore.raft.arrivals import Arrival
    from snapstore.raft.engine import Carrier, Engine, SnapshotLender
    from snapstore.raft.slot import ClosableKV, KvSlot
    from snapstore.raft.workers import Workers
    from snapstore.stored import SavedSnapshot
    from snapstore.wire import Offer

logger = logging.getLogger("snapstore.raft")

K = TypeVar("K", bound="ClosableKV")


class Exchange(Generic[K]):
    """A node's snapshots, out and in, for one raft engine.

    `store` lends what is sent (its `kv` should be `slot`), `carrier` sends it (a `SnapshotClient`) to
    `url_of(member)`, which a worker calls. `slot` holds the KV that the node serves. `open_kv(saved)`
    makes a KV of a saved snapshot, as a whole or not at all, at a place of its own; it runs on the
    thread that saved it and may take its time. `wake` ends the raft loop's wait; from any thread. A
    `clock` that is given is not closed.

    One turn of the raft thread:

        exchange.run()                                   # first, while no Ready is open
        if captures.pending: captures.serve(meta)        # the store's `raft`: a CaptureQueue
        ... step what came, tick, propose ...
        ready = node.ready()
        for message in ready.messages:
            if it is a snapshot message:
                exchange.send(message.to, its snapshot's index, encoded message)
            else: the node's own transport sends it
        if ready.snapshot:
            exchange.install(its index)                  # the KV first; the log after it
        ... save and apply the rest, advance ...
        node.log.compact(exchange.compact_to(wanted))    # now and then

    The engine's storage answers `snapshot()` with `exchange.snapshot(...)`, "later" where that raises
    SnapshotTemporarilyUnavailable. The server gets `on_offer=exchange.on_offer` and
    `on_saved=exchange.on_saved`; nothing else is stepped for a snapshot message.

    Nothing here writes down which KV was installed. At its start a node serves the one that stands
    furthest, of its places or made anew of its newest saved snapshot. That may be ahead of the log, where
    the node ended before the log had the snapshot: a KV has to know its applied index, as every KV of
    a raft node, and skip the entries that it has.

    The hooks are for any thread, everything else for the raft thread alone. Of its methods only
    `install` raises what the node must not survive.
    """

    def __init__(
        self,
        store: SnapshotLender,
        engine: Engine,
        carrier: Carrier,
        slot: KvSlot[K],
        *,
        url_of: Callable[[int], str],
        open_kv: Callable[[SavedSnapshot], K],
        wake: Callable[[], object] | None = None,
        retry: RetryPolicy | None = None,
        clock: Clock | None = None,
        workers: Workers | None = None,
        step_timeout_s: float = STEP_TIMEOUT_S,
        linger_s: float = LINGER_S,
        held_s_max: float = HELD_S_MAX,
        held_entries_max: int = HELD_ENTRIES_MAX,
    ) -> None:
        self._store = store
        self._own_clock: SystemClock | None = None
        if clock is None:
            clock = self._own_clock = SystemClock()
        soon = partial(run_soon, clock)
        self._inbox = Inbox(wake)
        self._holds = Holds(
            clock.monotonic, linger_s=linger_s, held_s_max=held_s_max, held_entries_max=held_entries_max
        )
        self._transfers = Transfers(
            store,
            engine,
            carrier,
            url_of=url_of,
            inbox=self._inbox,
            clock=clock,
            run_soon=soon,
            workers=workers or SendThreads(),
            retry=retry or RetryPolicy(),
            holds=self._holds,
        )
        self._arrivals = Arrivals(
            engine,
            slot,
            open_kv=open_kv,
            inbox=self._inbox,
            run_soon=soon,
            step_timeout_s=step_timeout_s,
        )

    # For the threads of the server.

    def on_offer(self, offer: Offer) -> None:
        """Note the raft message of `offer`; refuse an offer that has none. A `SnapshotServer`'s hook."""
        self._arrivals.on_offer(offer)

    def on_saved(self, saved: SavedSnapshot) -> None:
        """Make the KV, have its message stepped, return when that is done. A `SnapshotServer`'s hook."""
        self._arrivals.on_saved(saved)

    def begin(self, saved: SavedSnapshot, message: bytes) -> Arrival[K]:
        """As `on_saved`, for a transport of another kind: make the KV, and do not wait for the rest.

        What was saved must outlive a power cut already. When the arrival's `outcome`, a Future, is
        done, what it raises or returns is the answer to the leader; unless it returns True, call the
        arrival's `discard`.
        """
        return self._arrivals.begin(saved, message)

    # For the raft thread.

    def run(self) -> int:
        """Do what the other threads have asked for; returns how many calls. Once in each turn."""
        return self._inbox.run()

    @property
    def pending(self) -> bool:
        """Whether `run` has something to do: a loop without a `wake` should not wait then."""
        return self._inbox.pending

    def snapshot(self, to: int, request_index: int = 0) -> SnapshotMeta:
        """Have a snapshot of at least `request_index` for the member `to`; what its message says.

        Never blocks. Raises SnapshotTemporarilyUnavailable and nothing else: none is ready, one is on
        its way to `to`, or `to` failed a moment ago. The engine asks again with a later heartbeat.
        """
        try:
            return self._transfers.lend(to, request_index)
        except SnapshotTemporarilyUnavailable:
            raise
        except Exception as error:
            logger.exception("no snapshot for member %d", to)
            raise SnapshotTemporarilyUnavailable(f"no snapshot to hand out: {error!r}") from error

    def send(self, to: int, index: int, message: bytes) -> None:
        """Send the engine's encoded snapshot message to `to`, with the snapshot of `index`.

        The engine is told what became of it by `report_snapshot`, once, in a later turn. Never raises.
        """
        self._transfers.send(to, index, message)

    def install(self, index: int) -> None:
        """Put the KV of the received snapshot `index` in its place: a Ready has that snapshot.

        Before the log records the snapshot. Raises SnapshotNotFound where the engine took a snapshot
        that did not come through here: the node must stop, since its KV has not what the log says.
        """
        self._arrivals.install(index)
        self._close_before(index)

    def compact_to(self, index: int) -> int:
        """Return up to which entry, itself included, the log may be compacted now; `index` at most.

        Less than `index` while followers will need what comes next, within the limits given. Snapshots
        that are as old as that are closed, so that none is sent from which nobody can go on.
        """
        index = self._holds.limit(index)
        self._close_before(index)
        return index

    def close(self) -> None:
        """End all transfers, reported as failed, and let the saver's threads go. May come twice.

        For the raft thread, while no Ready is open. Close the server after it, and the store. A thread
        that waits for a follower's answer is not waited for.
        """
        with ExitStack() as ends:  # Each of them, also where the engine panics at a report.
            if self._own_clock is not None:
                ends.callback(self._own_clock.close)
            ends.callback(self._inbox.run)
            ends.callback(self._arrivals.close)
            self._transfers.close()

    def _close_before(self, index: int) -> None:
        """Close what nobody could go on from, once the log begins behind `index`."""
        try:
            self._store.close_snap_before(index)
        except Exception:
            logger.exception("old snapshots were not closed")
        self._inbox.post(self._transfers.end_revoked)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Exchange {self._transfers!r} {self._arrivals!r} {self._inbox!r}>"
