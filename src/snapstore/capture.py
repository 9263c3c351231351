"""How the store asks an apply loop, in another thread, for one moment between two entries.

It must not know what is captured: a KV's snapshot, or anything else that a call can take.

Plan: each request is a `concurrent.futures.Future`, which has just the states that are needed.
Pending: the loop has not come by, and the request can be withdrawn. Running: `take` is under way in
the loop's thread, and will be waited for, so that its result has an owner. Done: with a result or
an error. The lock guards the queue; no `take` is called and no future is settled under it.
"""

from __future__ import annotations

import threading
from collections import deque
from concurrent.futures import Future, wait
from typing import TYPE_CHECKING, Any, TypeVar

from snapstore.errors import CaptureTimeout, StoreClosed
from snapstore.meta import SnapshotMeta, to_meta

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Self

S = TypeVar("S")

#: Twice the upper limit of the heartbeat interval, 5 s (etcd): a loop that has not come by for two
#: heartbeats is stuck or dead, and the store can be told so.
CAPTURE_TIMEOUT_S = 10.0


class CaptureQueue:
    """The ready-made `Raft` for an apply loop in a thread of its own.

    Give it to the store as `raft`; in the loop, between two applied entries:

        if captures.pending:
            captures.serve(SnapshotMeta(applied_index, applied_term, conf_state))

    So what is captured and the index that it is captured at are of the same entry. `wake`, where
    given, is called after each request, from the store's background thread: a loop that sleeps
    until there is something to apply can be woken by it. All methods may be called from any thread,
    `serve` by the loop only.
    """

    def __init__(
        self, *, timeout_s: float = CAPTURE_TIMEOUT_S, wake: Callable[[], None] | None = None
    ) -> None:
        if not 0 < timeout_s <= threading.TIMEOUT_MAX:
            raise ValueError(f"timeout_s must be a finite number of seconds above 0, not {timeout_s!r}")
        self._timeout_s = timeout_s
        self._wake = wake
        self._lock = threading.Lock()
        self._closed = False
        self._requests: deque[_Request] = deque()

    @property
    def pending(self) -> bool:
        """Whether a capture waits for `serve`. Takes no lock: cheap enough for every entry."""
        return bool(self._requests)

    def capture(self, take: Callable[[], S]) -> tuple[SnapshotMeta, S]:
        """Have `take` called by the loop; return the meta that the loop stood at, and the result.

        Blocks until the loop has come by. Must not be called by the loop's own thread. Raises
        `CaptureTimeout` when it has not come within `timeout_s`: `take` is never called then. A
        `take` that has begun is waited for, however long it needs. What `take` raises comes out
        here. Raises `StoreClosed` once the queue is closed.
        """
        request = _Request(take)
        with self._lock:
            if self._closed:
                raise StoreClosed("the capture queue was closed")
            self._requests.append(request)
        try:
            if self._wake is not None:
                self._wake()
            return self._outcome(request.future)
        except BaseException:
            # A Ctrl-C may come while `take` is under way: then its result would have no owner.
            if not request.future.cancel():
                request.future.add_done_callback(_close_result)
            raise
        finally:
            self._withdraw(request)

    def serve(self, meta: SnapshotMeta | int) -> int:
        """Call each waiting `take` here and now, at `meta`; return how many were called.

        For the apply loop, between two applied entries. Returns 0 at once when nothing waits. What
        a `take` raises goes to its `capture`, never to the loop; only KeyboardInterrupt and its like
        go to both. Raises TypeError or ValueError for what is no meta.
        """
        meta = to_meta(meta)
        # Counted beforehand: captures that come in meanwhile wait for the next turn, so that the
        # loop gets back to its entries.
        return sum(self._serve_one(meta) for _ in range(len(self._requests)))

    def close(self) -> None:
        """End it: captures that wait, and later ones, raise `StoreClosed`. May come twice."""
        with self._lock:
            self._closed = True
            requests = list(self._requests)
            self._requests.clear()
        for request in requests:
            if request.future.set_running_or_notify_cancel():
                request.future.set_exception(StoreClosed("the capture queue was closed"))

    def _serve_one(self, meta: SnapshotMeta) -> bool:
        with self._lock:
            if not self._requests:
                return False
            request = self._requests.popleft()
        if not request.future.set_running_or_notify_cancel():
            return False
        try:
            result = request.take()
        except BaseException as error:  # The capture must end, whatever it was.
            request.future.set_exception(error)
            if not isinstance(error, Exception):
                raise
        else:
            request.future.set_result((meta, result))
        return True

    def _outcome(self, future: Future[tuple[SnapshotMeta, Any]]) -> tuple[SnapshotMeta, Any]:
        done, _ = wait([future], self._timeout_s)
        if not done and future.cancel():
            raise CaptureTimeout(
                f"the apply loop did not serve the capture within {self._timeout_s} s; "
                "is it running, and does it call serve() when captures are pending?"
            )
        return future.result()

    def _withdraw(self, request: _Request) -> None:
        with self._lock:
            if request in self._requests:
                self._requests.remove(request)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<CaptureQueue {'closed' if self._closed else 'open'} waiting={len(self._requests)}>"


class _Request:
    """One capture: what to call, and what came of it."""

    __slots__ = ("future", "take")

    def __init__(self, take: Callable[[], object]) -> None:
        self.take = take
        self.future: Future[tuple[SnapshotMeta, Any]] = Future()


def _close_result(future: Future[tuple[SnapshotMeta, Any]]) -> None:
    """Close what a `take` returned after its capture had gone."""
    if future.cancelled() or future.exception() is not None:
        return
    close = getattr(future.result()[1], "close", None)
    if close is not None:
        close()
