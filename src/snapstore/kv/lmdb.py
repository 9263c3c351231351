"""LMDB as a KV: an environment that can be pinned, and replaced by a snapshot.

It must not know stores, streams or transports. What the files look like is `lmdb_file.py`'s, what a
pinned transaction's image is made of is `lmdb_snapshot.py`'s.

Plan: one environment, its state in the table below, and a descriptor of its data file, opened beside
it and shared by all snapshots, so that each of them reads the very file that it pinned, even after
another one has taken its name.
"""

from __future__ import annotations

import enum
import logging
import mmap
import os
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any

import lmdb

from snapstore.errors import (
    ForkedProcess,
    SnapshotTemporarilyUnavailable,
    SnapstoreError,
    StoreClosed,
)
from snapstore.kv.lmdb_file import META_PAGES, StagedRestore, data_and_lock, restore_lmdb
from snapstore.kv.lmdb_snapshot import LmdbSnapshot, pin

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Self

    from snapstore.protocols import Reader

__all__ = ["LmdbKV", "LmdbSnapshot", "restore_lmdb"]

logger = logging.getLogger("snapstore")


class State(enum.Enum):
    """What an `LmdbKV` can do."""

    OPEN = "open"
    RESTORING = "restoring"
    CLOSED = "closed"


#: Where each state may lead.
MOVES: dict[State, frozenset[State]] = {
    State.OPEN: frozenset({State.RESTORING, State.CLOSED}),
    # Restored, or refused with the old environment kept; the environment could not be opened again.
    State.RESTORING: frozenset({State.OPEN, State.CLOSED}),
    State.CLOSED: frozenset(),
}


class LmdbKV:
    """An LMDB environment that can be pinned and replaced: a `KV`.

    Given a path, it opens the environment with `open_options` (those of `lmdb.open`) and owns it:
    `close` closes it, `restore` replaces it. Given an `lmdb.Environment`, it takes snapshots only.
    All methods are thread-safe. Use `env` for reads and writes, and ask for it anew after `restore`.
    """

    def __init__(
        self,
        path_or_env: str | os.PathLike[str] | lmdb.Environment,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        **open_options: Any,
    ) -> None:
        self._monotonic = monotonic
        self._options = open_options
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._state = State.OPEN
        self._snapshots: weakref.WeakSet[LmdbSnapshot] = weakref.WeakSet()
        self._lock_fd = -1
        self._owned = not isinstance(path_or_env, lmdb.Environment)
        if isinstance(path_or_env, lmdb.Environment):
            if open_options:
                raise TypeError(f"the environment is open already: {', '.join(open_options)} came too late")
            self._env = path_or_env
        else:
            self._env = lmdb.open(os.fspath(path_or_env), **open_options)
        self._flags = self._env.flags()
        # An absolute name, since the process may change its directory before the next restore.
        path = os.path.abspath(self._env.path())
        self._data_path, self._lock_path = data_and_lock(path, subdir=self._flags["subdir"])
        self._open_data()

    def _open_data(self) -> None:
        self._fd = os.open(self._data_path, os.O_RDONLY | os.O_CLOEXEC)
        size = META_PAGES * self._env.stat()["psize"]
        self._metas = mmap.mmap(self._fd, size, mmap.MAP_SHARED, mmap.PROT_READ)

    def __repr__(self) -> str:
        return f"<LmdbKV of {self._data_path}, {self._state.value}>"

    @property
    def env(self) -> lmdb.Environment:
        """The environment as it is now; another one after `restore`."""
        return self._env

    def _check(self) -> None:
        if os.getpid() != self._pid:
            raise ForkedProcess("an LMDB environment must not cross a fork; open it in the child")
        if self._state is State.CLOSED:
            raise StoreClosed(f"{self._data_path} was closed")
        if self._state is State.RESTORING:
            raise SnapshotTemporarilyUnavailable(f"{self._data_path} is being restored")

    def _move(self, target: State) -> None:
        """Go along the table; the lock is held."""
        if target not in MOVES[self._state]:
            raise AssertionError(f"no way from {self._state.value} to {target.value}")
        self._state = target

    def snapshot(self) -> LmdbSnapshot:
        """Pin the environment as of its last committed transaction. Some microseconds; no bytes move.

        Waits for no writer, whatever thread or process it is in, and may be called inside of a write
        transaction, whose changes are then not in it. Raises SnapshotTemporarilyUnavailable when the
        reader table is full or the environment is being restored, and StoreClosed after `close`.
        """
        if not self._flags["lock"]:
            raise SnapstoreError(
                f"{self._data_path} was opened with lock=False, so no reader keeps its pages;"
                " open it with lock=True to take snapshots"
            )
        with self._lock:
            self._check()
            env, fd, metas = self._env, os.dup(self._fd), self._metas
        try:
            snapshot = pin(env, fd, metas, self._monotonic)
        except BaseException:
            os.close(fd)
            raise
        with self._lock:
            if env is self._env and self._state is State.OPEN:
                older = list(self._snapshots)
                self._snapshots.add(snapshot)
            else:
                older = None
        if older is None:
            snapshot.close()
            raise SnapshotTemporarilyUnavailable(f"{self._data_path} was restored or closed meanwhile")
        for other in older:
            other.warn_if_long()
        return snapshot

    def restore(self, source: str | os.PathLike[str] | Reader, /) -> None:
        """Replace the whole content by a snapshot's and open the environment again.

        `source` is a file's name or an object with `read(size)`. It is copied and checked while the
        old environment still serves; then that one is closed, with the snapshots taken from it, and
        the new one takes its place. A crash leaves the old or the new, whole. End your transactions
        before: they lose their environment.

        Raises SnapshotCorrupt, SnapshotTruncated, SnapshotBusy and OSError, after which the old
        content is there and open (or, when only the directory's fsync failed, the new one, which a
        power cut may take); SnapstoreError for an environment opened elsewhere, for which there is
        `restore_lmdb`. When the environment cannot be opened again, the store is closed.
        """
        with self._lock:
            self._check()
            if not self._owned or self._flags["readonly"]:
                raise SnapstoreError(
                    f"{self._data_path} was opened elsewhere or read-only: close it and call restore_lmdb"
                )
            self._move(State.RESTORING)
        lock = self._lock_path if self._flags["lock"] else None
        try:
            staged = StagedRestore(source, self._data_path, lock, mode=self._options.get("mode", 0o644))
        except BaseException:
            with self._lock:
                self._move(State.OPEN)
            raise
        with staged:
            self._close_env()
            try:
                staged.commit()
            finally:
                self._reopen(staged)

    def _reopen(self, staged: StagedRestore) -> None:
        """Open what is there now, the new environment or, if that could not be placed, the old one."""
        # The file's own format decides which LMDB opens it; a version asked for may be another.
        options = {name: value for name, value in self._options.items() if name != "lib_version"}
        path = os.path.dirname(self._data_path) if self._flags["subdir"] else self._data_path
        self._lock_fd = staged.take_lock_fd()
        target = State.CLOSED
        try:
            self._env = lmdb.open(path, **options)
            self._open_data()
            target = State.OPEN
        finally:
            if target is State.CLOSED:
                self._close_env()
            with self._lock:
                self._move(target)
        map_size = self._env.info()["map_size"]
        if map_size <= staged.meta.size:
            logger.warning(
                "%s fills its map of %d bytes: writes will fail with MapFullError until it is opened with"
                " a larger map_size",
                self._data_path,
                map_size,
            )

    def _close_env(self) -> None:
        """Close the snapshots, then the environment, then what was kept for it."""
        for snapshot in list(self._snapshots):
            snapshot.close()
        if self._owned:
            self._env.close()
        self._metas.close()
        for fd in (self._fd, self._lock_fd):
            if fd >= 0:
                os.close(fd)
        self._fd = self._lock_fd = -1

    def close(self) -> None:
        """Close the snapshots, and the environment if it was opened here. May come twice."""
        with self._lock:
            if self._state is State.CLOSED or os.getpid() != self._pid:
                return
            self._check()
            self._move(State.CLOSED)
        self._close_env()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_args: object) -> None:
        self.close()
