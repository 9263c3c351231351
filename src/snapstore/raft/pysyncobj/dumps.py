"""PySyncObj's dumps as tickets: its serializer, its deserializer, its checker.

All three are called on PySyncObj's one thread, which must not stand still and must not fall: what takes
time goes to others, what fails is told as PySyncObj can hear it. It must not know any concrete KV.

A dump of our own: `serialize` pins the KV, in 0.2 ms. A background thread saves the pin for
good. Then `check`, in the tick that lets PySyncObj compact its log, puts the ticket in place: so the
dump file never names what is not there, and nothing is compacted that is not saved.

A dump of the leader's: `deserialize` is shown its ticket. While the snapshot is on its way it raises, as
"later"; raft goes on meanwhile, and the leader shows the ticket again with its next messages. When
all is there, the KV is swapped, and PySyncObj goes on behind it.
"""

from __future__ import annotations

import logging
import threading
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeVar

from snapstore.clock import SystemClock
from snapstore.errors import MissingExtra, PeerRejected, SnapshotNotFound, SnapshotTemporarilyUnavailable
from snapstore.raft.holds import HELD_ENTRIES_MAX, HELD_S_MAX
from snapstore.raft.pysyncobj.attached import AttachedNode
from snapstore.raft.pysyncobj.dump_file import DumpFile
from snapstore.raft.pysyncobj.hold import CompactionHold
from snapstore.raft.pysyncobj.own_dump import OwnDump, Saver
from snapstore.raft.pysyncobj.redemption import CLOSE_TIMEOUT_S, Redeemer
from snapstore.raft.pysyncobj.restart import open_start
from snapstore.raft.pysyncobj.tick_strain import TickStrain
from snapstore.raft.pysyncobj.ticket import TicketMalformed, pack_meta, unpack_meta
from snapstore.raft.slot import KvSlot
from snapstore.raft.workers import SendThreads, run_soon
from snapstore.retry import RetryPolicy
from snapstore.transport.http_client import SnapshotClient

try:
    from pysyncobj import SERIALIZER_STATE
    from pysyncobj.node import TCPNode
except ImportError as _error:
    raise MissingExtra("PySyncObj is not installed: pip install 'snapstore[raft]'") from _error

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Sequence

    from typing_extensions import Self

    from snapstore.directory import SnapshotDir
    from snapstore.protocols import Clock
    from snapstore.raft.pysyncobj.dump_file import PreparedTicket
    from snapstore.raft.pysyncobj.redemption import Redeemed
    from snapstore.raft.pysyncobj.ticket import Entry
    from snapstore.raft.slot import ClosableKV
    from snapstore.raft.workers import Workers
    from snapstore.stored import SavedSnapshot
    from snapstore.wire import Offer

    Data = tuple[Entry, Entry, set[Any]]

logger = logging.getLogger("snapstore.raft")

#: Snapshots that stay: the one behind the dump file, and the one before it, whose ticket a follower may
#: have been shown a moment ago.
KEEP = 2

K = TypeVar("K", bound="ClosableKV")


class TicketDumps(Generic[K]):
    """What a node gives to PySyncObj in place of dumps: `SyncObjConf(..., **dumps.hooks)`.

    `directory` is where the node's snapshots are saved, and what its `SnapshotServer` serves; `url` is
    where the others reach that server. `open_kv(saved)` makes a KV of a saved snapshot, or an empty one of
    None, at a place of its own (`LmdbPlaces` does), on any thread; `kv` is the slot where the node's own
    code finds it, and all that entries of the log change must lie there:

        with dumps.kv.reading() as kv: ...

    `dump_file` is what PySyncObj calls fullDumpFile. `peers` are the URLs of the other nodes, asked at a
    start where this node's own snapshot is gone or broken, with `client`, as for all that is fetched.

    Making it restores the KV: the snapshot behind the dump file is read back, verified and made into a
    KV before PySyncObj begins; see `restart`. Raises SnapshotNotFound where it is lost and no peer has
    one, what `open_kv` raises, and OSError.

    `attach` it to the node, or no leader's snapshot is taken. The log is kept for a follower that fetches,
    up to `held_s_max` seconds and `held_entries_max` entries. `keep` snapshots stay in `directory`, and
    the one behind the dump file in any case. After its failures it waits as `retry` says. Except for `kv`
    and `strain`, all is for PySyncObj's thread, or for when it does not run.
    """

    def __init__(
        self,
        directory: SnapshotDir,
        open_kv: Callable[[SavedSnapshot | None], K],
        *,
        dump_file: str | os.PathLike[str],
        url: str,
        peers: Sequence[str] = (),
        client: SnapshotClient | None = None,
        node_of: Callable[[str], Any] = TCPNode,
        keep: int = KEEP,
        retry: RetryPolicy | None = None,
        held_s_max: float = HELD_S_MAX,
        held_entries_max: int = HELD_ENTRIES_MAX,
        clock: Clock | None = None,
        workers: Workers | None = None,
    ) -> None:
        if keep < 1:
            raise ValueError("keep is 1 or more: the snapshot behind the dump file stays")
        self._node_of = node_of
        self._retry = retry or RetryPolicy()
        self._held_s_max = held_s_max
        self._held_entries_max = held_entries_max
        self._file = DumpFile(dump_file)
        self._saver = Saver(directory, self._file, url, keep)
        client = client or SnapshotClient()
        self._dump: OwnDump | None = None
        self._failures = 0
        self._node: AttachedNode | None = None
        self._hold: CompactionHold | None = None
        self._ticks: TickStrain | None = None
        # What PySyncObj is given for the dump file that it finds at its start.
        self._start: Data | None = None
        stored = open_start(self._file, directory, client, url, peers)
        self._began_empty = stored is None
        try:
            if stored is not None:
                self._start = unpack_meta(stored.meta, node_of)
            self.kv: KvSlot[K] = KvSlot(open_kv(stored.saved if stored else None))
        except BaseException:
            if stored is not None:
                stored.close()
            raise
        if stored is not None:
            self._saver.hold(stored)
        self._redeemer = Redeemer(
            directory,
            open_kv,
            client,
            self._prepare_received,
            retry=self._retry,
            workers=workers or SendThreads(),
        )
        self._clock: Clock = clock or SystemClock()
        self._owns_clock = clock is None

    @property
    def hooks(self) -> dict[str, Any]:
        """What belongs into `SyncObjConf`."""
        return {
            "fullDumpFile": str(self._file.path),
            "serializer": self.serialize,
            "deserializer": self.deserialize,
            "serializeChecker": self.check,
        }

    @staticmethod
    def refuse_offer(_offer: Offer) -> NoReturn:
        """Refuse a snapshot that is sent: here they are fetched. The server's `on_offer`."""
        raise PeerRejected(HTTPStatus.METHOD_NOT_ALLOWED, "this node fetches its snapshots; it takes none")

    def attach(self, node: Any) -> None:
        """Get to know the SyncObj that has these hooks. Right after it was made, before it has ticked.

        Raises SnapshotNotFound where its journal goes on from a snapshot, and there is no dump file:
        PySyncObj would take entries for ever, and apply none.
        """
        attached = AttachedNode(node)
        if self._began_empty and attached.applied + 1 < attached.first_index:
            raise SnapshotNotFound(
                f"this node's journal begins with entry {attached.first_index}, and {self._file.path}, which"
                " told what comes before, is gone; remove the journal, and let the node join as a new one"
            )
        if self._hold is not None:
            self._hold.let_go()
        self._node = attached
        self._hold = CompactionHold(
            node.conf,
            self._clock.monotonic,
            held_s_max=self._held_s_max,
            held_entries_max=self._held_entries_max,
        )
        self._ticks = TickStrain(node.conf, self._clock.monotonic)

    def strain(self) -> float:
        """Say how late the node's ticks were since it was asked last, for one `Pacer`. For any thread.

        1 is so late that an election can begin. 0 before the node is attached, and when this is closed.

            Pacer([throttle], dumps.strain)
        """
        ticks = self._ticks
        return 0.0 if ticks is None else ticks.take()

    # Our own dump.

    def serialize(self, _path: str, data: Data) -> None:
        """Pin the KV as of the last applied entry, and have it saved. PySyncObj's `serializer`.

        Writes nothing at `_path`: PySyncObj would put it in place of the dump file at once. That it
        does not find anything there is no failure, since it asks `check` how its dump goes.
        """
        dump = self._dump = OwnDump()
        try:
            last, before, members = data
            meta = pack_meta(last, before, [node.id for node in members if node is not None])
            pinned = self.kv.snapshot()
            try:
                self._clock.run_soon(partial(self._saver.save, dump, meta, pinned))
            except BaseException:
                pinned.close()
                raise
        except Exception as error:  # noqa: BLE001 - told by `check`.
            dump.result.set_exception(error)

    def check(self) -> int:
        """Say how the dump goes, and end it. PySyncObj's `serializeChecker`, called in each tick."""
        if self._ticks is not None:
            self._ticks.tick()
        self._look()
        dump = self._dump
        if dump is None:
            return int(SERIALIZER_STATE.NOT_SERIALIZING)
        if not dump.result.done() or (dump.rests_until_s or 0.0) > self._clock.monotonic():
            return int(SERIALIZER_STATE.SERIALIZING)
        try:
            ticket = dump.result.result()
            if dump.overtaken:
                ticket.discard()
                raise SnapshotTemporarilyUnavailable("the node has gone on from another snapshot meanwhile")
            self._place(ticket)
        except Exception as error:  # noqa: BLE001 - PySyncObj keeps its log, and asks again.
            return self._failed(dump, error)
        self._dump = None
        self._failures = 0
        return int(SERIALIZER_STATE.SUCCESS)

    def _look(self) -> None:
        """Look at the node as it is in this tick: what it needs no more, and what others need of it."""
        if self._node is None or self._hold is None:
            return
        try:
            self._redeemer.forget_up_to(self._node.applied)
            self._hold.update(self._node.status, self._node.first_index)
        except Exception:
            logger.exception("whether to keep the log could not be told; it is compacted as ever")

    def _failed(self, dump: OwnDump, error: Exception) -> int:
        """PySyncObj tries again in its next tick, so it hears of a failure when it is time for that."""
        if dump.rests_until_s is None:
            self._failures += 1
            delay_s = self._retry.delay_s(self._failures)
            dump.rests_until_s = self._clock.monotonic() + delay_s
            logger.warning("the KV was not saved, so the log stays; again in %.1f s: %s", delay_s, error)
            return int(SERIALIZER_STATE.SERIALIZING)
        self._dump = None
        return int(SERIALIZER_STATE.FAILED)

    # The leader's.

    def deserialize(self, _path: str) -> Data:
        """Return what PySyncObj goes on from, with the KV in its place. PySyncObj's `deserializer`.

        Raises SnapshotTemporarilyUnavailable while the snapshot is on its way, TicketMalformed where
        the leader sends no tickets. PySyncObj takes either as no dump at all, and goes on as it was.
        """
        if self._start is not None:
            start, self._start = self._start, None
            if self._node is not None:
                self._node.begin_with(start[1][1])
            return start
        try:
            redeemed, data = self._redeem()
            self._place(redeemed.ticket)
        except BaseException:
            self._file.put_back()  # Whom we lead next is shown what is here, and so are we at a restart.
            raise
        if self._dump is not None:
            self._dump.overtake()
        self.kv.swap(redeemed.kv, run=partial(run_soon, self._clock))
        logger.info("went on from snapshot %d, of %d bytes", redeemed.saved.index, redeemed.saved.size)
        return data

    def _redeem(self) -> tuple[Redeemed[K], Data]:
        if self._node is None:
            raise RuntimeError("these dumps do not know their node: attach them to it")
        try:
            ticket = self._file.read()
        except TicketMalformed:
            self._node.drop_uncommitted()
            raise
        if not self._node.needs(ticket.index, ticket.term):
            raise SnapshotTemporarilyUnavailable(f"late, or sent twice: entry {ticket.index} is here")
        self._node.drop_uncommitted()
        redeemed = self._redeemer.redeem(ticket)
        return redeemed, unpack_meta(redeemed.saved.meta, self._node_of)

    def _prepare_received(self, saved: SavedSnapshot) -> PreparedTicket:
        unpack_meta(saved.meta, self._node_of)  # Here an error has the time that a failure takes.
        return self._saver.prepare(saved)

    def _place(self, ticket: PreparedTicket) -> None:
        ticket.place()
        run_soon(self._clock, partial(self._saver.settle, ticket.ticket.index))

    def close(self) -> None:
        """End what is under way, and close the KV. After the SyncObj was destroyed; may come twice."""
        self._ticks = None  # Nobody ticks any more, and that is no strain.
        dump, self._dump = self._dump, None
        if dump is not None:
            dump.overtake()
        if self._hold is not None:
            self._hold.let_go()
        self._redeemer.close()
        if isinstance(self._clock, SystemClock) and self._owns_clock:
            self._owns_clock = False
            done = threading.Event()
            self._clock.run_soon(done.set)
            self._clock.close()
            if not done.wait(CLOSE_TIMEOUT_S):
                logger.warning("a snapshot is being saved, and does not come to its end")
        self._saver.close()
        self.kv.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<TicketDumps {self._file.path} dump={self._dump}>"
