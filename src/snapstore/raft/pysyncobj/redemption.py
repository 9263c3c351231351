"""Tickets of other nodes, redeemed: the snapshot fetched, saved, and made into a KV, off the raft thread.

It must not know PySyncObj, nor what becomes of the KV. One ticket at a time is wanted, the last one that
was shown: a leader that shows another one has no use for what came before.

Plan: a *redemption* is a thread that tries until it has the KV or nobody wants it any more, and a
Future that says how far it is: pending, running while it is handed over, done.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from snapstore._fastpipe import Progress
from snapstore.errors import (
    SnapshotCorrupt,
    SnapshotExists,
    SnapshotNotFound,
    SnapshotTemporarilyUnavailable,
)
from snapstore.retry import advice_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from snapstore.directory import SnapshotDir
    from snapstore.raft.pysyncobj.dump_file import PreparedTicket
    from snapstore.raft.pysyncobj.ticket import Ticket
    from snapstore.raft.slot import ClosableKV
    from snapstore.raft.workers import Workers
    from snapstore.retry import RetryPolicy
    from snapstore.stored import SavedSnapshot
    from snapstore.transport.http_client import SnapshotClient

logger = logging.getLogger("snapstore.raft")

#: How long `close` waits for a thread to let go of the directory: a transfer hears of it at once, an
#: fsync, or a peer that takes its time to answer, does not.
CLOSE_TIMEOUT_S = 10.0

K = TypeVar("K", bound="ClosableKV")


@dataclass(frozen=True, slots=True)
class Redeemed(Generic[K]):
    """A ticket's snapshot, saved for good, a KV with its content, and the ticket of our own for it."""

    saved: SavedSnapshot
    kv: K
    ticket: PreparedTicket

    def discard(self) -> None:
        """Close the KV, and forget the ticket. The snapshot stays."""
        self.ticket.discard()
        self.kv.close()


class Redeemer(Generic[K]):
    """Redeems tickets, the last one shown. For one thread.

    `prepare(saved)` writes the ticket of our own for what was saved.
    """

    def __init__(
        self,
        directory: SnapshotDir,
        open_kv: Callable[[SavedSnapshot | None], K],
        client: SnapshotClient,
        prepare: Callable[[SavedSnapshot], PreparedTicket],
        *,
        retry: RetryPolicy,
        workers: Workers,
    ) -> None:
        self._directory = directory
        self._open_kv = open_kv
        self._client = client
        self._prepare = prepare
        self._retry = retry
        self._workers = workers
        self._current: _Redemption[K] | None = None

    def redeem(self, ticket: Ticket, timeout_s: float = 0.0) -> Redeemed[K]:
        """Return what `ticket` is for; SnapshotTemporarilyUnavailable while it is on its way.

        The first call for a ticket begins with it, and gives up any other. What is returned belongs to
        the caller. Waits for it up to `timeout_s` seconds.
        """
        current = self._current
        if current is None or current.ticket != ticket:
            if current is not None:
                logger.info("%r is given up: there is another ticket", current)
                current.end()
            current = self._current = _Redemption(ticket)
            self._workers.submit(self._run, current)
        try:
            redeemed = current.result.result(timeout_s)
        except TimeoutError:
            raise SnapshotTemporarilyUnavailable(f"{current!r} is on its way") from None
        self._current = None
        return redeemed

    def close(self) -> None:
        """Give up what is under way, and wait until its thread has let go. May come twice."""
        current, self._current = self._current, None
        if current is not None:
            current.end()
            if not current.ended.wait(CLOSE_TIMEOUT_S):
                logger.warning("%r does not come to its end", current)

    # On a thread of its own.

    def _run(self, redemption: _Redemption[K]) -> None:
        failures = 0
        try:
            while not redemption.unwanted.is_set():
                redemption.progress = Progress()
                try:
                    redeemed = self._obtain(redemption)
                except Exception as error:  # noqa: BLE001 - whatever it is, raft asks for this ticket again.
                    failures = 1 if redemption.progress.bytes else failures + 1
                    delay_s = self._retry.delay_s(failures, advice_of(error))
                    if not redemption.unwanted.is_set():
                        logger.warning("%r goes on in %.1f s: %s", redemption, delay_s, error)
                    redemption.unwanted.wait(delay_s)
                else:
                    redemption.hand_over(redeemed)
                    return
        finally:
            redemption.ended.set()

    def _obtain(self, redemption: _Redemption[K]) -> Redeemed[K]:
        ticket = redemption.ticket
        try:
            stored = self._directory.open(ticket.index, progress=redemption.progress)
        except (SnapshotNotFound, SnapshotCorrupt):
            with contextlib.suppress(SnapshotExists):  # Our own dump was quicker with this index.
                self._client.fetch(
                    ticket.url,
                    ticket.index,
                    self._directory,
                    digest=ticket.digest,
                    progress=redemption.progress,
                )
            stored = self._directory.open(ticket.index, verify=False)
        with stored:
            if stored.meta.term != ticket.term:
                raise SnapshotCorrupt(
                    f"{stored.path} is of term {stored.meta.term}, the leader's of term {ticket.term}"
                )
            own_ticket = self._prepare(stored.saved)
            try:
                return Redeemed(stored.saved, self._open_kv(stored.saved), own_ticket)
            except BaseException:
                own_ticket.discard()
                raise


class _Redemption(Generic[K]):
    """One ticket on its way. `unwanted` and `ended` go from not set to set."""

    def __init__(self, ticket: Ticket) -> None:
        self.ticket = ticket
        self.result: Future[Redeemed[K]] = Future()
        self.progress = Progress()
        self.unwanted = threading.Event()
        self.ended = threading.Event()

    def hand_over(self, redeemed: Redeemed[K]) -> None:
        """Give the KV to whoever asks for it, or close it where nobody will."""
        if self.result.set_running_or_notify_cancel():
            self.result.set_result(redeemed)
        else:
            redeemed.discard()

    def end(self) -> None:
        """Say that nobody wants it any more; a KV that is there already is closed."""
        self.unwanted.set()
        self.progress.cancel()
        if not self.result.cancel():
            self.result.result().discard()

    def __repr__(self) -> str:
        ticket = self.ticket
        return f"<Redemption of {ticket.index} from {ticket.url}: {self.progress.bytes} of {ticket.size}>"
