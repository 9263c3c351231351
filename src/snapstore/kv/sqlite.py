"""A SQLite database that can be pinned while other connections and processes write to it.

Knows how SQLite's readers, writers and checkpoints stand in each other's way; nothing of rafts, streams
and transports. It writes nothing of its own into the database.

Plan, in WAL mode. With the writers' lock held for the moment it takes, everything in the WAL is moved
into the main file and a read transaction begins. That reader takes read lock 0 and ignores the WAL,
and as long as it lives no checkpoint, by whomever, may write to the main file; so the main file *is* the
snapshot, and is read as it lies there while commits gather in the WAL. (Should lock 0 be taken at that
moment, the reader marks the end of the log instead, and nothing beyond a mark is moved; that end is
in the main file already. `walTryBeginRead` and `walCheckpoint` in SQLite's wal.c.)

Plan, in the rollback modes. There a reader stops every commit, so the file is copied beside itself
under a reader's lock and the lock is given back: writers wait for a local copy, never for a network.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import tempfile
import threading
import time
import weakref
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING

from snapstore._fastpipe import Image, save
from snapstore.errors import ForkedProcess, PipeClosed, SnapshotCorrupt, SnapshotTemporarilyUnavailable
from snapstore.kv.sqlite_descriptors import DESCRIPTORS
from snapstore.kv.sqlite_file import connect, database_path, is_locked, restore_sqlite

if TYPE_CHECKING:
    from typing_extensions import Self

    from snapstore.protocols import Reader, Writer

__all__ = ["SqliteKV", "SqliteSnapshot", "restore_sqlite"]

#: How long pinning waits for a writer's transaction to end, and for older readers to let go of the
#: WAL. The apply loop stands still meanwhile, and a raft's election timeout is about a second.
PIN_DEADLINE_S = 1.0

#: Between two tries when an older reader is in the way: SQLite tells nobody that one has ended.
PIN_RETRY_AFTER_S = 0.005

#: A pin held longer than this is worth a warning: a transfer that takes so long is stalled or starved.
PIN_WARN_AFTER_S = 300.0

#: So is a WAL that grew by more than this meanwhile: readers get slower with it, and the disk fills.
WAL_GROWTH_WARN_BYTES = 1024**3

logger = logging.getLogger("snapstore")


class SqliteKV:
    """Snapshots of the SQLite database at `path`; the node keeps its own connections for its work.

    Nothing is opened before `snapshot` is called, so the database need not exist yet. Any thread may
    call anything here. After a fork the child's copy raises `ForkedProcess`.

    The node must not open and close the database's file by other ways than SQLite (`open(path)`,
    `shutil.copy`) while it has connections to it: POSIX then drops their locks.
    """

    def __init__(self, path: str | os.PathLike[str], *, pin_deadline_s: float = PIN_DEADLINE_S) -> None:
        #: Where the database lies, with symbolic links resolved.
        self.path = database_path(path)
        self._pin_deadline_s = pin_deadline_s
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._snapshots: weakref.WeakSet[SqliteSnapshot] = weakref.WeakSet()

    def __repr__(self) -> str:
        return f"<SqliteKV {self.path!r}>"

    def snapshot(self) -> SqliteSnapshot:
        """Pin the last commit.

        In WAL mode this takes as long as moving the WAL into the main file, with its two fsyncs; all
        but the newest commits are moved before writers are stopped. One moment can be pinned at a
        time: after further commits the next call needs the first snapshot closed. In the rollback
        modes the whole file is copied, and commits wait for that: prefer WAL.

        Call it outside any transaction of your own. Raises `SnapshotTemporarilyUnavailable` when a writer's
        transaction or an older reader is in the way for `pin_deadline_s`, or when nothing was ever
        committed; `FileNotFoundError` when there is no database; `sqlite3.DatabaseError` when SQLite
        cannot read it.
        """
        self._check_process()
        try:
            snapshot = _pin(self.path, self._pin_deadline_s)
        except sqlite3.OperationalError as error:
            if not is_locked(error):
                raise
            raise SnapshotTemporarilyUnavailable(
                f"{self.path} was locked by a transaction for {self._pin_deadline_s} s: commit before a "
                "snapshot is taken, and do not use locking_mode=EXCLUSIVE"
            ) from error
        with self._lock:
            self._snapshots.add(snapshot)
        return snapshot

    def restore(self, source: str | os.PathLike[str] | Reader, /) -> None:
        """Replace the database by the snapshot in `source`, a path or a reader of bytes.

        Snapshots of this object that are still out are closed before the new database takes its place.
        All else is as with `restore_sqlite`; above all, the node closes its own connections first.
        """
        self._check_process()
        restore_sqlite(source, self.path, before_replacing=self._close_snapshots)

    def _close_snapshots(self) -> None:
        with self._lock:
            snapshots = list(self._snapshots)
        for snapshot in snapshots:
            snapshot.close()

    def _check_process(self) -> None:
        if os.getpid() != self._pid:
            raise ForkedProcess(f"{self!r} was made before a fork; make a new one in the child")


class SqliteSnapshot:
    """A database as of one commit; made by `SqliteKV.snapshot`.

    The image is a database file that SQLite's own tools open. One thread at a time calls `write_to`; all
    else may come from any thread.
    """

    def __init__(self, path: str, image: Image, pin: ExitStack) -> None:
        self._wal_path = path + "-wal"
        self._image = image
        self._lock = threading.Lock()
        self._pin: ExitStack | None = pin
        self._pid = os.getpid()
        self._pinned_at_s = time.monotonic()
        self._wal_bytes_at_pin = self.wal_bytes

    def __repr__(self) -> str:
        state = "closed" if self._pin is None else "pinned"
        return f"<SqliteSnapshot {state}, {self.size} bytes>"

    @property
    def size(self) -> int:
        """Its length in bytes: a whole number of pages."""
        return self._image.size

    @property
    def wal_bytes(self) -> int:
        """How long the WAL is now: what the pin costs, since nothing of it can be moved meanwhile."""
        try:
            return os.stat(self._wal_path).st_size
        except FileNotFoundError:
            return 0

    @property
    def bytes_held(self) -> int:
        """By how much the WAL has grown since the pin, in bytes: nothing of that can be moved before its
        end. 0 once closed."""
        return max(0, self.wal_bytes - self._wal_bytes_at_pin) if self._pin is not None else 0

    def image(self) -> Image:
        """Return the image, the same object each time; this snapshot's `close` closes it.

        Keep the snapshot as long as the image: the lock that holds the bytes still is the snapshot's.
        Raises `PipeClosed` after `close`.
        """
        if os.getpid() != self._pid:
            raise ForkedProcess("this snapshot was pinned before a fork; only the parent can read it")
        if self._pin is None:
            raise PipeClosed("the snapshot is closed")
        return self._image

    def write_to(self, writer: Writer, /) -> int:
        """Write the image and return its length. The same bytes each time.

        Raises `PipeClosed` once the snapshot is closed, in the middle too.
        """
        return self.image().write_to(writer)

    def close(self) -> None:
        """Give the pin back; any thread, any number of times. The child of a fork has nothing to give."""
        if os.getpid() != self._pid:
            return
        with self._lock:
            pin, self._pin = self._pin, None
        if pin is None:
            return
        # First the image: what is read after its pin is gone must not count as the snapshot's.
        self._image.close()
        pinned_s = time.monotonic() - self._pinned_at_s
        wal_growth_bytes = self.wal_bytes - self._wal_bytes_at_pin
        pin.close()
        if pinned_s > PIN_WARN_AFTER_S or wal_growth_bytes > WAL_GROWTH_WARN_BYTES:
            logger.warning(
                "%s grew by %d bytes while a snapshot was pinned for %.0f s; "
                "PRAGMA wal_checkpoint(TRUNCATE) makes it short again",
                self._wal_path,
                wal_growth_bytes,
                pinned_s,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_args: object) -> None:
        self.close()


def _pin(path: str, deadline_s: float) -> SqliteSnapshot:
    """Take what holds the bytes still; it is given back in the reverse order."""
    with ExitStack() as pin:
        fd = pin.enter_context(DESCRIPTORS.hold(path))
        reader = pin.enter_context(closing(connect(path, deadline_s)))
        if reader.execute("PRAGMA journal_mode").fetchone()[0] == "wal":
            _empty_wal_and_begin(path, reader, deadline_s)
            image = Image(fd, _size_in_transaction(path, fd, reader), close_fd=False)
            return SqliteSnapshot(path, image, pin.pop_all())
        reader.execute("BEGIN")
        size = _size_in_transaction(path, fd, reader)
        with tempfile.TemporaryFile(dir=os.path.dirname(path), buffering=0) as copy:
            # Buffered: writers wait for it, and the bytes are wanted again soon.
            save(Image(fd, size, close_fd=False), copy.fileno(), size=size, direct=False)
            # The image closes the descriptor it is given, and so does this block.
            image = Image(os.dup(copy.fileno()), size)
    return SqliteSnapshot(path, image, ExitStack())


def _empty_wal_and_begin(path: str, reader: sqlite3.Connection, deadline_s: float) -> None:
    """Begin the reader's transaction at a moment at which the main file is the whole database."""
    give_up_at_s = time.monotonic() + deadline_s
    with closing(connect(path, deadline_s)) as gate:
        while True:
            # Most of the WAL moves here, beside the writers; they are stopped for the rest only.
            reader.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
            gate.execute("BEGIN IMMEDIATE")
            try:
                busy, logged, moved = reader.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
                if not busy and logged == moved:
                    reader.execute("BEGIN")
                    # BEGIN alone locks nothing; the first read does.
                    reader.execute("SELECT count(*) FROM sqlite_master").fetchone()
                    return
            finally:
                gate.execute("ROLLBACK")
            if time.monotonic() >= give_up_at_s:
                raise SnapshotTemporarilyUnavailable(
                    f"{path}: an older reader or another checkpoint has kept the WAL from being emptied for "
                    f"{deadline_s} s: end long read transactions, and close the last snapshot first"
                )
            time.sleep(PIN_RETRY_AFTER_S)


def _size_in_transaction(path: str, fd: int, reader: sqlite3.Connection) -> int:
    """The database's length in bytes, as the reader's transaction sees it."""
    pages = reader.execute("PRAGMA page_count").fetchone()[0]
    size = int(pages * reader.execute("PRAGMA page_size").fetchone()[0])
    status = os.fstat(fd)
    if not os.path.samestat(status, os.stat(path)):
        raise SnapshotTemporarilyUnavailable(f"{path} was replaced while it was being pinned; try again")
    if not size:
        raise SnapshotTemporarilyUnavailable(f"{path} is empty: commit something to it first")
    if status.st_size < size:
        raise SnapshotCorrupt(f"{path} has {status.st_size} bytes, its header says {size}")
    return size
