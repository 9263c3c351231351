"""Stores named on the command line, `lmdb:PATH` and `sqlite:PATH`: opened, and made of snapshots.

The errors of their libraries become ours here, since they are neither SnapstoreErrors nor OSErrors.
"""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import lmdb

from snapstore.errors import SnapshotCorrupt, SnapshotTemporarilyUnavailable, SnapstoreError
from snapstore.meta import SnapshotMeta
from snapstore.stream import SnapshotStream

if TYPE_CHECKING:
    from snapstore.cli.arguments import StorePlace


@contextmanager
def pinned_stream(place: StorePlace, meta: SnapshotMeta) -> Iterator[SnapshotStream]:
    """Open the store at `place`, read-only where it can be, and pin it; yield the stream of it.

    Raises FileNotFoundError, SnapshotCorrupt for a file of another kind, and SnapstoreError for
    what else its library says.
    """
    if not os.path.exists(place.path):
        raise FileNotFoundError(errno.ENOENT, f"no {place.kind} store is here", place.path)
    with _naming_errors(place):
        if place.kind == "lmdb":
            from snapstore.kv.lmdb import LmdbKV

            subdir = os.path.isdir(place.path)
            with (
                LmdbKV(place.path, subdir=subdir, readonly=True, create=False) as kv,
                SnapshotStream(meta, kv.snapshot()) as stream,
            ):
                yield stream
        else:
            from snapstore.kv.sqlite import SqliteKV

            with SnapshotStream(meta, SqliteKV(place.path).snapshot()) as stream:
                yield stream


def restore_store(path: str | os.PathLike[str], place: StorePlace, *, replace: bool) -> None:
    """Make the store at `place` of the snapshot at `path`, whole or not at all.

    Raises FileExistsError where there is a store and `replace` is false; else what the `restore_*`
    functions of `kv` raise.
    """
    if not replace and _store_exists(place):
        raise FileExistsError(errno.EEXIST, "a store is here; --replace replaces it", place.path)
    with _naming_errors(place):
        if place.kind == "lmdb":
            from snapstore.kv.lmdb import restore_lmdb

            restore_lmdb(path, place.path, subdir=not os.path.isfile(place.path))
        else:
            from snapstore.kv.sqlite import restore_sqlite

            restore_sqlite(path, place.path)


def _store_exists(place: StorePlace) -> bool:
    if place.kind == "lmdb" and os.path.isdir(place.path):
        return os.path.lexists(os.path.join(place.path, "data.mdb"))
    return os.path.lexists(place.path)


@contextmanager
def _naming_errors(place: StorePlace) -> Iterator[None]:
    try:
        yield
    except (lmdb.InvalidError, lmdb.CorruptedError, lmdb.VersionMismatchError) as error:
        raise SnapshotCorrupt(f"{place} cannot be read: {error}") from error
    except lmdb.ReadersFullError as error:
        raise SnapshotTemporarilyUnavailable(f"{place}: {error}") from error
    except lmdb.Error as error:
        raise SnapstoreError(f"{place} cannot be opened: {error}") from error
    except sqlite3.OperationalError as error:
        raise SnapstoreError(f"{place} cannot be opened: {error}") from error
    except sqlite3.DatabaseError as error:
        raise SnapshotCorrupt(f"{place} cannot be read: {error}") from error
