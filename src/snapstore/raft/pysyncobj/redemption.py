"""Tickets of other nodes, redeemed: the snapshot fetched, saved, and made into a KV, off the raft thread.

It must not know PySyncObj, nor what becomes of the KV. One ticket at a time is wanted, the last one that
was shown: a leader that shows another one has no use for what came before.

Plan: a *redemption* is a thread that tries until it has the KV, and keeps it until it is taken. When
nobody wants it any more, the same thread closes it.
"""

from __future__ import annotations

import contextlib
import logging
import threading
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
    """Redeems tickets, the last one shown. For one thread, and nothing here waits but `close`.

    `prepare(saved)` writes the ticket of our own for what was saved; what it raises is a failure of the
    attempt.
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

    def redeem(self, ticket: Ticket) -> Redeemed[K]:
        """Return what `ticket` is for; SnapshotTemporarilyUnavailable while it is on its way.

        The first call for a ticket begins with it, and gives up any other. What is returned belongs to
        the caller. Raises what the workers raise where they have no thread.
        """
        if self._current is None or self._current.ticket != ticket:
            self._give_up("there is another ticket")
            begun = _Redemption[K](ticket)
            self._workers.submit(self._run, begun)
            self._current = begun
        redeemed = self._current.take()
        if redeemed is None:
            raise SnapshotTemporarilyUnavailable(f"{self._current!r} is on its way")
        self._current = None
        return redeemed

    def forget_up_to(self, index: int) -> None:
        """Give up what is for `index` or before: the node has come there without it."""
        if self._current is not None and self._current.ticket.index <= index:
            self._give_up("it is not needed any more")

    def close(self) -> None:
        """Give up what is under way, and wait until its thread has let go. May come twice."""
        current = self._give_up("the node ends")
        if current is not None and not current.ended.wait(CLOSE_TIMEOUT_S):
            logger.warning("%r does not come to its end", current)

    def _give_up(self, why: str) -> _Redemption[K] | None:
        current, self._current = self._current, None
        if current is not None:
            logger.info("%r is given up: %s", current, why)
            current.give_up()
        return current

    # On a thread of its own.

    def _run(self, redemption: _Redemption[K]) -> None:
        try:
            redeemed = self._redeemed(redemption)
            if redeemed is not None:
                redemption.hand_over(redeemed)
        finally:
            redemption.ended.set()

    def _redeemed(self, redemption: _Redemption[K]) -> Redeemed[K] | None:
        """What the ticket is for, however often it takes; None when nobody wants it any more."""
        failures = 0
        while not redemption.over.is_set():
            redemption.progress = Progress()
            if redemption.over.is_set():  # Since before the progress was there to be cancelled.
                break
            try:
                return self._obtain(redemption)
            except Exception as error:  # noqa: BLE001 - whatever it is, raft asks for this ticket again.
                failures = 1 if redemption.progress.bytes else failures + 1
                delay_s = self._retry.delay_s(failures, advice_of(error))
                if not redemption.over.is_set():
                    logger.warning("%r goes on in %.1f s: %s", redemption, delay_s, error)
                redemption.over.wait(delay_s)
        return None

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
    """One ticket on its way. `over` is set when what it is for was taken, or is not wanted any more."""

    def __init__(self, ticket: Ticket) -> None:
        self.ticket = ticket
        self.progress = Progress()
        self.over = threading.Event()
        self.ended = threading.Event()
        self._redeemed: Redeemed[K] | None = None
        self._taken = False

    def hand_over(self, redeemed: Redeemed[K]) -> None:
        """Give the KV to whoever asks for it, or close it when nobody will: that may take long."""
        self._redeemed = redeemed
        self.over.wait()
        if not self._taken:
            redeemed.discard()

    def take(self) -> Redeemed[K] | None:
        """Return what is there, which is then the caller's; None as long as nothing is."""
        redeemed = self._redeemed
        if redeemed is not None:
            self._taken = True
            self.over.set()
        return redeemed

    def give_up(self) -> None:
        """Say that nobody wants it any more."""
        self.over.set()
        self.progress.cancel()

    def __repr__(self) -> str:
        ticket = self.ticket
        return f"<Redemption of {ticket.index} from {ticket.url}: {self.progress.bytes} of {ticket.size}>"
