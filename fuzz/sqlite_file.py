"""SQLite databases to be restored: refused with the old one in its place, or put there whole."""

from __future__ import annotations

import io
import sqlite3
from contextlib import closing

from fuzz.peers import directory
from fuzz.runs import expand, pack
from snapstore.errors import SnapshotCorrupt
from snapstore.kv.sqlite_file import restore_sqlite

_OLD = b""


def check(data: bytes) -> bool:
    """The input is the database, with runs."""
    image = expand(data)
    with directory() as path:
        place = path / "db"
        place.write_bytes(_OLD)
        try:
            restore_sqlite(io.BytesIO(image), place, quick_check=True)
        except SnapshotCorrupt:  # SnapshotTruncated is one.
            assert place.read_bytes() == _OLD
            return False
        finally:
            assert [entry.name for entry in path.iterdir()] == ["db"]
        assert place.read_bytes() == image
    return True


def _database(statements: tuple[str, ...]) -> bytes:
    with directory() as path:
        with closing(sqlite3.connect(path / "db", isolation_level=None)) as database:
            database.execute("PRAGMA page_size=512")
            for statement in statements:
                database.execute(statement)
        return (path / "db").read_bytes()


def seeds() -> dict[str, bytes]:
    """A database with a table, one with nothing in it, and what is wrong with some."""
    table = _database(("CREATE TABLE kv (k PRIMARY KEY, v)", "INSERT INTO kv VALUES ('a', zeroblob(600))"))
    return {
        "good-table": pack(table),
        "good-bare": pack(_database(("VACUUM",))),
        "bad-short": pack(table[:-512]),
        "bad-magic": pack(b"X" + table[1:]),
        "bad-page": pack(table[:512] + b"\xee" * (len(table) - 512)),
    }
