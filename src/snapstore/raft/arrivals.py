"""The follower's side: a saved snapshot becomes the node's KV, and the engine hears of it.

It must not know which engine or KV it serves, nor how the bytes came; only that they are saved for good
before anything here is called.

Plan: an *arrival* is one snapshot message with what was saved for it. Its KV is made on the thread
that saved it; then the raft thread steps the message, and the engine's next Ready says whether it was
taken (`install`) or passed over. In the turn after that the saver's thread hears which.
"""

from __future__ import annotations

import logging
import threading
from concurrent.futures import Future, wait
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Generic, TypeVar

from snapstore.errors import PeerRejected, SnapshotNotFound

if TYPE_CHECKING:
    from collections.abc import Callable

    from snapstore.raft.engine import Engine
    from snapstore.raft.inbox import Inbox
    from snapstore.raft.slot import ClosableKV, KvSlot
    from snapstore.stored import SavedSnapshot
    from snapstore.wire import Offer

logger = logging.getLogger("snapstore.raft")

#: How long the raft thread may need to come by. It is stuck when it takes longer than an election; the
#: leader is told to come again, and the snapshot is there already then.
STEP_TIMEOUT_S = 30.0

#: What a leader is told to wait when this node cannot step now, in seconds.
RETRY_AFTER_S = 1.0

_CLOSING = "this node is closing"

K = TypeVar("K", bound="ClosableKV")


class Arrival(Generic[K]):
    """A saved snapshot on its way into the engine. `kv` is None where nothing is to be swapped.

    `outcome` is pending until the raft thread begins with it, and then whether its KV was installed.
    """

    def __init__(self, saved: SavedSnapshot, message: bytes, kv: K | None) -> None:
        self.saved = saved
        self.message = message
        self.kv = kv
        self.outcome: Future[bool] = Future()
        self.installed = False

    def discard(self) -> None:
        """Close the KV, unless it was installed. For whoever began it, when the outcome is known."""
        if self.kv is None or self.installed:
            return
        try:
            self.kv.close()
        except Exception:
            logger.exception("closing the KV of a snapshot that was not needed failed; it is given up")


class Arrivals(Generic[K]):
    """Everything that comes to this node. `install` is for the raft thread, the hooks for any other."""

    def __init__(
        self,
        engine: Engine,
        slot: KvSlot[K],
        *,
        open_kv: Callable[[SavedSnapshot], K],
        inbox: Inbox,
        run_soon: Callable[[Callable[[], None]], None],
        step_timeout_s: float = STEP_TIMEOUT_S,
    ) -> None:
        self._engine = engine
        self._slot = slot
        self._open_kv = open_kv
        self._inbox = inbox
        self._run_soon = run_soon
        self._step_timeout_s = step_timeout_s
        self._offered = threading.local()
        # Guards what follows: who waits for the raft thread, and whether it still comes.
        self._lock = threading.Lock()
        self._closed = False
        self._waiting: set[Arrival[K]] = set()
        # The raft thread's own: what it stepped in this turn, by index; and the newest it installed.
        self._stepped: dict[int, Arrival[K]] = {}
        self._installed_index = 0

    def on_offer(self, offer: Offer) -> None:
        """Note the message; refuse an offer without one. The server's hook of this name."""
        if self._closed:
            raise _busy(_CLOSING)
        if not offer.message:
            raise PeerRejected(HTTPStatus.BAD_REQUEST, "a raft node takes snapshots with their raft message")
        self._offered.message = offer.message

    def on_saved(self, saved: SavedSnapshot) -> None:
        """Make the KV, step the message, wait until both are in. The server's hook of this name.

        For one request both hooks are called on the same thread: that is how the message of a second
        leader, who offers the same snapshot meanwhile, stays apart.
        """
        message: bytes = self._offered.message
        arrival = self.begin(saved, message)
        done, _ = wait([arrival.outcome], self._step_timeout_s)
        if not done:
            arrival.outcome.cancel()
        # Here and now, but where raft's thread stands still in the middle of it: then the KV is its own.
        arrival.outcome.add_done_callback(lambda _: arrival.discard())
        if not done:
            raise _busy("raft's thread does not come by")
        arrival.outcome.result()

    def begin(self, saved: SavedSnapshot, message: bytes) -> Arrival[K]:
        """Make the KV of `saved`, and hand it over to the raft thread with `message`.

        Raises what `open_kv` raises. Whoever calls this calls `discard` when the outcome is known.
        """
        # The leader may have missed our first answer: the KV is the newer one already then.
        kv = self._open_kv(saved) if saved.index > self._installed_index else None
        arrival = Arrival(saved, message, kv)
        with self._lock:
            closed = self._closed
            if not closed:
                self._waiting.add(arrival)
        if closed:
            arrival.outcome.set_exception(_busy(_CLOSING))
        else:
            self._inbox.post(partial(self._step, arrival))
        return arrival

    def install(self, index: int) -> None:
        """Put the KV of snapshot `index` in its place; for the raft thread, when a Ready has it.

        Raises SnapshotNotFound where none was stepped: then the engine has taken what nobody saved,
        and the node must stop.
        """
        arrival = self._stepped.get(index)
        if arrival is None or arrival.kv is None:
            raise SnapshotNotFound(f"the engine took snapshot {index}, which did not come through here")
        if arrival.installed:
            return
        self._slot.swap(arrival.kv, run=self._run_soon)
        arrival.installed = True
        self._installed_index = index

    def close(self) -> None:
        """Let go of those who wait; for the raft thread. May come twice."""
        with self._lock:
            self._closed = True
            waiting, self._waiting = self._waiting, set()
        for arrival in waiting:
            if arrival.outcome.set_running_or_notify_cancel():
                arrival.outcome.set_exception(_busy(_CLOSING))
        for arrival in list(self._stepped.values()):
            self._settle(arrival)

    def _step(self, arrival: Arrival[K]) -> None:
        with self._lock:
            if arrival not in self._waiting:
                return
            self._waiting.remove(arrival)
        if not arrival.outcome.set_running_or_notify_cancel():
            return
        index = arrival.saved.index
        before = self._stepped.get(index)
        try:
            if before is not None:
                raise _busy(f"snapshot {index} is being stepped already")
            self._engine.step_snapshot(arrival.message, arrival.saved.meta)
        except ValueError as error:
            arrival.outcome.set_exception(PeerRejected(HTTPStatus.BAD_REQUEST, str(error)))
        except BaseException as error:  # The thread that waits hears of it, whatever it was.
            arrival.outcome.set_exception(error)
            if not isinstance(error, Exception):
                raise
        else:
            self._stepped[index] = arrival
            # Behind the Ready of this turn, which says whether the engine has taken it.
            self._inbox.post(partial(self._settle, arrival))

    def _settle(self, arrival: Arrival[K]) -> None:
        if self._stepped.get(arrival.saved.index) is arrival:
            del self._stepped[arrival.saved.index]
            arrival.outcome.set_result(arrival.installed)

    def __repr__(self) -> str:
        return f"<Arrivals stepped={sorted(self._stepped)} installed={self._installed_index}>"


def _busy(reason: str) -> PeerRejected:
    return PeerRejected(HTTPStatus.SERVICE_UNAVAILABLE, reason, RETRY_AFTER_S)
