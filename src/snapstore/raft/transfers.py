"""The leader's side: from the engine's request for a snapshot to the report of what became of it.

It must not know which engine, store or transport it serves, and touches no byte of a snapshot.

Plan: a *transfer* is one snapshot message to one member, and the stream lent for it. All states live
on the raft thread, in the table below; workers only send, and post what came of it. However a transfer
ends, it ends in `_end`: the stream is released once, and the engine told once.
"""

from __future__ import annotations

import enum
import logging
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

from snapstore._fastpipe import Progress
from snapstore.errors import SnapshotNotInUse, SnapshotTemporarilyUnavailable, StoreClosed
from snapstore.retry import advice_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from snapstore.meta import SnapshotMeta
    from snapstore.protocols import Clock, Timer
    from snapstore.raft.engine import Carrier, Engine, SnapshotLender
    from snapstore.raft.holds import Hold, Holds
    from snapstore.raft.inbox import Inbox
    from snapstore.raft.workers import Workers
    from snapstore.retry import Retries, RetryPolicy
    from snapstore.stream import SnapshotStream

logger = logging.getLogger("snapstore.raft")

#: The engine puts its message into the Ready that follows its request. One that was not seen so long
#: after is not coming: the engine has stepped down meanwhile, or was restarted.
CLEAR_UNSENT_AFTER_S = 5.0


class Phase(enum.Enum):
    """How far a transfer is."""

    LENT = "lent"
    SENDING = "sending"
    WAITING = "waiting"
    ENDED = "ended"


#: Where each phase may lead, and on what occasion.
MOVES: dict[Phase, frozenset[Phase]] = {
    # The engine's message comes out; it does not come, or the snapshot is compacted; close.
    Phase.LENT: frozenset({Phase.SENDING, Phase.ENDED}),
    # The attempt failed and there is another one; the last one is over; close.
    Phase.SENDING: frozenset({Phase.WAITING, Phase.ENDED}),
    # The delay is over; close.
    Phase.WAITING: frozenset({Phase.SENDING, Phase.ENDED}),
    Phase.ENDED: frozenset(),
}


class Transfer:
    """One snapshot on its way to one member. Belongs to the raft thread, but for `stream`."""

    def __init__(self, to: int, stream: SnapshotStream, retries: Retries, hold: Hold) -> None:
        self.to = to
        self.stream = stream
        self.retries = retries
        self.hold = hold
        self.message = b""
        self.timer: Timer | None = None
        self.phase = Phase.LENT

    def move(self, phase: Phase) -> None:
        """Go along the table."""
        if phase not in MOVES[self.phase]:
            raise AssertionError(f"a transfer cannot go from {self.phase.name} to {phase.name}")
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        self.phase = phase

    def __repr__(self) -> str:
        return f"<Transfer of {self.stream.meta.index} to {self.to} {self.phase.value}>"


class Transfers:
    """All transfers of a node, one for each member at most. For the raft thread.

    What may take time goes to another thread by `run_soon`.
    """

    def __init__(
        self,
        store: SnapshotLender,
        engine: Engine,
        carrier: Carrier,
        *,
        url_of: Callable[[int], str],
        inbox: Inbox,
        clock: Clock,
        run_soon: Callable[[Callable[[], None]], None],
        workers: Workers,
        retry: RetryPolicy,
        holds: Holds,
    ) -> None:
        self._store = store
        self._engine = engine
        self._carrier = carrier
        self._url_of = url_of
        self._inbox = inbox
        self._clock = clock
        self._run_soon = run_soon
        self._workers = workers
        self._retry = retry
        self._holds = holds
        self._closed = False
        self._open: dict[int, Transfer] = {}
        # Until when each member that failed is left alone: raft asks with each heartbeat.
        self._rests_until_s: dict[int, float] = {}

    def lend(self, to: int, request_index: int) -> SnapshotMeta:
        """Have a stream for the member `to`; the meta of it. SnapshotTemporarilyUnavailable: later."""
        if self._closed:
            raise SnapshotTemporarilyUnavailable("the exchange was closed")
        known = self._open.get(to)
        if known is not None:
            if known.phase is not Phase.LENT:
                raise SnapshotTemporarilyUnavailable(f"{known!r} is not over yet")
            if not known.stream.closed and known.stream.meta.index >= request_index:
                return known.stream.meta
            self._end(known, finished=False)
        rest_s = self._rests_until_s.get(to, 0.0) - self._clock.monotonic()
        if rest_s > 0:
            raise SnapshotTemporarilyUnavailable(f"member {to} failed and is left alone for {rest_s:.1f} s")
        stream = self._store.get_snap(owner=f"member {to}")
        try:
            self._open[to] = self._lent(to, stream, request_index)
        except BaseException:
            self._release_soon(stream)
            raise
        return stream.meta

    def _lent(self, to: int, stream: SnapshotStream, request_index: int) -> Transfer:
        index = stream.meta.index
        if index == 0 or index < request_index:
            raise SnapshotTemporarilyUnavailable(f"snapshot {index} is too old, {request_index} is asked for")
        transfer = Transfer(to, stream, self._retry.begin(), self._holds.hold(index))
        expire = partial(self._inbox.post, partial(self._expire, transfer))
        transfer.timer = self._clock.call_later(CLEAR_UNSENT_AFTER_S, expire)
        return transfer

    def send(self, to: int, index: int, message: bytes) -> None:
        """Send the engine's `message` and what was lent for it. Never raises, never blocks.

        A message for which nothing is lent is reported as failed, in the next turn.
        """
        transfer = self._open.get(to)
        if transfer is None or transfer.phase is not Phase.LENT or transfer.stream.meta.index != index:
            logger.warning("the snapshot message of %d to %d has no snapshot: %r", index, to, transfer)
            self._inbox.post(partial(self._report, to, finished=False))
            return
        transfer.message = message
        self._start(transfer)

    def end_revoked(self) -> None:
        """End those that wait for something and whose snapshot was taken away meanwhile."""
        for transfer in list(self._open.values()):
            if transfer.stream.closed and transfer.phase is not Phase.SENDING:
                self._end(transfer, finished=False)

    def close(self) -> None:
        """End all: streams are closed, and what was sent is reported as failed. May come twice."""
        self._closed = True
        # All of them, also where the engine panics at the report on one.
        with ExitStack() as ends:
            for transfer in self._open.values():
                ends.callback(self._end, transfer, finished=False)
                # The worker reads it, perhaps. It ends now, and posts to an inbox that nobody reads.
                transfer.stream.revoke(StoreClosed("the exchange was closed"))

    # An attempt, and what becomes of it.

    def _start(self, transfer: Transfer) -> None:
        transfer.move(Phase.SENDING)
        # Starting a thread waits for it: 16 ms were seen where two others computed.
        self._run_soon(partial(self._submit, transfer))

    def _submit(self, transfer: Transfer) -> None:
        try:
            self._workers.submit(self._attempt, transfer)
        except BaseException as error:  # noqa: BLE001 - no thread to be had; the engine has to hear of it.
            self._inbox.post(partial(self._settle, transfer, error, 0))

    def _attempt(self, transfer: Transfer) -> None:
        """Send it once, on a worker."""
        progress = Progress()
        failure: BaseException | None = None
        try:
            self._carrier.send_snapshot(
                self._url_of(transfer.to), transfer.stream, progress=progress, message=transfer.message
            )
        except BaseException as error:  # noqa: BLE001 - a follower that is not reported on stalls for ever.
            failure = error.with_traceback(None)
        self._inbox.post(partial(self._settle, transfer, failure, progress.bytes))

    def _settle(self, transfer: Transfer, error: BaseException | None, reached_size: int) -> None:
        if transfer.phase is not Phase.SENDING:
            return  # Closed meanwhile, and reported then.
        if error is None:
            self._end(transfer, finished=True)
            return
        waits = False
        try:
            waits = self._is_tried_again(transfer, error, reached_size)
        finally:
            if not waits:
                logger.warning("%r failed: %s", transfer, error)
                self._end(transfer, finished=False)

    def _is_tried_again(self, transfer: Transfer, error: BaseException, reached_size: int) -> bool:
        """Have it go on later; False where it is given up, and its member left alone for a while."""
        delay_s = None
        if _is_rereadable(transfer.stream):
            delay_s = transfer.retries.delay_s(error, reached_size)
        if delay_s is None:
            self._let_rest(transfer, error)
            return False
        again = partial(self._inbox.post, partial(self._resume, transfer))
        timer = self._clock.call_later(delay_s, again)
        transfer.move(Phase.WAITING)
        transfer.timer = timer
        logger.info("%r goes on in %.1f s: %s", transfer, delay_s, error)
        return True

    def _resume(self, transfer: Transfer) -> None:
        if transfer.phase is Phase.WAITING:
            self._start(transfer)

    def _expire(self, transfer: Transfer) -> None:
        if transfer.phase is Phase.LENT:
            self._end(transfer, finished=False)

    # The end.

    def _let_rest(self, transfer: Transfer, error: BaseException) -> None:
        if transfer.stream.closed:
            return  # Our own doing: the log was compacted, and there is a newer snapshot to be had.
        rest_s = self._retry.delay_s(self._retry.attempts_max, advice_of(error))
        self._rests_until_s[transfer.to] = self._clock.monotonic() + rest_s

    def _end(self, transfer: Transfer, *, finished: bool) -> None:
        owed = transfer.phase is not Phase.LENT
        transfer.move(Phase.ENDED)
        del self._open[transfer.to]
        if finished:
            self._rests_until_s.pop(transfer.to, None)
        self._holds.release(transfer.hold, finished=finished)
        self._release_soon(transfer.stream)
        if owed:
            self._report(transfer.to, finished=finished)

    def _report(self, to: int, *, finished: bool) -> None:
        try:
            self._engine.report_snapshot(to, finished=finished)
        except Exception:
            logger.exception("the engine did not take the report on member %d", to)

    def _release_soon(self, stream: SnapshotStream) -> None:
        self._run_soon(partial(self._release, stream))

    def _release(self, stream: SnapshotStream) -> None:
        try:
            self._store.clear_used_snap(stream)
        except (SnapshotNotInUse, StoreClosed):
            stream.close()  # The store let go of it already.
        except Exception:
            logger.exception("releasing %r failed", stream)

    def __repr__(self) -> str:
        return f"<Transfers {list(self._open.values())}>"


def _is_rereadable(stream: SnapshotStream) -> bool:
    """Whether another attempt can begin at the beginning; not where it was closed meanwhile."""
    try:
        return stream.rereadable
    except Exception:  # noqa: BLE001 - closed, or the KV does not give it: there is nothing to send.
        return False
