"""LMDB snapshots: the image is the pinned transaction, the whole of it, and nothing else."""

from __future__ import annotations

import gc
import logging
import os
import random
import re
import subprocess
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import lmdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmdb_oracle import expected_image
from snapstore._fastpipe import Image
from snapstore.errors import (
    ForkedProcess,
    PipeClosed,
    SnapshotCorrupt,
    SnapshotTemporarilyUnavailable,
    SnapstoreError,
    StoreClosed,
)
from snapstore.kv.lmdb import LmdbKV, restore_lmdb
from snapstore.kv.lmdb_file import DataMeta
from snapstore.kv.lmdb_snapshot import PIN_WARN_AFTER_S

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from snapstore.kv.lmdb import LmdbSnapshot

MAP_SIZE = 1 << 29
KINDS: dict[bytes, dict[str, bool]] = {
    b"small": {},
    b"large": {},
    b"duplicates": {"dupsort": True},
    b"fixed": {"dupsort": True, "dupfixed": True},
    b"empty": {},
}
MODES: dict[str, dict[str, Any]] = {
    "plain": {},
    "writemap": {"writemap": True},
    "nosync": {"sync": False},
    "nometasync": {"metasync": False},
    "mapasync": {"writemap": True, "map_async": True},
    "nomeminit": {"meminit": False},
}


def formats() -> list[int]:
    """The LMDB versions in this py-lmdb: 0 (data format 1), and 1 (data format 3) where it has it."""
    try:
        lmdb.version(lib_version=1)
    except (TypeError, lmdb.Error):
        return [0]
    return [0, 1]


@pytest.fixture(params=formats(), ids=lambda version: f"lmdb{version}")
def options(request: pytest.FixtureRequest) -> dict[str, Any]:
    version = {} if len(formats()) == 1 else {"lib_version": request.param}
    return {"map_size": MAP_SIZE, "max_dbs": 8, **version}


class Churn:
    """A writer with all kinds of databases: puts, overwrites with other lengths, deletions."""

    def __init__(self, kv: LmdbKV, seed: int = 1) -> None:
        self.kv = kv
        self.random = random.Random(seed)
        self.dbs = {name: kv.env.open_db(name, **kind) for name, kind in KINDS.items()}
        self.deletes = True

    def __call__(self, count: int = 100) -> None:
        number, data = self.random.randrange, self.random.randbytes
        with self.kv.env.begin(write=True) as txn:
            for _ in range(count):
                txn.put(b"key %d" % number(900), data(number(1, 9000)))
                txn.put(b"key %d" % number(900), data(number(1, 90)), db=self.dbs[b"small"])
                txn.put(b"key %d" % number(90), data(number(2000, 30000)), db=self.dbs[b"large"])
                # Overwritten in one transaction: in format 1 the value keeps pages that it has no use for.
                txn.put(b"same", data(30000), db=self.dbs[b"large"])
                txn.put(b"same", data(number(2100, 9000)), db=self.dbs[b"large"])
                txn.put(b"key %d" % number(9), data(number(1, 400)), db=self.dbs[b"duplicates"])
                txn.put(b"key %d" % number(90), data(number(1, 40)), db=self.dbs[b"duplicates"])
                txn.put(b"key %d" % number(9), data(8), db=self.dbs[b"fixed"])
                if not self.deletes:
                    continue
                for name, keys in ((b"small", 900), (b"large", 90), (b"duplicates", 90), (b"fixed", 900)):
                    txn.delete(b"key %d" % number(keys), db=self.dbs[name])
                txn.delete(b"key %d" % number(900))


@contextmanager
def busy(churn: Churn) -> Iterator[threading.Event]:
    """A writer that commits all the time; the event is set at each commit."""
    stop, committed = threading.Event(), threading.Event()

    def write() -> None:
        while not stop.is_set():
            churn(2)
            committed.set()

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield committed
    finally:
        stop.set()
        thread.join()


class Bytes(bytearray):
    """A writer in memory."""

    def write(self, data: memoryview) -> None:
        self.extend(data)


def image_bytes(snapshot: LmdbSnapshot) -> bytes:
    written = Bytes()
    assert snapshot.write_to(written) == snapshot.size == len(written)
    return bytes(written)


def content(env: lmdb.Environment, txn: lmdb.Transaction) -> dict[bytes, list[tuple[bytes, bytes]]]:
    """Every key and value of every database, and what LMDB counts in each."""
    found = {}
    for name in [None, *env.dbs(txn)]:
        db = env.open_db(name, txn=txn, create=False)
        found[name or b"main"] = [*txn.cursor(db), (b"stat", repr(txn.stat(db)).encode())]
    return found


def pinned_content(churn: Churn, snapshot: LmdbSnapshot) -> dict[bytes, list[tuple[bytes, bytes]]]:
    txn = snapshot.txn
    dbs = {b"main": None, **churn.dbs}
    return {name: [*txn.cursor(db), (b"stat", repr(txn.stat(db)).encode())] for name, db in dbs.items()}


@pytest.mark.parametrize(
    "mode",
    [
        *("plain", "writemap", "nomeminit"),
        # What LMDB syncs, and when, is no matter to an image: these find what the ones above find, or less.
        *(pytest.param(mode, marks=pytest.mark.slow) for mode in ("nosync", "nometasync", "mapasync")),
    ],
)
def test_image_is_the_pinned_transaction_while_a_writer_goes_on(
    tmp_path: Path, options: dict[str, Any], mode: str
) -> None:
    with LmdbKV(tmp_path / "env", **options, **MODES[mode]) as kv:
        churn = Churn(kv)
        for _ in range(8):
            churn()
        # LMDB 1.0.2 aborts in mdb_freelist_save when pages are freed under WRITEMAP beside a reader.
        churn.deletes = not (MODES[mode].get("writemap") and options.get("lib_version") == 1)
        with kv.snapshot() as snapshot, busy(churn) as committed:
            pinned = pinned_content(churn, snapshot)
            first = image_bytes(snapshot)
            committed.clear()
            assert committed.wait(30)
            assert image_bytes(snapshot) == first
            with open(tmp_path / "env" / "data.mdb", "rb") as data:
                file = data.read(snapshot.size)
            assert snapshot.pages_held >= 0
            txnid = snapshot.txnid
    header_size = {1: 16, 3: 24}[DataMeta.parse(first[:256]).version]
    oracle = expected_image(file, first[:8192], header_size=header_size, txnid=txnid)
    assert oracle.pages | oracle.free == set(range(2, len(first) // 4096)), "a page is neither used nor free"
    assert not oracle.pages & oracle.free
    assert first == oracle.expected

    (tmp_path / "snapshot").write_bytes(first)
    restore_lmdb(tmp_path / "snapshot", tmp_path / "copy")
    with lmdb.open(str(tmp_path / "copy"), map_size=MAP_SIZE, max_dbs=8) as env:
        with env.begin() as txn:
            assert txn.id() == txnid
            assert content(env, txn) == pinned
        with env.begin(write=True) as txn:
            for number in range(500):
                txn.put(b"after %d" % number, bytes(3000))
        with env.begin() as txn:
            assert sum(key.startswith(b"after") for key, _ in txn.cursor()) == 500


def test_empty_environment_has_an_image_that_opens_and_takes_writes(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    with LmdbKV(tmp_path / "env", **options) as kv, kv.snapshot() as snapshot:
        assert snapshot.size == 2 * 4096
        (tmp_path / "snapshot").write_bytes(image_bytes(snapshot))
    restore_lmdb(tmp_path / "snapshot", tmp_path / "copy")
    with lmdb.open(str(tmp_path / "copy")) as env, env.begin(write=True) as txn:
        assert txn.stat()["entries"] == 0
        txn.put(b"key", b"value")


def test_environment_that_grows_during_the_transfer_keeps_the_size_of_the_pin(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    class GrowingWriter(Bytes):
        def write(self, data: memoryview) -> None:
            super().write(data)
            churn()

    with LmdbKV(tmp_path / "env", **options) as kv:
        churn = Churn(kv)
        for _ in range(4):
            churn()
        with kv.snapshot() as snapshot:
            before = image_bytes(snapshot)
            growing = GrowingWriter()
            snapshot.write_to(growing)
            assert growing == before
            assert snapshot.pages_held > 0
            assert os.path.getsize(tmp_path / "env" / "data.mdb") > snapshot.size


@pytest.mark.parametrize("mode", ["plain", "writemap", "nomeminit"])
def test_nothing_deleted_is_in_the_image(tmp_path: Path, options: dict[str, Any], mode: str) -> None:
    secret = b"a secret that was deleted"
    with LmdbKV(tmp_path / "env", **options, **MODES[mode]) as kv:
        dbs = {name: kv.env.open_db(name, **kind) for name, kind in KINDS.items()}
        with kv.env.begin(write=True) as txn:
            for number in range(400):
                # The survivors share their pages with what goes.
                key = b"%04d" % number
                for db, size in ((None, 60), (dbs[b"small"], 200), (None, 3000), (dbs[b"large"], 2100)):
                    value = (secret * 200)[:size] if number % 2 else b"keep" * (size // 4)
                    txn.put(b"%d %s" % (size, key), value, db=db)
                txn.put(b"shared", (secret + key) if number % 2 else key, db=dbs[b"duplicates"])
                txn.put(key, secret, db=dbs[b"duplicates"])
                txn.put(key, b"keep", db=dbs[b"duplicates"])
                txn.put(key, b"also", db=dbs[b"duplicates"])
                txn.put(b"%02d" % (number % 40), (secret + key)[-29:], db=dbs[b"fixed"])
                txn.put(b"%02d" % (number % 40), b"keep, of the same length:" + key, db=dbs[b"fixed"])
        for size in (4080, 20000):
            with kv.env.begin(write=True) as txn:
                txn.put(b"shrinks", (secret * 1000)[:size], db=dbs[b"large"])
                txn.put(b"shrinks", b"small", db=dbs[b"large"])
        for name, db in ((None, None), *dbs.items()):
            with kv.env.begin(write=True) as txn, txn.cursor(db) as cursor:
                more = cursor.first()
                while more:
                    more = cursor.delete() if secret[:20] in cursor.value() else cursor.next()
                    if cursor.key() == b"":
                        break
            assert name is None or name in KINDS
        with kv.env.begin(write=True) as txn:
            txn.put(b"last", b"write")
        assert secret[:12] in (tmp_path / "env" / "data.mdb").read_bytes()
        with kv.snapshot() as snapshot:
            image = image_bytes(snapshot)
            assert snapshot.txn.stat(dbs[b"fixed"])["entries"] == 400
    assert secret[:12] not in image


@pytest.fixture(scope="module")
def still(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LmdbSnapshot, bytes]]:
    path = tmp_path_factory.mktemp("still")
    with LmdbKV(path, map_size=MAP_SIZE, max_dbs=8) as kv:
        churn = Churn(kv)
        for _ in range(5):
            churn(60)
        with kv.snapshot() as snapshot:
            yield snapshot, image_bytes(snapshot)


@given(st.data())
@settings(max_examples=120, deadline=None)
def test_image_reads_the_same_at_any_offset(still: tuple[LmdbSnapshot, bytes], data: st.DataObject) -> None:
    snapshot, whole = still
    offset = data.draw(st.integers(0, len(whole)))
    length = data.draw(st.one_of(st.integers(0, 9000), st.integers(0, 300_000)))
    buffer = bytearray(length)
    count = snapshot.image().readinto(buffer, offset)
    assert count == min(length, len(whole) - offset)
    assert buffer[:count] == whole[offset : offset + count]


@given(st.data())
@settings(max_examples=80, deadline=None)
@pytest.mark.parametrize("version", formats())
def test_damaged_pages_are_refused_or_left_alone(
    tmp_path_factory: pytest.TempPathFactory, version: int, data: st.DataObject
) -> None:
    whole = _image_of_format(tmp_path_factory, version)
    damaged = bytearray(whole)
    meta = DataMeta.parse(whole[:256])
    for _ in range(data.draw(st.integers(1, 4))):
        page = data.draw(st.integers(2, meta.last_page))
        at = page * 4096 + data.draw(st.one_of(st.integers(0, 64), st.integers(0, 4095)))
        damaged[at] = data.draw(st.one_of(st.integers(0, 255), st.just(255), st.just(damaged[at] ^ 1)))
    with open(os.memfd_create("damaged"), "w+b", buffering=0) as file:
        file.write(whole)
        sound_map = meta.page_map(file.fileno())
        os.pwrite(file.fileno(), damaged, 0)
        # Pages that went bad after the walk: whatever is read, it ends and stays within its bounds.
        with Image(os.dup(file.fileno()), len(whole), page_map=sound_map) as image:
            assert image.readinto(bytearray(len(whole)), 0) == len(whole)
        try:
            page_map = meta.page_map(file.fileno())
        except SnapshotCorrupt:
            return
        assert all(offset + length <= len(whole) for offset, length in page_map.zero_runs())
        with Image(os.dup(file.fileno()), len(whole), page_map=page_map) as image:
            assert image.readinto(bytearray(len(whole)), 0) == len(whole)


_IMAGES: dict[int, bytes] = {}


def _image_of_format(tmp_path_factory: pytest.TempPathFactory, version: int) -> bytes:
    if version not in _IMAGES:
        chosen = {} if len(formats()) == 1 else {"lib_version": version}
        with LmdbKV(tmp_path_factory.mktemp("sound"), map_size=MAP_SIZE, max_dbs=8, **chosen) as kv:
            churn = Churn(kv)
            for _ in range(3):
                churn(20)
            with kv.snapshot() as snapshot:
                _IMAGES[version] = image_bytes(snapshot)
    return _IMAGES[version]


def test_main_database_of_small_values_is_not_walked(tmp_path: Path, options: dict[str, Any]) -> None:
    with LmdbKV(tmp_path / "env", **options) as kv:
        for _ in range(3):
            with kv.env.begin(write=True) as txn:
                for number in range(20_000):
                    txn.put(b"%08d" % number, os.urandom(50))
        with kv.snapshot() as snapshot:
            meta = DataMeta.parse(image_bytes(snapshot)[:256])
            with open(tmp_path / "env" / "data.mdb", "rb") as file:
                assert meta.page_map(file.fileno()).pages_walked < 20


def test_pin_waits_for_no_writer(tmp_path: Path, options: dict[str, Any]) -> None:
    with LmdbKV(tmp_path / "env", **options) as kv:
        with kv.env.begin(write=True) as txn:
            txn.put(b"key", b"committed")
        # In the thread of an open write transaction: taking the writer's mutex here would be for ever.
        with kv.env.begin(write=True) as txn:
            txn.put(b"key", b"not yet")
            with kv.snapshot() as snapshot:
                assert snapshot.txn.get(b"key") == b"committed"
                assert b"not yet" not in image_bytes(snapshot)


def test_pins_hold_under_a_writer_that_commits_all_the_time(tmp_path: Path, options: dict[str, Any]) -> None:
    with LmdbKV(tmp_path / "env", **options, sync=False) as kv:

        def write() -> None:
            for number in range(4000):
                with kv.env.begin(write=True) as txn:
                    txn.put(b"number", b"%d" % number)

        thread = threading.Thread(target=write)
        thread.start()
        pinned = []
        try:
            while thread.is_alive():
                with kv.snapshot() as snapshot:
                    pinned.append((snapshot.txn.get(b"number"), image_bytes(snapshot)))
                    assert (
                        DataMeta.parse(pinned[-1][1][(snapshot.txnid & 1) * 4096 :]).txnid == snapshot.txnid
                    )
                del pinned[:-5]
        finally:
            thread.join()
    for number, image in pinned:
        (tmp_path / "snapshot").write_bytes(image)
        restore_lmdb(tmp_path / "snapshot", tmp_path / "copy")
        with lmdb.open(str(tmp_path / "copy")) as env, env.begin() as txn:
            assert txn.get(b"number") == number


def test_full_reader_table_is_named(tmp_path: Path) -> None:
    with LmdbKV(tmp_path, max_readers=2) as kv:
        readers = [kv.env.begin(), kv.env.begin()]
        with pytest.raises(SnapshotTemporarilyUnavailable, match=r"all 2 reader slots.*max_readers"):
            kv.snapshot()
        while readers:
            readers.pop().abort()
        kv.snapshot().close()


def test_readers_of_a_dead_process_are_cleared_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    program = "import lmdb, os, sys; t = lmdb.open(sys.argv[1]).begin(); os._exit(0)"
    with LmdbKV(tmp_path) as kv:
        subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True, timeout=60)
        with caplog.at_level(logging.WARNING, "snapstore"):
            kv.snapshot().close()
        assert "1 readers left by dead processes" in caplog.text


def test_long_pin_is_warned_of_with_its_cost(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    now_s = [0.0]
    with LmdbKV(tmp_path, monotonic=lambda: now_s[0], map_size=MAP_SIZE) as kv:
        snapshot = kv.snapshot()
        for _ in range(3):  # The second frees what the first has written, for those after the third.
            with kv.env.begin(write=True) as txn:
                txn.put(b"key", bytes(40_000))
        now_s[0] = PIN_WARN_AFTER_S + 1
        with caplog.at_level(logging.WARNING, "snapstore"):
            kv.snapshot().close()
            snapshot.close()
        (record,) = caplog.records
        assert re.search(r"301 s; [1-9]\d* free pages could", record.getMessage())
        assert snapshot.pages_held == 0


def test_a_pin_whose_cost_cannot_be_told_ends_and_hinders_no_other(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """To count takes a reader's slot, and the last one may be taken: also just when a pin gives one back."""
    now_s = [0.0]
    with LmdbKV(tmp_path, monotonic=lambda: now_s[0], max_readers=2) as kv:
        old = kv.snapshot()
        image = old.image()
        now_s[0] = PIN_WARN_AFTER_S + 1
        with kv.snapshot() as young:
            with pytest.raises(SnapshotTemporarilyUnavailable, match="reader slots"):
                _ = old.pages_held
            now_s[0] *= 2
            young_image = young.image()
        assert young_image.closed
        old.close()
        assert image.closed
        assert kv.env.readers().count("\n") <= 1, "a slot is taken still"
    told = [record.getMessage() for record in caplog.records]
    assert sum("what it costs cannot be told: all 2 reader slots" in words for words in told) == 2


def test_what_a_pin_costs_is_asked_in_its_own_process(tmp_path: Path) -> None:
    with LmdbKV(tmp_path) as kv, kv.snapshot() as snapshot:
        child = os.fork()
        if child == 0:
            try:
                _ = snapshot.bytes_held
            except ForkedProcess:
                os._exit(7)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_environment_without_locks_is_refused(tmp_path: Path) -> None:
    with LmdbKV(tmp_path, lock=False) as kv, pytest.raises(SnapstoreError, match="lock=True"):
        kv.snapshot()


def test_read_only_environment_and_one_without_a_directory_give_snapshots(tmp_path: Path) -> None:
    with LmdbKV(tmp_path / "file.mdb", subdir=False) as kv, kv.env.begin(write=True) as txn:
        txn.put(b"key", b"value")
    with LmdbKV(tmp_path / "file.mdb", subdir=False, readonly=True) as kv, kv.snapshot() as snapshot:
        (tmp_path / "snapshot").write_bytes(image_bytes(snapshot))
    restore_lmdb(tmp_path / "snapshot", tmp_path / "other.mdb", subdir=False)
    with lmdb.open(str(tmp_path / "other.mdb"), subdir=False) as env, env.begin() as txn:
        assert txn.get(b"key") == b"value"


def test_closed_snapshot_reads_no_more(tmp_path: Path) -> None:
    with LmdbKV(tmp_path) as kv:
        snapshot = kv.snapshot()
        image = snapshot.image()
        assert snapshot.image() is image
        closer = threading.Thread(target=snapshot.close)
        closer.start()
        closer.join()
        snapshot.close()
        with pytest.raises(PipeClosed):
            image.readinto(bytearray(10), 0)
        early = kv.snapshot()
        early.close()
        with pytest.raises(PipeClosed):
            early.image()
        assert "(no active readers)" in kv.env.readers() or "-" in kv.env.readers()
    with pytest.raises(StoreClosed):
        kv.snapshot()


def test_adopted_environment_stays_its_owners(tmp_path: Path) -> None:
    with lmdb.open(str(tmp_path)) as env:
        with pytest.raises(TypeError, match="map_size"):
            LmdbKV(env, map_size=MAP_SIZE)
        with LmdbKV(env) as kv:
            assert kv.env is env
            kv.snapshot().close()
            with pytest.raises(SnapstoreError, match="restore_lmdb"):
                kv.restore(tmp_path / "data.mdb")
        assert env.stat()["entries"] == 0


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="a fork beside threads is a warning there")
def test_forked_child_cannot_pin_and_leaves_the_parents_pin_alone(tmp_path: Path) -> None:
    with LmdbKV(tmp_path) as kv, kv.snapshot() as snapshot:
        child = os.fork()
        if child == 0:
            outcome = 1
            try:
                kv.snapshot()
            except ForkedProcess:
                snapshot.close()
                outcome = 0
            finally:
                os._exit(outcome)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert "(no active readers)" not in kv.env.readers()
        assert len(image_bytes(snapshot)) == snapshot.size


def test_a_dropped_snapshot_warns_and_gives_its_pin_and_descriptors_back(tmp_path: Path) -> None:
    with LmdbKV(tmp_path) as kv:
        before = len(os.listdir("/proc/self/fd"))
        snapshot = kv.snapshot()
        image = snapshot.image()
        with pytest.warns(ResourceWarning, match="unclosed <LmdbSnapshot"):  # noqa: PT031
            del snapshot
            gc.collect()
        assert image.closed
        assert len(os.listdir("/proc/self/fd")) == before
        assert not kv.env.readers().count("\n 0x")


def test_an_old_pin_is_closed_although_its_environment_was_closed_first(tmp_path: Path) -> None:
    now_s = [0.0]
    env = lmdb.open(str(tmp_path))
    snapshot = LmdbKV(env, monotonic=lambda: now_s[0]).snapshot()
    image = snapshot.image()
    now_s[0] = PIN_WARN_AFTER_S + 1
    env.close()
    snapshot.close()
    assert image.closed
