"""A dump of our own: the pinned KV saved for good, the ticket for it, and what it makes superfluous.

It must not know PySyncObj, nor when a ticket is put in place. Runs off the raft thread.
"""

from __future__ import annotations

import logging
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING

from snapstore._fastpipe import Progress
from snapstore.errors import SnapshotCorrupt, SnapshotExists
from snapstore.raft.pysyncobj.ticket import Ticket
from snapstore.stream import SnapshotStream

if TYPE_CHECKING:
    from snapstore.directory import SnapshotDir
    from snapstore.meta import SnapshotMeta
    from snapstore.protocols import Snapshot
    from snapstore.raft.pysyncobj.dump_file import DumpFile, PreparedTicket
    from snapstore.stored import SavedSnapshot, StoredSnapshot

logger = logging.getLogger("snapstore.raft")


class OwnDump:
    """One that is under way: `result` is its ticket. `rests_until_s` is set when it has failed."""

    def __init__(self) -> None:
        self.result: Future[PreparedTicket] = Future()
        self.progress = Progress()
        self.overtaken = False
        self.rests_until_s: float | None = None

    def overtake(self) -> None:
        """Never put it in place: the node has gone on from another snapshot meanwhile."""
        self.overtaken = True
        self.progress.cancel()


class Saver:
    """Saves dumps in `directory`, writes tickets with `url` for `file`, and keeps `keep` snapshots.

    For one thread at a time, except `prepare` and `close`, which are for any.
    """

    def __init__(self, directory: SnapshotDir, file: DumpFile, url: str, keep: int) -> None:
        self._directory = directory
        self._file = file
        self._url = url
        self._keep = keep
        self._lock = threading.Lock()
        self._closed = False
        # The snapshot behind the dump file, leased: newer ones may come in between that it never names.
        self._placed: StoredSnapshot | None = None

    def save(self, dump: OwnDump, meta: SnapshotMeta, pinned: Snapshot) -> None:
        """Save `pinned`, which is closed then; `dump` is told of the end."""
        try:
            with SnapshotStream(meta, pinned) as stream:
                saved = self._saved(stream, dump.progress)
            ticket = self.prepare(saved)
        except BaseException as error:  # noqa: BLE001 - whoever waits for the dump hears of it.
            dump.result.set_exception(error)
        else:
            dump.result.set_result(ticket)

    def prepare(self, saved: SavedSnapshot) -> PreparedTicket:
        """Write the ticket for what was saved. Raises OSError."""
        return self._file.prepare(Ticket.for_saved(saved, self._url))

    def _saved(self, stream: SnapshotStream, progress: Progress) -> SavedSnapshot:
        index = stream.meta.index
        try:
            return self._directory.save_from(stream, stream.meta, progress=progress, urgent=False)
        except SnapshotExists:
            if self._directory.set_aside(index, "it is in the way of a new one") is None:
                saved = self._directory.confirm(index)
                # Saved before a restart, or fetched: the same entry, so the same content.
                if saved.meta != stream.meta:
                    raise SnapshotCorrupt(f"{saved.path} is of another log; move it away") from None
                return saved
        return self._directory.save_from(stream, stream.meta, progress=progress, urgent=False)

    def settle(self, index: int) -> None:
        """After the ticket for `index` was put in place: make it last, and let old snapshots go."""
        try:
            self._file.sync()
            # A lease besides the node's, which ends with the node: the dump file names it all the same.
            with self._directory.open(index, verify=False):
                self.hold(self._directory.open(index, verify=False))
                self._directory.purge(keep=self._keep)
        except Exception:
            logger.exception("old snapshots stay")

    def hold(self, placed: StoredSnapshot) -> None:
        """Keep every purge off what is behind the dump file now, as long as the node lives."""
        superfluous: StoredSnapshot | None = placed
        with self._lock:
            if not self._closed:
                superfluous, self._placed = self._placed, placed
        if superfluous is not None:
            superfluous.close()

    def close(self) -> None:
        """Give the lease back, also one that a background takes later. May come twice."""
        with self._lock:
            self._closed = True
            placed, self._placed = self._placed, None
        if placed is not None:
            placed.close()
