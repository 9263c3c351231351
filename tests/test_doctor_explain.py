"""A snapshot explained: what its manifest, its file and its first bytes tell, of whatever made it."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import struct

import lmdb
import pytest
from hypothesis import given
from hypothesis import strategies as st

import etcd_databases
from nodes import CONTENT, UNIT
from residue import descriptors
from rotten import rot
from snapstore import disk
from snapstore._fastpipe import Image
from snapstore.broken import broken_name
from snapstore.directory import SnapshotDir
from snapstore.doctor import explain, explanation
from snapstore.doctor.explanation import data_shown, kind_of_data
from snapstore.doctor.image_kind import describe_image
from snapstore.errors import SnapshotNotFound
from snapstore.kv.lmdb import LmdbKV
from snapstore.kv.sqlite import SqliteKV
from snapstore.meta import ConfState, SnapshotMeta
from snapstore.stream import SnapshotStream

META = SnapshotMeta(7, 3, ConfState((1, 2, 3), learners=(9,)), b'{"members": 3}')


@pytest.fixture
def path(tmp_path):
    with SnapshotDir(tmp_path / "snap", chunk_size=UNIT) as directory:
        directory.save_from(CONTENT, META)
    return tmp_path / "snap"


@pytest.fixture
def described(tmp_path):
    """What is told of these bytes as an image."""

    def describe(content):
        (tmp_path / "image").write_bytes(content)
        with Image(os.open(tmp_path / "image", os.O_RDONLY), len(content)) as image:
            return describe_image(image)

    return describe


def saved_kv(kv, tmp_path):
    with SnapshotDir(tmp_path / "snap") as directory, SnapshotStream(META, kv.snapshot()) as stream:
        directory.save_from(stream, META)
    return explain(tmp_path / "snap", 7).image


def test_all_that_the_manifest_says_is_told(path):
    before = descriptors(), {name: os.stat(path / name) for name in os.listdir(path)}
    told = explain(path, 7).to_json()
    with SnapshotDir(path) as directory:
        saved = directory.stat(7)
    assert (told.pop("digest"), told.pop("saved_at_s")) == (saved.digest, os.stat(saved.path).st_mtime)
    assert told == {
        "index": 7, "term": 3, "size": len(CONTENT), "problem": None, "path": str(saved.path),
        "conf_state": {"voters": [1, 2, 3], "learners": [9]}, "data_size": 14, "data_kind": "json",
        "chunk_size": UNIT, "chunks": 4, "mode": "0600", "user": os.geteuid(), "image": {"store": "unknown"},
        "read_back": None,
    }  # fmt: skip
    assert before[1] == {name: os.stat(path / name) for name in os.listdir(path)}
    assert before[0] == descriptors()


def test_only_reading_tells_whether_the_bytes_are_right(path):
    assert explain(path, 7, read=True).read_back is True
    rot(path / disk.snapshot_name(7), bit=8 * UNIT)
    assert explain(path, 7).problem is None
    explanation = explain(path, 7, read=True)
    assert explanation.read_back is False
    assert "digest of chunk 1" in explanation.problem
    assert disk.snapshot_name(7) in os.listdir(path)


def test_a_snapshot_without_a_manifest_is_explained_as_far_as_it_goes(path):
    (path / disk.manifest_name(7)).unlink()
    told = explain(path, 7).to_json()
    assert "no manifest" in told["problem"]
    assert (told["digest"], told["chunks"], told["chunk_size"]) == (None, None, None)


def test_what_is_set_aside_just_then_is_not_explained(path, monkeypatch):
    open_stored = explanation.open_stored

    def open_and_be_overtaken(*arguments, **options):
        stored = open_stored(*arguments, **options)
        os.rename(path / disk.snapshot_name(7), path / broken_name(7, 1))
        return stored

    monkeypatch.setattr(explanation, "open_stored", open_and_be_overtaken)
    with pytest.raises(SnapshotNotFound, match="set aside just now"):
        explain(path, 7)


def test_what_is_not_there_is_not_explained(path, tmp_path):
    with pytest.raises(SnapshotNotFound):
        explain(path, 8)
    with pytest.raises(FileNotFoundError):
        explain(tmp_path / "nowhere", 7)


def test_lmdb_is_known_by_its_meta_pages(tmp_path):
    with LmdbKV(tmp_path / "kv", map_size=2**24) as kv:
        for number in range(3):
            with kv.env.begin(write=True) as txn:
                txn.put(b"key-%d" % number, b"value")
        told = saved_kv(kv, tmp_path)
        with kv.env.begin() as txn:
            stat = txn.stat()
            expected = {
                "page_size": stat["psize"], "txn_id": txn.id(), "entries": stat["entries"],
                "depth": stat["depth"], "pages": kv.env.info()["last_pgno"] + 1,
            }  # fmt: skip
    assert told.pop("data_format") in (1, 3)
    assert told == {"store": "lmdb", **expected}
    assert told["entries"] == 3


def test_lmdb_with_one_torn_meta_page_is_told_by_the_other(tmp_path, described):
    with lmdb.open(str(tmp_path / "kv")) as env:
        for number in range(2):
            with env.begin(write=True) as txn:
                txn.put(b"key-%d" % number, b"value")
    content = bytearray((tmp_path / "kv" / "data.mdb").read_bytes())
    whole = described(content)
    page_size, newer = whole["page_size"], whole["txn_id"] & 1
    assert newer == 0
    content[page_size : page_size + 64] = bytes(64)
    assert described(content) == whole
    content[:64] = bytes(64)
    assert described(content) == {"store": "unknown"}


def test_sqlite_is_known_by_its_header(tmp_path):
    database = sqlite3.connect(tmp_path / "kv.sqlite")
    database.executescript("PRAGMA journal_mode=WAL; CREATE TABLE t (v); INSERT INTO t VALUES ('value')")
    page_size, pages = (
        database.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_size", "page_count")
    )
    told = saved_kv(SqliteKV(tmp_path / "kv.sqlite"), tmp_path)
    database.close()
    assert told.pop("change_counter") >= 1
    assert told == {"store": "sqlite", "page_size": page_size, "pages": pages, "journal": "wal"}


def test_the_largest_page_of_sqlite_is_told_as_what_it_is(described):
    header = struct.pack(">16sHBB4xII", b"SQLite format 3\0", 1, 1, 1, 5, 2)
    assert described(header.ljust(100, b"\0")) == {
        "store": "sqlite", "page_size": 65536, "pages": 2, "change_counter": 5, "journal": "rollback",
    }  # fmt: skip


@pytest.mark.parametrize("digest", [False, True], ids=["bare", "with etcdctl's digest"])
def test_bbolt_is_known_by_its_meta_pages_and_etcd_by_its_buckets(described, digest):
    content = etcd_databases.store(42)
    size = len(content)
    content += hashlib.sha256(content).digest() if digest else b""
    assert described(content) == {
        "store": "bbolt", "page_size": etcd_databases.PAGE_SIZE, "txn_id": 8, "etcd_revision": 42,
        "pages": size // etcd_databases.PAGE_SIZE,
    }  # fmt: skip


def test_a_bbolt_that_is_not_etcds_has_no_revision(described):
    leaf = etcd_databases.leaf(etcd_databases.ROOT, etcd_databases.bucket(b"other", etcd_databases.leaf(0)))
    told = described(etcd_databases.database(leaf))
    assert told["store"] == "bbolt"
    assert "etcd_revision" not in told
    assert "etcd_revision" not in described(etcd_databases.store(42) + b"one byte more")


@pytest.mark.parametrize("content", [b"x", b"SQLite format 3\0", bytes(10_000), os.urandom(10_000)])
def test_what_no_store_made_is_of_no_known_kind(described, content):
    assert described(content) == {"store": "unknown"}


def test_nothing_is_empty(described):
    assert described(b"") == {"store": "empty"}


@pytest.mark.parametrize("flips", [(0xFF,), pytest.param((0x01, 0x80), marks=pytest.mark.slow)])
@pytest.mark.parametrize("store", ["lmdb", "bbolt"])
def test_a_head_that_lies_is_no_error(tmp_path, described, store, flips):
    """Each byte of both meta pages is changed in turn."""
    if store == "lmdb":
        with lmdb.open(str(tmp_path / "kv")) as env, env.begin(write=True) as txn:
            txn.put(b"key", b"value")
        content = (tmp_path / "kv" / "data.mdb").read_bytes()
    else:
        content = etcd_databases.store(42)
    for place in range(200):
        for flip in flips:
            changed = bytearray(content)
            changed[place] ^= flip
            assert described(changed)["store"] in (store, "unknown")


@pytest.mark.parametrize(
    ("data", "kind", "shown"),
    [
        (b"", None, ""),
        (b'{"a": [1]}', "json", '{"a": [1]}'),
        ("Grüße\n".encode(), "text", "Grüße "),
        (b"\x00\x01\xfe", "binary", "0001fe"),
        (b"\x1b[2J", "binary", "1b5b324a"),
        (b"a" * 100, "text", "a" * 60 + "..."),
        (b"\xff" * 31, "binary", "ff" * 30 + "..."),
        (b"\xff" * 30, "binary", "ff" * 30),
    ],
)
def test_an_engines_data_is_shown_as_what_it_is(data, kind, shown):
    assert (kind_of_data(data), data_shown(data)) == (kind, shown)


@given(st.binary(max_size=300) | st.text(max_size=100).map(str.encode))
def test_whatever_an_engine_carries_can_be_shown_on_a_terminal(data):
    assert data_shown(data).isprintable()
    assert len(data_shown(data)) <= 63
