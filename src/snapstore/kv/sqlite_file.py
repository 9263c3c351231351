"""A SQLite database as files: its path, its connections, and how another one takes its place.

Knows which files SQLite keeps beside a database and which locks it takes. Knows no snapshots.

Plan of a replacement, so that a crash at any point leaves the old database or the new one, and never
an old WAL or journal beside the new file, which SQLite would play into it:

1. The new database is written whole beside the old one, checked, and synced.
2. The old one leaves WAL mode. SQLite does that only for the sole user of a database, moves the WAL
   into the main file, and removes WAL and shm: from here on the main file alone is the old database.
   A hot journal is rolled back by the same connection, and an exclusive lock keeps everyone out.
3. The directory is synced, so that no power cut brings the WAL back.
4. The new file is renamed over the old one, and the directory is synced again.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import stat
import struct
from contextlib import closing, contextmanager, suppress
from typing import TYPE_CHECKING
from urllib.parse import quote

from snapstore.errors import SnapshotBusy, SnapshotCorrupt, SnapshotTruncated, SnapstoreError
from snapstore.kv.copy_in import copy_in
from snapstore.kv.sqlite_descriptors import DESCRIPTORS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import BinaryIO

    from snapstore.protocols import Reader

#: Appended to a database's name: its successor while it is written. Stays behind after a crash; the
#: next restore writes over it.
RESTORING_SUFFIX = "-restoring"

#: How long a restore waits for transactions of others to end. Longer would hide that the node has not
#: closed its connections.
RESTORE_WAIT_S = 5.0

_HEADER = struct.Struct(">16sHBBBBBBIII56xI4x")
_MAGIC = b"SQLite format 3\0"
_SIDE_SUFFIXES = ("-wal", "-journal", "-shm")


def database_path(path: str | os.PathLike[str]) -> str:
    """Return the path that SQLite itself uses, with symbolic links resolved.

    ValueError for what is no file: `:memory:`, the empty name and URIs.
    """
    name = os.fspath(path)
    if not isinstance(name, str):
        raise TypeError(f"the path of a database must be str or PathLike[str], not {type(name).__name__}")
    if not name or name.startswith((":memory:", "file:")):
        raise ValueError(f"{name!r} is no path of a file; databases in memory and URIs cannot be pinned")
    return os.path.realpath(name)


def connect(path: str, wait_s: float, *, options: str = "mode=rw") -> sqlite3.Connection:
    """Open the existing database at `path`, in autocommit mode and for any thread.

    `synchronous` stays at SQLite's FULL: a checkpoint that does not sync loses commits at a power cut.
    """
    return sqlite3.connect(
        f"file:{quote(os.fsencode(path))}?{options}",
        uri=True,
        timeout=wait_s,
        isolation_level=None,
        check_same_thread=False,
    )


def is_locked(error: sqlite3.Error) -> bool:
    """Tell whether `error` is SQLITE_BUSY or SQLITE_LOCKED; Python 3.10 shows no codes."""
    return "locked" in str(error)


def restore_sqlite(
    source: str | os.PathLike[str] | Reader,
    path: str | os.PathLike[str],
    *,
    quick_check: bool = False,
    before_replacing: Callable[[], None] | None = None,
) -> None:
    """Replace the database at `path`, or make it, by the snapshot in `source`, a path or a reader.

    After a crash at any point there is the old database or the new one, whole. The header, the length
    and the schema of the new one are checked before the old one is touched; `quick_check` has SQLite
    look at every page, which takes as long as reading it all (the bytes of a saved snapshot have been
    checked by their digests already).

    What is asked of the node: all connections to the old database, in all processes, are closed before
    it is replaced, and none is opened until this returns. `before_replacing` is called when the new
    database is ready, as late as possible, and is the place to close them. A connection in WAL mode or in
    a transaction that is left open makes it refuse; an idle one in a rollback mode holds no lock, so
    it cannot be seen, and must not be used again. Neither may `source` be the path of a database in use.

    Raises `SnapshotTruncated` or `SnapshotCorrupt` when `source` is not a whole database, `SnapshotBusy`
    when the database is in use or another restore runs in its directory; the old database stays as it
    is, and no file stays behind. An `OSError` of the last fsync leaves the new one in place, but a power cut
    may take it back: restore again.
    """
    path = database_path(path)
    staged = path + RESTORING_SUFFIX
    with _locked_directory(os.path.dirname(path)) as directory:
        try:
            with open(staged, "wb", opener=_open_private) as target:
                _fill(target, source, path)
            _check(staged, quick_check=quick_check)
            if before_replacing is not None:
                before_replacing()
            with _sole_owner(path):
                for suffix in _SIDE_SUFFIXES:
                    with suppress(FileNotFoundError):
                        os.unlink(path + suffix)
                os.fsync(directory)
                os.rename(staged, path)
                os.fsync(directory)
        finally:
            with suppress(FileNotFoundError):
                os.unlink(staged)
    DESCRIPTORS.close_unlinked()


@contextmanager
def _locked_directory(path: str) -> Iterator[int]:
    """Open a directory for fsync; its flock keeps two restores from sharing one staged file."""
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SnapshotBusy(f"{path}: another restore runs here; wait for its outcome") from None
        yield directory
    finally:
        os.close(directory)


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


def _fill(target: BinaryIO, source: str | os.PathLike[str] | Reader, path: str) -> None:
    """Write the new database, with the mode and the owner that the old one has, and sync it."""
    if isinstance(source, (str, os.PathLike)):
        _refuse_live_source(os.path.realpath(source), path)
    copy_in(source, target.fileno())
    try:
        status = os.stat(path)
    except FileNotFoundError:
        os.fchmod(target.fileno(), 0o644)  # As SQLite makes them.
    else:
        os.fchmod(target.fileno(), stat.S_IMODE(status.st_mode))
        if os.geteuid() == 0:
            os.fchown(target.fileno(), status.st_uid, status.st_gid)
    os.fsync(target.fileno())


def _refuse_live_source(source: str, path: str) -> None:
    """A database in use is no snapshot: its newest commits are elsewhere, and opening it drops locks."""
    if source == path:
        raise ValueError(f"{path} cannot be restored from itself")
    for suffix in _SIDE_SUFFIXES:
        if os.path.exists(source + suffix):
            raise ValueError(f"{source} is a database in use, it has a {suffix}: take a snapshot of it")


def _check(staged: str, *, quick_check: bool) -> None:
    """Raise unless the file is one whole database (https://sqlite.org/fileformat2.html, 1.3)."""
    with open(staged, "rb") as image:
        header = image.read(_HEADER.size)
        size = image.seek(0, os.SEEK_END)
    if not header or (len(header) < _HEADER.size and header.startswith(_MAGIC[: len(header)])):
        raise SnapshotTruncated(f"a SQLite database has {_HEADER.size} bytes at least, here are {size}")
    if not header.startswith(_MAGIC):
        raise SnapshotCorrupt("these bytes are no SQLite database: they do not start as one does")
    _, page_size, writes, reads, _, *payloads, changes, pages, _, valid_for = _HEADER.unpack(header)
    page_size = 65536 if page_size == 1 else page_size
    if page_size < 512 or page_size & (page_size - 1):
        raise SnapshotCorrupt(f"the header names a page size of {page_size} bytes")
    if not (writes in (1, 2) and reads in (1, 2) and payloads == [64, 32, 32] and changes == valid_for):
        raise SnapshotCorrupt("the header is not one that SQLite writes")
    if size < pages * page_size:
        raise SnapshotTruncated(f"the database has {pages * page_size} bytes, {size} arrived")
    if size > pages * page_size:
        raise SnapshotCorrupt(f"the database has {pages * page_size} bytes, {size} arrived")
    # Immutable: no lock is taken and no file is made beside it.
    try:
        with closing(connect(staged, 0, options="mode=ro&immutable=1")) as database:
            database.execute("SELECT count(*) FROM sqlite_master").fetchone()
            found = database.execute("PRAGMA quick_check(1)").fetchone()[0] if quick_check else "ok"
    except (sqlite3.DatabaseError, UnicodeDecodeError) as error:  # Its messages quote the schema.
        raise SnapshotCorrupt(f"SQLite cannot read the database: {error}") from error
    if found != "ok":
        raise SnapshotCorrupt(f"SQLite finds the database damaged: {found}")


@contextmanager
def _sole_owner(path: str) -> Iterator[None]:
    """Bring the old database to rest in its main file alone, and keep everyone else out of it."""
    if not os.path.exists(path):
        yield
        return
    with closing(connect(path, RESTORE_WAIT_S)) as owner:
        try:
            owner.execute("PRAGMA journal_mode=DELETE").fetchone()
            owner.execute("BEGIN EXCLUSIVE")
            mode = owner.execute("PRAGMA journal_mode").fetchone()[0]
        except sqlite3.DatabaseError as error:
            if is_locked(error):
                raise _in_use(path) from error
            raise SnapstoreError(
                f"{path}: SQLite cannot read the database that is to be replaced ({error}): make sure that "
                "nobody uses it, remove it with its -wal, -journal and -shm, and restore again"
            ) from error
        # Between the two steps someone may have come and gone back to WAL mode.
        if mode != "delete":
            raise _in_use(path)
        yield


def _in_use(path: str) -> SnapshotBusy:
    return SnapshotBusy(f"{path} is in use: close all connections to it, in all processes, and restore again")
