"""SQLite's own: pins beside writers in other processes, the locks of POSIX, and restores that crash."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from snapstore.errors import (
    PipeClosed,
    SnapshotBusy,
    SnapshotCorrupt,
    SnapshotTemporarilyUnavailable,
    SnapstoreError,
)
from snapstore.kv import sqlite, sqlite_file
from snapstore.kv.sqlite import SqliteKV, restore_sqlite
from snapstore.kv.sqlite_descriptors import DESCRIPTORS

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Runs each line it is sent as SQL, each in autocommit, and answers with the rows or with the error.
OTHER_PROCESS = """
import sqlite3, sys
database = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=0)
for line in sys.stdin:
    try:
        answer = repr(database.execute(line).fetchall())
    except sqlite3.Error as error:
        answer = str(error)
    print(answer, flush=True)
"""


class OtherProcess:
    """A connection in another process; `sql` returns when the statement is done."""

    def __init__(self, path: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", OTHER_PROCESS, path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def sql(self, statement: str) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(statement + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()

    def kill(self) -> None:
        """End it as a power cut would: nothing is closed, the WAL stays."""
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def database(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[sqlite3.Connection]:
    """A connection of the node's own, in WAL mode unless the test's parameter says otherwise."""
    mode = getattr(request, "param", "wal")
    with closing(sqlite3.connect(tmp_path / "node.db", isolation_level=None, timeout=0)) as database:
        database.execute(f"PRAGMA journal_mode={mode}").fetchone()
        database.execute("CREATE TABLE kv (key INTEGER PRIMARY KEY, value)")
        put(database, 100)
        yield database


@pytest.fixture
def other(database: sqlite3.Connection, tmp_path: Path) -> Iterator[OtherProcess]:
    other = OtherProcess(str(tmp_path / "node.db"))
    yield other
    other.kill()


@pytest.fixture
def kv(database: sqlite3.Connection, tmp_path: Path) -> SqliteKV:
    return SqliteKV(tmp_path / "node.db", pin_deadline_s=0.05)


def put(database: sqlite3.Connection, count: int) -> None:
    database.execute("BEGIN IMMEDIATE")
    database.executemany("INSERT INTO kv (value) VALUES (randomblob(?))", [(1000,)] * count)
    database.execute("COMMIT")


def count(path: Path | str) -> int:
    """How many rows a sound database has. Through SQLite, as POSIX's locks demand."""
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        return int(database.execute("SELECT count(*) FROM kv").fetchone()[0])


def image_of(snapshot: Any) -> bytes:
    image = io.BytesIO()
    snapshot.write_to(image)
    return image.getvalue()


def snapshot_file(path: Path, rows: int, mode: str = "wal") -> Path:
    """Make a saved snapshot with so many rows."""
    live = path.with_suffix(".live")
    with closing(sqlite3.connect(live, isolation_level=None)) as database:
        database.execute(f"PRAGMA journal_mode={mode}").fetchone()
        database.execute("CREATE TABLE kv (key INTEGER PRIMARY KEY, value)")
        put(database, rows)
        with SqliteKV(live).snapshot() as snapshot:
            path.write_bytes(image_of(snapshot))
    return path


INSERT = "INSERT INTO kv (value) WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<50) \
SELECT randomblob(1000) FROM n"


def test_the_image_stands_still_while_another_process_commits_and_checkpoints(kv, other, tmp_path):
    with kv.snapshot() as snapshot:
        first = hashlib.sha256(image_of(snapshot)).digest()
        for _ in range(5):
            for mode in ("PASSIVE", "FULL", "RESTART", "TRUNCATE"):
                assert other.sql(INSERT) == "[]"
                other.sql(f"PRAGMA wal_checkpoint({mode})")
        assert other.sql("UPDATE kv SET value = zeroblob(1000)") == "[]"
        assert other.sql("VACUUM") == "[]"
        assert hashlib.sha256(image_of(snapshot)).digest() == first
        (tmp_path / "copy.db").write_bytes(image_of(snapshot))
    assert count(tmp_path / "copy.db") == 100
    assert other.sql("PRAGMA wal_checkpoint(TRUNCATE)") == "[(0, 0, 0)]"
    assert count(kv.path) == 1100


def test_the_image_holds_what_lay_in_the_wal_only(kv, other, tmp_path):
    other.sql("PRAGMA wal_autocheckpoint=0")
    other.sql(INSERT)
    with kv.snapshot() as snapshot:
        (tmp_path / "copy.db").write_bytes(image_of(snapshot))
    assert count(tmp_path / "copy.db") == 150


def test_a_killed_writer_leaves_a_wal_that_is_in_the_next_snapshot(kv, database, other, tmp_path):
    other.sql("PRAGMA wal_autocheckpoint=0")
    other.sql(INSERT)
    other.sql("BEGIN")
    other.sql(INSERT)
    other.kill()
    with kv.snapshot() as snapshot:
        (tmp_path / "copy.db").write_bytes(image_of(snapshot))
    assert count(tmp_path / "copy.db") == 150


def test_an_older_reader_elsewhere_delays_the_pin_until_it_ends(kv, database, other):
    put(database, 1)
    other.sql("BEGIN")
    other.sql("SELECT count(*) FROM kv")
    put(database, 1)
    with pytest.raises(SnapshotTemporarilyUnavailable, match="end long read transactions"):
        kv.snapshot()
    put(database, 1)  # The writers' lock was given back.
    other.sql("COMMIT")
    kv.snapshot().close()


def test_the_reader_stands_before_writers_may_go_on(kv, other, monkeypatch):
    """A commit between the two would lie in the WAL, unseen by the image until a checkpoint tears it."""
    connect = sqlite.connect

    class Interrupted:
        def __init__(self, *arguments: Any) -> None:
            self._connection = connect(*arguments)
            self.close = self._connection.close

        def execute(self, statement: str) -> sqlite3.Cursor:
            cursor = self._connection.execute(statement)
            if statement == "ROLLBACK":
                assert other.sql(INSERT) == "[]"
            return cursor

    other.sql("PRAGMA wal_autocheckpoint=0")
    monkeypatch.setattr(sqlite, "connect", Interrupted)
    with kv.snapshot() as snapshot:
        first = image_of(snapshot)
        other.sql("PRAGMA wal_checkpoint(PASSIVE)")
        assert image_of(snapshot) == first


def test_one_moment_can_be_pinned_at_a_time(kv, database):
    first, second = kv.snapshot(), kv.snapshot()
    assert image_of(first) == image_of(second)
    put(database, 1)
    with pytest.raises(SnapshotTemporarilyUnavailable, match="close the last snapshot first"):
        kv.snapshot()
    first.close()
    second.close()
    kv.snapshot().close()


@pytest.mark.parametrize("database", ["wal", "delete"], indirect=True)
def test_a_long_write_transaction_elsewhere_does_not_block_for_ever(kv, database, other):
    other.sql("BEGIN EXCLUSIVE")
    other.sql(INSERT)
    with pytest.raises(SnapshotTemporarilyUnavailable, match="commit before a snapshot"):
        kv.snapshot()
    other.sql("COMMIT")
    kv.snapshot().close()


@pytest.mark.parametrize("database", ["delete", "persist", "truncate"], indirect=True)
def test_in_a_rollback_mode_writers_go_on_beside_the_snapshot(kv, database, other, tmp_path):
    files = sorted(os.listdir(tmp_path))
    with kv.snapshot() as snapshot:
        assert sorted(os.listdir(tmp_path)) == files
        first = image_of(snapshot)
        assert other.sql(INSERT) == "[]"
        assert image_of(snapshot) == first
        assert snapshot.wal_bytes == 0
    (tmp_path / "copy.db").write_bytes(first)
    assert count(tmp_path / "copy.db") == 100


@pytest.mark.parametrize("database", ["delete"], indirect=True)
def test_a_snapshot_does_not_drop_the_write_lock_of_another_connection(kv, database, other):
    """Closing a descriptor of the file would: POSIX drops all of the process's locks on it."""
    database.execute("BEGIN IMMEDIATE")
    with kv.snapshot() as snapshot:
        image_of(snapshot)
    assert other.sql("BEGIN IMMEDIATE") == "database is locked"
    database.execute("COMMIT")
    assert other.sql("BEGIN IMMEDIATE") == "[]"


def test_a_snapshot_does_not_drop_the_shared_lock_that_keeps_wal_mode(kv, database, other):
    with kv.snapshot() as first:
        kv.snapshot().close()
        assert other.sql("PRAGMA journal_mode=DELETE") == "database is locked"
        assert image_of(first)
    assert other.sql("PRAGMA journal_mode=DELETE") == "database is locked"


def test_snapshots_share_one_descriptor_and_an_unlinked_file_gives_it_back(kv, database):
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    kv.snapshot().close()
    first = descriptors()
    for _ in range(10):
        kv.snapshot().close()
    assert descriptors() == first
    database.close()
    os.unlink(kv.path)
    DESCRIPTORS.close_unlinked()
    assert descriptors() < first


def test_a_file_replaced_under_a_snapshot_does_not_change_it(kv, database, tmp_path):
    with kv.snapshot() as snapshot:
        first = image_of(snapshot)
        os.replace(snapshot_file(tmp_path / "other.db", 3), kv.path)
        assert image_of(snapshot) == first


def test_the_cost_of_a_long_pin_shows_and_is_logged(kv, database, monkeypatch, caplog):
    monkeypatch.setattr(sqlite, "WAL_GROWTH_WARN_BYTES", 10_000)
    with kv.snapshot() as snapshot:
        before = snapshot.wal_bytes
        put(database, 200)
        assert snapshot.wal_bytes > before
    assert "wal_checkpoint(TRUNCATE)" in caplog.text
    caplog.clear()
    kv.snapshot().close()
    assert not caplog.text
    monkeypatch.setattr(sqlite, "PIN_WARN_AFTER_S", 0.0)
    kv.snapshot().close()
    assert "was pinned for" in caplog.text


@pytest.mark.parametrize("name", [":memory:", "", "file:x.db?mode=memory"])
def test_what_is_no_file_is_refused(name):
    with pytest.raises(ValueError, match="databases in memory"):
        SqliteKV(name)


def test_bytes_are_no_path():
    with pytest.raises(TypeError, match="must be str"):
        SqliteKV(b"node.db")  # type: ignore[arg-type]


def test_missing_and_foreign_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.db"):
        SqliteKV(tmp_path / "absent.db").snapshot()
    assert os.listdir(tmp_path) == []
    with pytest.raises(ValueError, match="not a regular file"):
        SqliteKV(tmp_path).snapshot()
    (tmp_path / "foreign.db").write_bytes(b"foreign" * 1000)
    with pytest.raises(sqlite3.DatabaseError, match="not a database"):
        SqliteKV(tmp_path / "foreign.db").snapshot()
    (tmp_path / "empty.db").touch()
    with pytest.raises(SnapshotTemporarilyUnavailable, match="is empty"):
        SqliteKV(tmp_path / "empty.db").snapshot()


@pytest.mark.parametrize("name", ["node?mode=memory#1.db", "node%41 ü.db"])
def test_odd_names_are_taken_as_they_are(tmp_path, name):
    path = tmp_path / name
    restore_sqlite(snapshot_file(tmp_path / "saved.db", 7), path)
    with SqliteKV(path).snapshot() as snapshot:
        assert image_of(snapshot) == (tmp_path / "saved.db").read_bytes()
    assert count(path) == 7


def test_a_symbolic_link_is_followed(kv, database, tmp_path):
    database.close()
    os.symlink(kv.path, tmp_path / "link.db")
    restore_sqlite(snapshot_file(tmp_path / "saved.db", 7), tmp_path / "link.db")
    assert os.path.islink(tmp_path / "link.db")
    assert count(kv.path) == 7


def test_a_restore_never_plays_the_old_wal_into_the_new_database(kv, database, other, tmp_path):
    other.sql("PRAGMA wal_autocheckpoint=0")
    other.sql(INSERT)
    database.execute("PRAGMA locking_mode")
    other.kill()
    database.close()
    kv.restore(snapshot_file(tmp_path / "saved.db", 7))
    assert not any(os.path.exists(kv.path + suffix) for suffix in ("-wal", "-shm", "-journal", "-restoring"))
    assert count(kv.path) == 7


def test_a_wal_without_its_database_is_not_played_either(tmp_path):
    saved = snapshot_file(tmp_path / "saved.db", 7)
    for suffix in ("-wal", "-shm", "-journal"):
        (tmp_path / f"node.db{suffix}").write_bytes(b"left over")
    restore_sqlite(saved, tmp_path / "node.db")
    assert sorted(path.name for path in tmp_path.glob("node.db*")) == ["node.db"]
    assert count(tmp_path / "node.db") == 7


@pytest.mark.parametrize("database", ["wal", "delete"], indirect=True)
def test_a_database_in_use_elsewhere_is_not_replaced(kv, database, other, tmp_path, monkeypatch):
    monkeypatch.setattr(sqlite_file, "RESTORE_WAIT_S", 0.01)
    database.close()
    other.sql("BEGIN")
    other.sql("SELECT count(*) FROM kv")
    saved = snapshot_file(tmp_path / "saved.db", 7)
    with pytest.raises(SnapshotBusy, match="close all connections"):
        kv.restore(saved)
    assert other.sql("SELECT count(*) FROM kv") == "[(100,)]"
    assert not os.path.exists(kv.path + "-restoring")
    other.kill()
    kv.restore(saved)
    assert count(kv.path) == 7


def test_a_restore_closes_the_snapshots_of_its_kv_first(kv, database, tmp_path):
    snapshot = kv.snapshot()
    database.close()
    with pytest.raises(SnapshotCorrupt):
        kv.restore(io.BytesIO(b"foreign" * 1000))
    assert image_of(snapshot)  # A refused one costs nothing.
    kv.restore(snapshot_file(tmp_path / "saved.db", 7))
    with pytest.raises(PipeClosed):
        image_of(snapshot)
    with kv.snapshot() as after:
        assert image_of(after) == (tmp_path / "saved.db").read_bytes()


def test_two_restores_at_once_are_one_and_a_refusal(kv, database, tmp_path):
    database.close()
    saved = snapshot_file(tmp_path / "saved.db", 7).read_bytes()

    class Meanwhile(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            with pytest.raises(SnapshotBusy, match="another restore"):
                kv.restore(io.BytesIO(saved))
            return super().read(size)

    kv.restore(Meanwhile(saved))
    assert count(kv.path) == 7


def test_a_live_database_is_no_snapshot(kv, database, tmp_path):
    with pytest.raises(ValueError, match="take a snapshot of it"):
        restore_sqlite(kv.path, tmp_path / "target.db")
    with pytest.raises(ValueError, match="from itself"):
        kv.restore(kv.path)
    assert sorted(path.name for path in tmp_path.glob("target*")) == []


def test_a_damaged_database_is_not_silently_thrown_away(tmp_path):
    (tmp_path / "node.db").write_bytes(b"damaged" * 1000)
    with pytest.raises(SnapstoreError, match="remove it with its -wal"):
        restore_sqlite(snapshot_file(tmp_path / "saved.db", 7), tmp_path / "node.db")
    assert (tmp_path / "node.db").read_bytes() == b"damaged" * 1000


def test_a_quick_check_finds_damage_behind_the_header(tmp_path):
    image = bytearray(snapshot_file(tmp_path / "saved.db", 500).read_bytes())
    image[4096 * 20 : 4096 * 21] = os.urandom(4096)
    with pytest.raises(SnapshotCorrupt, match="SQLite"):
        restore_sqlite(io.BytesIO(image), tmp_path / "node.db", quick_check=True)
    assert not (tmp_path / "node.db").exists()


def test_the_new_database_has_the_mode_of_the_old_one(kv, database, tmp_path):
    database.close()
    os.chmod(kv.path, 0o640)
    kv.restore(snapshot_file(tmp_path / "saved.db", 7))
    assert os.stat(kv.path).st_mode & 0o777 == 0o640


@pytest.mark.parametrize("refusal", [18, 22])  # EXDEV, EINVAL
def test_a_file_system_without_copy_file_range_is_served_too(tmp_path, monkeypatch, refusal):
    def copy_file_range(*_args: Any) -> int:
        raise OSError(refusal, os.strerror(refusal))

    saved = snapshot_file(tmp_path / "saved.db", 500)
    monkeypatch.setattr(os, "copy_file_range", copy_file_range)
    restore_sqlite(saved, tmp_path / "node.db")
    assert count(tmp_path / "node.db") == 500


#: Restores, and dies without any goodbye before the n-th step that touches the directory or syncs.
CRASHING = """
import os, sys
from snapstore.kv.sqlite import restore_sqlite
step, left = 0, int(sys.argv[3])
def dying(call):
    def counted(*args, **options):
        global left
        if not left:
            os._exit(77)
        left -= 1
        return call(*args, **options)
    return counted
for name in ("open", "fsync", "rename", "unlink", "fchmod", "copy_file_range"):
    setattr(os, name, dying(getattr(os, name)))
restore_sqlite(sys.argv[1], sys.argv[2])
"""


@pytest.mark.slow
def test_a_crash_at_any_step_leaves_the_old_or_the_new_whole(kv, database, other, tmp_path):
    """The old database's last commits are in its WAL only, where a careless restore loses or replays them."""
    other.sql("PRAGMA wal_autocheckpoint=0")
    other.sql(INSERT)
    other.kill()
    before = tmp_path / "before"
    before.mkdir()
    for suffix in ("", "-wal", "-shm"):
        shutil.copy(kv.path + suffix, before / f"node.db{suffix}")
    database.close()
    saved = snapshot_file(tmp_path / "saved.db", 7)
    found = []
    for step in range(100):
        place = tmp_path / f"step{step}"
        shutil.copytree(before, place)
        path = str(place / "node.db")
        crashed = subprocess.run([sys.executable, "-c", CRASHING, saved, path, str(step)], check=False)
        assert crashed.returncode in (0, 77)
        # What a killed process leaves is met by a node that opens it, and by the next restore.
        found.append(count(path))
        restore_sqlite(saved, path)
        assert count(path) == 7
        assert os.listdir(place) == ["node.db"]
        if crashed.returncode == 0:
            break
    assert found == sorted(found, reverse=True)
    assert set(found) == {150, 7}


def test_pins_and_a_busy_writer_in_other_threads_do_not_disturb_each_other(kv, database, tmp_path):
    stop = threading.Event()
    errors: list[BaseException] = []

    def write() -> None:
        with closing(sqlite3.connect(kv.path, isolation_level=None, timeout=30)) as writer:
            while not stop.is_set():
                put(writer, 10)

    def pin() -> None:
        try:
            for _ in range(10):
                with contextlib.suppress(SnapshotTemporarilyUnavailable), kv.snapshot() as snapshot:
                    assert image_of(snapshot) == image_of(snapshot)
        except BaseException as error:  # noqa: BLE001 - the main thread raises it
            errors.append(error)

    writer, pins = threading.Thread(target=write), [threading.Thread(target=pin) for _ in range(3)]
    for thread in [writer, *pins]:
        thread.start()
    for thread in pins:
        thread.join()
    stop.set()
    writer.join()
    assert errors == []
    assert (count(kv.path) - 100) % 10 == 0
