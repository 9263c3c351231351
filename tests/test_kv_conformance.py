"""What every KV owes, asked of each of them: one suite, a small adapter for each backend.

The adapters stand for the node: they put, get and list through the backend's own ways, and close and
reopen what a node has to around a restore.
"""

from __future__ import annotations

import contextlib
import io
import os
import random
import sqlite3
import threading
from typing import TYPE_CHECKING, Any

import pytest

from snapstore.errors import (
    ForkedProcess,
    PipeClosed,
    SnapshotCorrupt,
    SnapshotTemporarilyUnavailable,
    SnapshotTruncated,
)
from snapstore.kv.lmdb import LmdbKV
from snapstore.kv.memory import MAGIC, MemoryKV
from snapstore.kv.sqlite import SqliteKV

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

#: Values of nothing up to almost 3,000 bytes: within a page of each backend, and beyond one.
ITEMS = {b"key %06d" % number: bytes([number % 251]) * (6 * number) for number in range(500)}


class MemoryNode:
    magic = MAGIC

    def __init__(self, directory: Path, **options: Any) -> None:
        self.kv: Any = MemoryKV(**options)

    def put(self, items: dict[bytes, bytes]) -> None:
        for key, value in items.items():
            self.kv.put(key, value)

    def items(self) -> dict[bytes, bytes]:
        return dict(self.kv.items())

    def restore(self, source: Any) -> None:
        self.kv.restore(source)

    def close(self) -> None:
        pass


class LmdbNode:
    magic = b"\xde\xc0\xef\xbe"

    def __init__(self, directory: Path) -> None:
        self.kv: Any = LmdbKV(directory / "lmdb", map_size=1024**3, sync=False)

    def put(self, items: dict[bytes, bytes]) -> None:
        with self.kv.env.begin(write=True) as transaction:
            for key, value in items.items():
                transaction.put(key, value)

    def items(self) -> dict[bytes, bytes]:
        with self.kv.env.begin() as transaction:
            return {bytes(key): bytes(value) for key, value in transaction.cursor()}

    def restore(self, source: Any) -> None:
        self.kv.restore(source)

    def close(self) -> None:
        self.kv.close()


class SqliteNode:
    magic = b"SQLite format 3\0"

    def __init__(self, directory: Path, journal_mode: str) -> None:
        self.kv: Any = SqliteKV(directory / "node.db")
        self._journal_mode = journal_mode
        self._open()
        self._database.execute("CREATE TABLE kv (key BLOB PRIMARY KEY, value BLOB) WITHOUT ROWID")

    def _open(self) -> None:
        self._database = sqlite3.connect(self.kv.path, isolation_level=None, check_same_thread=False)
        self._database.execute(f"PRAGMA journal_mode={self._journal_mode}").fetchone()
        self._database.execute("PRAGMA synchronous=OFF")

    def put(self, items: dict[bytes, bytes]) -> None:
        self._database.execute("BEGIN IMMEDIATE")
        self._database.executemany("REPLACE INTO kv VALUES (?, ?)", items.items())
        self._database.execute("COMMIT")

    def items(self) -> dict[bytes, bytes]:
        return dict(self._database.execute("SELECT key, value FROM kv").fetchall())

    def restore(self, source: Any) -> None:
        self._database.close()
        try:
            self.kv.restore(source)
        finally:
            self._open()

    def close(self) -> None:
        self._database.close()


Node = Any
NODES: dict[str, Callable[[Path], Node]] = {
    "lmdb": LmdbNode,
    "sqlite-wal": lambda directory: SqliteNode(directory, "wal"),
    "sqlite-delete": lambda directory: SqliteNode(directory, "delete"),
    "sqlite-persist": lambda directory: SqliteNode(directory, "persist"),
    "memory": MemoryNode,
    "memory-size-unknown": lambda directory: MemoryNode(directory, size_known=False),
}


@pytest.fixture(params=NODES)
def make_node(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[str], Node]]:
    made: list[Node] = []

    def make(name: str) -> Node:
        (tmp_path / name).mkdir()
        made.append(NODES[request.param](tmp_path / name))
        return made[-1]

    yield make
    for node in made:
        node.close()


@pytest.fixture
def node(make_node: Callable[[str], Node]) -> Node:
    node = make_node("node")
    node.put(ITEMS)
    return node


def image_of(snapshot: Any) -> bytes:
    image = io.BytesIO()
    assert snapshot.write_to(image) == len(image.getvalue())
    return image.getvalue()


def snapshot_of(node: Node) -> bytes:
    with node.kv.snapshot() as snapshot:
        return image_of(snapshot)


class Trickle:
    """A reader that gives less than it is asked for, as sockets do."""

    def __init__(self, content: bytes) -> None:
        self._source = io.BytesIO(content)

    def read(self, size: int) -> bytes:
        return self._source.read(min(size, 7919))


def test_a_snapshot_holds_what_was_there_at_the_call_and_nothing_later(make_node, node):
    with node.kv.snapshot() as snapshot:
        node.put(dict.fromkeys(ITEMS, b"later") | {b"new": b"later"})
        image = image_of(snapshot)
    follower = make_node("follower")
    follower.restore(io.BytesIO(image))
    assert follower.items() == ITEMS
    assert node.items()[b"new"] == b"later"


def test_a_snapshot_is_one_moment_of_a_writer_that_goes_on(make_node, node):
    """The writer puts numbered keys in order, so each moment is a run of numbers without a gap."""
    progress = threading.Condition()
    written = 0
    stop = threading.Event()

    def write() -> None:
        nonlocal written
        while not stop.is_set():
            node.put({b"run %08d" % written: b"x" * 500})
            with progress:
                written += 1
                progress.notify_all()

    def wait_for(count: int) -> None:
        with progress:
            assert progress.wait_for(lambda: written >= count, timeout=30)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        wait_for(20)
        for _ in range(20):
            # Beside a writer that never rests a KV may say "later"; it must not say so for ever.
            with contextlib.suppress(SnapshotTemporarilyUnavailable):
                before = written
                snapshot = node.kv.snapshot()
                break
        else:
            pytest.fail("no snapshot could be had in 20 tries")
        after = written + 1  # The one under way may be in it already.
        first = image_of(snapshot)
        wait_for(after + 20)
        second = image_of(snapshot)
        snapshot.close()
    finally:
        stop.set()
        writer.join()
    assert first == second
    follower = make_node("follower")
    follower.restore(io.BytesIO(first))
    run = sorted(key for key in follower.items() if key.startswith(b"run "))
    assert run == [b"run %08d" % number for number in range(len(run))]
    assert before <= len(run) <= after


def test_the_size_is_known_beforehand_and_right_or_unknown(node):
    with node.kv.snapshot() as snapshot:
        assert snapshot.size in (None, len(image_of(snapshot)))
        assert (snapshot.size is None) == (isinstance(node.kv, MemoryKV) and not node.kv._size_known)


def test_the_image_has_the_bytes_that_are_written_out(node):
    with node.kv.snapshot() as snapshot:
        if isinstance(node.kv, MemoryKV):
            assert not hasattr(snapshot, "image")
            return
        whole = image_of(snapshot)
        image = snapshot.image()
        assert image is snapshot.image()
        assert image.size == snapshot.size
        chance = random.Random(7)
        for _ in range(200):
            offset = chance.randrange(len(whole))
            part = bytearray(chance.randrange(1, 20_000))
            count = image.readinto(part, offset)
            assert part[:count] == whole[offset : offset + len(part)]


def test_closing_twice_is_closing_once(node):
    snapshot = node.kv.snapshot()
    snapshot.close()
    snapshot.close()
    node.put({b"after": b"close"})
    assert node.items()[b"after"] == b"close"


def test_a_closed_snapshot_gives_nothing(node):
    snapshot = node.kv.snapshot()
    images = [snapshot.image()] if hasattr(snapshot, "image") else []
    snapshot.close()
    with pytest.raises(PipeClosed):
        snapshot.write_to(io.BytesIO())
    if images:
        with pytest.raises(PipeClosed):
            snapshot.image()
        with pytest.raises(PipeClosed):
            images[0].readinto(bytearray(10), 0)


def test_closing_from_another_thread_ends_the_writing(node):
    node.put({b"bulk %d" % number: os.urandom(1_000_000) for number in range(5)})
    snapshot = node.kv.snapshot()

    class Closer(io.BytesIO):
        def write(self, data: Any, /) -> int:
            closer = threading.Thread(target=snapshot.close)
            closer.start()
            closer.join()
            return super().write(data)

    with pytest.raises(PipeClosed):
        snapshot.write_to(Closer())


def test_snapshots_come_one_after_the_other(node):
    first = snapshot_of(node)
    assert snapshot_of(node) == first
    node.put({b"one": b"more"})
    assert snapshot_of(node) != first


@pytest.mark.parametrize("way", ["path", "reader", "short reads"])
def test_a_restore_brings_back_the_whole_content(make_node, node, tmp_path, way):
    image = snapshot_of(node)
    saved = tmp_path / "saved.db"
    saved.write_bytes(image)
    follower = make_node("follower")
    follower.put({b"old": b"content"})
    follower.restore({"path": saved, "reader": io.BytesIO(image), "short reads": Trickle(image)}[way])
    assert follower.items() == ITEMS
    follower.put({b"new": b"content"})
    assert follower.items() == ITEMS | {b"new": b"content"}
    assert saved.read_bytes() == image
    assert len(snapshot_of(follower)) >= len(image)


def test_a_store_can_be_restored_from_its_own_snapshot(node):
    image = snapshot_of(node)
    node.put({b"key 000001": b"changed", b"new": b"later"})
    node.restore(io.BytesIO(image))
    assert node.items() == ITEMS


def check_refused(node: Node, tmp_path: Path, bad: bytes, error: type[Exception]) -> None:
    saved = tmp_path / "bad.db"
    saved.write_bytes(bad)
    files = sorted(os.listdir(tmp_path / "node"))
    for source in (str(saved), Trickle(bad)):
        with pytest.raises(error):
            node.restore(source)
        assert node.items() == ITEMS
        assert sorted(os.listdir(tmp_path / "node")) == files
    assert sorted(os.listdir(tmp_path)) == ["bad.db", "node"]


@pytest.mark.parametrize("part", [0.0, 0.0004, 0.3, 0.9999])
def test_a_truncated_snapshot_is_refused_and_the_old_content_kept(node, tmp_path, part):
    image = snapshot_of(node)
    check_refused(node, tmp_path, image[: int(len(image) * part)], SnapshotTruncated)


def test_a_snapshot_short_of_one_byte_is_refused(node, tmp_path):
    check_refused(node, tmp_path, snapshot_of(node)[:-1], SnapshotTruncated)


def test_a_snapshot_with_something_behind_it_is_refused(node, tmp_path):
    check_refused(node, tmp_path, snapshot_of(node) + b"\0" * 4096, SnapshotCorrupt)


@pytest.mark.parametrize("foreign", [b"#!/bin/sh\n" * 9999, b"\0" * 65536, b"\xff" * 65536])
def test_foreign_bytes_are_refused(node, tmp_path, foreign):
    check_refused(node, tmp_path, foreign, SnapshotCorrupt)


@pytest.mark.parametrize("bit", range(0, 64, 9))
def test_a_flipped_bit_in_the_header_is_refused(node, tmp_path, bit):
    image = bytearray(snapshot_of(node))
    start = image.index(node.magic)
    image[start + bit // 8 % len(node.magic)] ^= 1 << bit % 8
    check_refused(node, tmp_path, bytes(image), SnapshotCorrupt)


def test_a_reader_that_fails_leaves_the_old_content(node, tmp_path):
    image = snapshot_of(node)

    class Failing(Trickle):
        def read(self, size: int) -> bytes:
            part = super().read(size)
            if not part or self._source.tell() > len(image) // 2:
                raise ConnectionResetError("the peer went away")
            return part

    files = sorted(os.listdir(tmp_path / "node"))
    with pytest.raises(ConnectionResetError, match="went away"):
        node.restore(Failing(image))
    assert node.items() == ITEMS
    assert sorted(os.listdir(tmp_path / "node")) == files


# Other tests of the run may have left daemon threads; this child touches none of their locks.
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_the_child_of_a_fork_is_refused_and_the_parent_is_unharmed(node):
    snapshot = node.kv.snapshot()
    before = image_of(snapshot)
    calls: list[Callable[[], object]] = [
        node.kv.snapshot,
        lambda: node.kv.restore(io.BytesIO(before)),
        lambda: snapshot.write_to(io.BytesIO()),
    ]
    if hasattr(snapshot, "image"):
        calls.append(snapshot.image)
    child = os.fork()
    if not child:
        wrong = 0
        for number, call in enumerate(calls):
            try:
                call()
            except ForkedProcess:
                continue
            except BaseException:  # noqa: BLE001 - it is told to the parent by its number
                pass
            wrong |= 1 << number
        try:
            snapshot.close()
        finally:
            os._exit(wrong)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    node.put({b"key 000001": b"later"})
    assert image_of(snapshot) == before
    snapshot.close()
