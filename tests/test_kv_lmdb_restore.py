"""Putting an LMDB snapshot into place: the old environment or the new one, never half of either."""

from __future__ import annotations

import io
import logging
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import lmdb
import pytest

from snapstore.errors import (
    PipeClosed,
    SnapshotBusy,
    SnapshotCorrupt,
    SnapshotTruncated,
    SnapstoreError,
    StoreClosed,
)
from snapstore.kv import lmdb_file
from snapstore.kv.lmdb import LmdbKV, restore_lmdb
from snapstore.kv.lmdb_file import STAGED_SUFFIX, DataMeta, StagedRestore

if TYPE_CHECKING:
    from pathlib import Path

#: Larger than the bytes that one step of a copy takes, and with overflow values.
VALUES = {b"key %d" % number: b"%d" % number * 1500 for number in range(400)}


@pytest.fixture
def snapshot_path(tmp_path: Path) -> Path:
    """A file with an image of `VALUES`."""
    path = tmp_path / "snapshot"
    with LmdbKV(tmp_path / "source", map_size=1 << 26) as kv:
        with kv.env.begin(write=True) as txn:
            for key, value in VALUES.items():
                txn.put(key, value)
        with kv.snapshot() as snapshot, open(path, "wb") as file:
            snapshot.write_to(file)
    return path


def put(kv: LmdbKV, key: bytes, value: bytes) -> None:
    with kv.env.begin(write=True) as txn:
        txn.put(key, value)


def values(env: lmdb.Environment) -> dict[bytes, bytes]:
    with env.begin() as txn:
        return dict(txn.cursor())


def test_restore_replaces_everything_and_the_store_goes_on(tmp_path: Path, snapshot_path: Path) -> None:
    with LmdbKV(tmp_path / "env", map_size=1 << 26) as kv:
        put(kv, b"old", b"value")
        before = kv.snapshot()
        image = before.image()
        kv.restore(snapshot_path)
        assert values(kv.env) == VALUES
        with pytest.raises(PipeClosed):
            image.readinto(bytearray(10), 0)
        put(kv, b"new", b"value")
        with kv.snapshot() as snapshot, open(tmp_path / "again", "wb") as file:
            snapshot.write_to(file)
        kv.restore(tmp_path / "again")
        assert values(kv.env) == {**VALUES, b"new": b"value"}
    assert sorted(os.listdir(tmp_path / "env")) == ["data.mdb", "lock.mdb"]


def test_restore_reads_a_stream_that_gives_little_at_a_time(tmp_path: Path, snapshot_path: Path) -> None:
    class Trickle(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            return super().read(min(size or 1, 10_001))

    with LmdbKV(tmp_path / "env", map_size=1 << 26) as kv:
        kv.restore(Trickle(snapshot_path.read_bytes()))
        assert values(kv.env) == VALUES


def test_snapshot_of_the_other_data_format_is_restored(tmp_path: Path) -> None:
    try:
        lmdb.version(lib_version=1)
    except (TypeError, lmdb.Error):
        pytest.skip("this py-lmdb has one LMDB only")
    with LmdbKV(tmp_path / "new", lib_version=1) as kv, open(tmp_path / "snapshot", "wb") as file:
        put(kv, b"key", b"value")
        with kv.snapshot() as snapshot:
            snapshot.write_to(file)
    with LmdbKV(tmp_path / "old", lib_version=0) as kv:
        kv.restore(tmp_path / "snapshot")
        assert values(kv.env) == {b"key": b"value"}
        put(kv, b"more", b"value")


@pytest.mark.parametrize(
    ("damage", "error"),
    [
        (lambda image: image[:-1], SnapshotTruncated),
        (lambda image: image[:4096], SnapshotTruncated),
        (lambda image: image[: len(image) // 2], SnapshotTruncated),
        (lambda _image: b"", SnapshotTruncated),
        (lambda image: image + b"more", SnapshotCorrupt),
        (lambda image: b"SQLite format 3\0" + image[16:], SnapshotCorrupt),
        (lambda image: image[:4096] + bytes(4096) + image[8192:], SnapshotCorrupt),
        (lambda image: image[:8192] + bytes(len(image) - 8192), SnapshotCorrupt),
    ],
)
def test_what_is_no_whole_snapshot_is_refused_and_nothing_changes(
    tmp_path: Path, snapshot_path: Path, damage: object, error: type[Exception]
) -> None:
    with LmdbKV(tmp_path / "env", map_size=1 << 26) as kv:
        put(kv, b"old", b"value")
        env = kv.env
        with pytest.raises(error):
            kv.restore(io.BytesIO(damage(snapshot_path.read_bytes())))  # type: ignore[operator]
        assert kv.env is env
        assert values(env) == {b"old": b"value"}
    assert sorted(os.listdir(tmp_path / "env")) == ["data.mdb", "lock.mdb"]


def test_kill_at_any_step_leaves_the_old_or_the_new(tmp_path: Path, snapshot_path: Path) -> None:
    # The steps that change what a name stands for, or make it last; the process is gone before one.
    program = """
import os, sys
from snapstore.kv.lmdb import restore_lmdb
steps = [0]
def counted(call):
    def step(*args, **kwargs):
        steps[0] += 1
        if steps[0] == int(sys.argv[3]):
            os._exit(7)
        return call(*args, **kwargs)
    return step
os.rename, os.fsync, os.write, os.sendfile = map(counted, (os.rename, os.fsync, os.write, os.sendfile))
restore_lmdb(sys.argv[1], sys.argv[2])
"""
    with LmdbKV(tmp_path / "env", map_size=1 << 26) as kv:
        put(kv, b"old", b"value")
    seen = []
    for step in range(1, 10):
        arguments = [str(snapshot_path), str(tmp_path / "env"), str(step)]
        done = subprocess.run([sys.executable, "-c", program, *arguments], check=False, timeout=60)
        with lmdb.open(str(tmp_path / "env"), map_size=1 << 26) as env:
            seen.append(values(env) == VALUES)
            assert seen[-1] or values(env) == {b"old": b"value"}
            with env.begin(write=True) as txn:
                txn.put(b"old", b"value")
                txn.delete(b"old") if seen[-1] else None
        if done.returncode == 0:
            break
        assert done.returncode == 7
    assert seen == sorted(seen), "once new, it stays new"
    assert not seen[0]
    assert seen[-1]
    assert sorted(os.listdir(tmp_path / "env")) == ["data.mdb", "lock.mdb"]


def test_another_process_keeps_the_old_environment_whole(tmp_path: Path, snapshot_path: Path) -> None:
    program = """
import lmdb, sys
env = lmdb.open(sys.argv[1])
print("open", flush=True)
sys.stdin.readline()
with env.begin(write=True) as txn:
    txn.put(b"mine", b"still")
    print(dict(txn.cursor()), flush=True)
sys.stdin.readline()
"""
    with LmdbKV(tmp_path / "env", map_size=1 << 26) as kv:
        put(kv, b"old", b"value")
        command = [sys.executable, "-c", program, str(tmp_path / "env")]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
            assert other.stdin is not None
            assert other.stdout is not None
            assert other.stdout.readline() == "open\n"
            kv.restore(snapshot_path)
            other.stdin.write("\n")
            other.stdin.flush()
            assert other.stdout.readline() == "{b'mine': b'still', b'old': b'value'}\n"
            put(kv, b"new", b"value")
            assert values(kv.env) == {**VALUES, b"new": b"value"}
            other.stdin.write("\n")
            other.stdin.flush()
            assert other.wait(60) == 0
        assert values(kv.env) == {**VALUES, b"new": b"value"}


def test_second_restore_of_a_directory_is_refused_while_one_runs(tmp_path: Path, snapshot_path: Path) -> None:
    data, lock = lmdb_file.data_and_lock(str(tmp_path / "env"), subdir=True)
    os.mkdir(tmp_path / "env")
    with StagedRestore(snapshot_path, data, lock, mode=0o600) as staged:
        with pytest.raises(SnapshotBusy):
            restore_lmdb(snapshot_path, tmp_path / "env")
        staged.commit()
    restore_lmdb(snapshot_path, tmp_path / "env")


def test_leftovers_of_a_killed_restore_are_taken_over(tmp_path: Path, snapshot_path: Path) -> None:
    os.mkdir(tmp_path / "env")
    for name in ("data.mdb", "lock.mdb"):
        (tmp_path / "env" / (name + STAGED_SUFFIX)).write_bytes(b"half")
    restore_lmdb(snapshot_path, tmp_path / "env")
    assert sorted(os.listdir(tmp_path / "env")) == ["data.mdb", "lock.mdb"]


def test_restored_file_keeps_the_mode_of_the_one_it_replaces(tmp_path: Path, snapshot_path: Path) -> None:
    with LmdbKV(tmp_path / "env", map_size=1 << 26, mode=0o640) as kv:
        os.chmod(tmp_path / "env" / "data.mdb", 0o600)
        kv.restore(snapshot_path)
    assert (tmp_path / "env" / "data.mdb").stat().st_mode & 0o777 == 0o600


def test_snapshot_larger_than_the_map_is_restored_with_a_warning(
    tmp_path: Path, snapshot_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with LmdbKV(tmp_path / "env", map_size=1 << 16) as kv, caplog.at_level(logging.WARNING, "snapstore"):
        kv.restore(snapshot_path)
        assert values(kv.env) == VALUES
    assert "larger map_size" in caplog.text


def test_file_that_ends_before_its_last_free_pages_is_whole(tmp_path: Path, snapshot_path: Path) -> None:
    # LMDB writes no page that was taken and given back in one transaction, not even the file's last.
    with LmdbKV(tmp_path / "env", map_size=1 << 26) as kv:
        kv.restore(snapshot_path)
        with kv.env.begin(write=True) as txn:
            for key in VALUES:
                txn.delete(key)
        for value in (b"any", b"other", b"this"):
            put(kv, b"only", value)
        with kv.snapshot() as snapshot, open(tmp_path / "free", "wb") as file:
            snapshot.write_to(file)
    image = (tmp_path / "free").read_bytes()
    meta = max(DataMeta.parse(image), DataMeta.parse(image[4096:]), key=lambda meta: meta.txnid)
    with open(tmp_path / "free", "rb") as file:
        (offset, length) = meta.page_map(file.fileno()).zero_runs()[-1]
    assert offset + length == meta.size
    restore_lmdb(io.BytesIO(image[:offset]), tmp_path / "copy")
    with lmdb.open(str(tmp_path / "copy")) as env:
        assert values(env) == {b"only": b"this"}


def test_store_that_cannot_be_opened_again_is_closed_and_lets_others_in(
    tmp_path: Path, snapshot_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: str, **options: object) -> lmdb.Environment:
        if "lock" in options:
            return lmdb.Environment(path, **options)  # type: ignore[arg-type]
        raise lmdb.Error("no more")

    with LmdbKV(tmp_path / "env", map_size=1 << 26) as kv:
        monkeypatch.setattr(lmdb, "open", refuse)
        with pytest.raises(lmdb.Error, match="no more"):
            kv.restore(snapshot_path)
        with pytest.raises(StoreClosed):
            kv.snapshot()
    with lmdb.Environment(str(tmp_path / "env"), map_size=1 << 26) as env:
        assert values(env) == VALUES


def test_read_only_store_is_not_replaced(tmp_path: Path, snapshot_path: Path) -> None:
    LmdbKV(tmp_path / "env").close()
    with LmdbKV(tmp_path / "env", readonly=True) as kv, pytest.raises(SnapstoreError, match="read-only"):
        kv.restore(snapshot_path)
