"""The archive on a server that speaks S3, and on other stores: what is put in comes out, and only that."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import threading

import lmdb
import pytest

from archive_places import CHUNK_SIZE, CONTENT, META, PART_SIZE, PARTS, archive_on, archived, stored
from archive_server import obstore, part_puts
from command_line import snapstore
from processes import Process
from residue import names
from snapstore import _fastpipe
from snapstore.archive import Archive, upload
from snapstore.archive.layout import inventory_name
from snapstore.directory import SnapshotDir
from snapstore.errors import (
    PipeClosed,
    SnapshotCorrupt,
    SnapshotExists,
    SnapshotNotFound,
)
from snapstore.meta import SnapshotMeta
from snapstore.transfer import Direction, State

pytestmark = pytest.mark.usefixtures("small_parts")


def test_what_is_pushed_is_listed_and_pulled_with_its_meta(server, tmp_path, target):
    archive = archive_on(server)
    with stored(tmp_path / "d") as snapshot:
        pushed = archive.push(snapshot)
        assert (pushed.index, pushed.size, pushed.sent) == (7, len(CONTENT), len(CONTENT))
        assert (pushed.digest, pushed.existed) == (snapshot.saved.digest, False)
        assert [found.to_json() for found in archive.list()] == [snapshot.saved.to_json()]
        saved = archive.pull(7, target)
        assert saved.manifest == snapshot.saved.manifest
    assert target.verify(7).meta == META
    assert saved.path.read_bytes() == CONTENT


def test_pushes_and_pulls_are_seen(server, tmp_path, target):
    archive = archive_on(server)
    with stored(tmp_path / "d") as snapshot:
        for _ in range(2):
            archive.push(snapshot)
    archive.pull(None, target)
    with pytest.raises(SnapshotExists):
        archive.pull(7, target)
    with pytest.raises(SnapshotNotFound):
        archive.pull(8, target)
    missing, had, pulled, again, pushed = archive.registry.transfers()
    assert {it.peer for it in archive.registry.transfers()} == {server.url}
    assert [it.direction for it in (pulled, again, pushed)] == [Direction.IN, Direction.OUT, Direction.OUT]
    for done in (pulled, pushed):
        assert (done.state, done.index, done.bytes, done.total) == (State.DONE, 7, *[len(CONTENT)] * 2)
    assert [(it.state, it.index, it.bytes) for it in (again, had)] == [(State.EXISTED, 7, 0)] * 2
    assert (missing.state, missing.index, missing.total) == (State.FAILED, 8, None)


def test_parts_come_first_and_the_inventory_is_the_last(server, tmp_path):
    with stored(tmp_path / "d") as snapshot:
        archive_on(server).push(snapshot)
    puts = [request.path.rpartition("/")[2] for request in server.requests if request.method == "PUT"]
    assert sorted(puts) == sorted([*PARTS, inventory_name(7)])
    assert puts[-1] == inventory_name(7)
    folder = {name.rpartition("/")[0] for name in server.names() if "/part-" in name}
    assert (len(folder), folder.pop().partition("/")[0]) == (1, f"{7:016x}")


def test_each_part_carries_its_digests(server, tmp_path):
    heads = []
    serve = server._app

    def look(environ, start_response):
        if "/part-00001" in environ["PATH_INFO"]:
            heads.append((environ.get("HTTP_X_AMZ_META_CRC32C"), environ.get("HTTP_X_AMZ_CHECKSUM_SHA256")))
        return serve(environ, start_response)

    server._app = look
    with stored(tmp_path / "d") as snapshot:
        archive_on(server).push(snapshot)
    (crc32c, sha256), *more = heads
    assert crc32c == f"{_fastpipe.crc32c(CONTENT[PART_SIZE : 2 * PART_SIZE]):08x}"
    assert sha256
    assert not more


def test_no_more_parts_are_under_way_than_the_limit_says(server, tmp_path):
    under_way, most, lock, full = set(), [], threading.Lock(), threading.Event()

    def count(request):
        if request.is_part_put:
            with lock:
                under_way.difference_update(server.served)
                under_way.add(request)
                most.append(len(under_way))
            if len(under_way) == upload.PARTS_AT_ONCE:
                full.set()
            assert full.wait(30)  # They come together, and not one by one.

    server.fault = count
    with stored(tmp_path / "d") as snapshot:
        archive_on(server).push(snapshot)
    assert max(most) == upload.PARTS_AT_ONCE


@pytest.mark.parametrize(("size", "parts"), [(0, 0), (1, 1), (PART_SIZE, 1), (PART_SIZE + 1, 2)])
def test_sizes_around_a_part(server, tmp_path, target, size, parts):
    with stored(tmp_path / "d", CONTENT[:size]) as snapshot:
        assert archive_on(server).push(snapshot).sent == size
    assert len(part_puts(server.requests)) == parts
    assert archive_on(server).pull(7, target).path.read_bytes() == CONTENT[:size]


def test_the_newest_is_pulled_where_no_index_is_given(server, tmp_path, target):
    archive = archive_on(server)
    for index in (0x10, 9):
        with stored(tmp_path / str(index), b"%d" % index, index) as snapshot:
            archive.push(snapshot)
    assert [found.index for found in archive.list()] == [9, 16]
    assert archive.pull(None, target).path.read_bytes() == b"16"
    with pytest.raises(SnapshotExists):
        archive.pull(16, target)


def test_nothing_is_there(server, target):
    archive = archive_on(server)
    assert archive.list() == []
    for index in (None, 7):
        with pytest.raises(SnapshotNotFound, match=r"s3://.* has no snapshot"):
            archive.pull(index, target)
    assert names(target.path) == []


def test_a_push_of_what_is_there_sends_nothing(tmp_path):
    with archived(tmp_path / "d") as server, SnapshotDir(tmp_path / "d") as directory:
        with directory.open(7) as snapshot:
            pushed = archive_on(server).push(snapshot)
        assert (pushed.existed, pushed.sent, part_puts(server.requests)) == (True, 0, [])


def test_a_part_that_was_lost_in_the_archive_is_mended(tmp_path, target):
    with archived(tmp_path / "d") as server, SnapshotDir(tmp_path / "d") as directory:
        name = next(name for name in server.names() if name.endswith("part-00002"))
        obstore.delete(server.objects, name)
        server.forget()
        with directory.open(7) as snapshot:
            # However this one would cut it: what is there says how it was cut.
            pushed = Archive(server.url, endpoint=server.endpoint).push(snapshot)
        assert (pushed.existed, pushed.sent) == (False, PART_SIZE)
        assert part_puts(server.requests) == ["part-00002"]
        assert archive_on(server).pull(7, target).path.read_bytes() == CONTENT


OTHERS = [
    (CONTENT[:-1] + b"x" if not CONTENT.endswith(b"x") else CONTENT[:-1] + b"y", META),
    (CONTENT[:-1], META),
    (CONTENT, SnapshotMeta(7, 4, META.conf_state, META.data)),
]


@pytest.mark.parametrize(("content", "meta"), OTHERS, ids=["bytes", "size", "term"])
def test_another_snapshot_of_one_index_is_refused_before_a_byte_is_sent(tmp_path, target, content, meta):
    with archived(tmp_path / "d") as server:
        refused = pytest.raises(SnapshotExists, match="has another snapshot of index 7: term 3")
        with stored(tmp_path / "other", content, meta) as snapshot, refused:
            archive_on(server).push(snapshot)
        assert not [request for request in server.requests if request.method != "GET"]
        assert archive_on(server).pull(7, target).path.read_bytes() == CONTENT


def test_where_no_loop_can_be_had_it_is_an_error_and_nobody_waits(server, monkeypatch):
    def refuse():
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(asyncio, "new_event_loop", refuse)
    monkeypatch.setattr(asyncio.events, "new_event_loop", refuse)
    with pytest.raises(OSError, match="Too many open files"):
        archive_on(server).list()


def test_progress_counts_and_cancels(server, tmp_path, target):
    archive, progress = archive_on(server), _fastpipe.Progress()
    with stored(tmp_path / "d") as snapshot:
        archive.push(snapshot, progress=progress)
        assert progress.bytes == len(CONTENT)
        progress = _fastpipe.Progress()
        archive.pull(7, target, progress=progress)
        assert progress.bytes == len(CONTENT)
    with stored(tmp_path / "e", b"eight", 8) as snapshot:
        progress.cancel()
        with pytest.raises(PipeClosed, match="cancelled"):
            archive.push(snapshot, progress=progress)
    assert [found.index for found in archive.list()] == [7]


def test_rot_in_the_directory_does_not_reach_the_archive(server, tmp_path):
    with stored(tmp_path / "d") as snapshot:
        place = PART_SIZE + 2 * CHUNK_SIZE + 5
        with open(snapshot.path, "r+b") as file:
            file.seek(place)
            file.write(bytes([CONTENT[place] ^ 1]))
        chunk = place // CHUNK_SIZE
        with pytest.raises(SnapshotCorrupt, match=rf"d/{7:016x}\.db: the digest of chunk {chunk}") as raised:
            archive_on(server).push(snapshot)
    assert raised.value.chunk == chunk
    assert "part-00001" not in part_puts(server.requests)
    assert archive_on(server).list() == []


def test_a_snapshot_without_a_manifest_is_not_pushed(server, tmp_path):
    with SnapshotDir(tmp_path / "d") as directory:
        path = directory.save_from(b"bytes", 7).path
        path.with_suffix(".json").unlink()
        refused = pytest.raises(SnapshotCorrupt, match="no manifest")
        with directory.open(7, verify=False) as snapshot, refused:
            archive_on(server).push(snapshot)
    assert server.requests == []


def test_a_blocking_call_may_come_from_a_thread_that_has_a_loop(server):
    async def look():
        return archive_on(server).list()

    assert asyncio.run(look()) == []


@pytest.mark.parametrize("kind", ["file", "memory"])
def test_other_stores(tmp_path, target, kind):
    from obstore.store import MemoryStore

    place = tmp_path / "mounted here" / "a"
    archive = Archive(MemoryStore() if kind == "memory" else place.as_uri(), part_size=PART_SIZE)
    with stored(tmp_path / "d") as snapshot:
        assert archive.push(snapshot).sent == len(CONTENT)
        assert archive.push(snapshot).existed
    with stored(tmp_path / "other", b"other", 7) as snapshot, pytest.raises(SnapshotExists):
        archive.push(snapshot)
    with stored(tmp_path / "next", b"next", 8) as snapshot:
        archive.push(snapshot)
    assert archive.pull(7, target).path.read_bytes() == CONTENT
    assert archive.purge(keep=1) == [7]
    assert [found.index for found in archive.list()] == [8]
    if kind == "file":
        left = sorted(path.name for path in place.rglob("*") if path.is_file())
        assert left == [inventory_name(8), "part-00000"]


def test_a_mistyped_path_is_not_made_by_reading(tmp_path, target):
    archive = Archive((tmp_path / "nothing").as_uri())
    for ask in (archive.list, lambda: archive.pull(None, target), lambda: archive.purge(keep=1)):
        with pytest.raises(FileNotFoundError, match="no archive is here"):
            ask()
    assert not (tmp_path / "nothing").exists()


def test_without_obstore_the_error_names_the_extra():
    with Process("""
        sys.modules["obstore"] = None
        try:
            import snapstore.archive
        except MissingExtra as error:
            say(error)
    """) as process:
        assert process.finish() == ["the archive needs obstore: pip install 'snapstore[s3]'"]


def test_a_cluster_that_lost_all_its_machines_comes_back(server, tmp_path):
    content = {b"key %d" % number: os.urandom(30_000) for number in range(400)}
    machines = tmp_path / "machines"
    machines.mkdir()
    with lmdb.open(str(machines / "kv"), map_size=1 << 28) as env, env.begin(write=True) as txn:
        for key, value in content.items():
            txn.put(key, value)
    at = ("--endpoint", server.endpoint)
    assert (
        snapstore("save", f"lmdb:{machines / 'kv'}", "--dir", machines / "d", "--index", 12, "--term", 2)[0]
        == 0
    )
    assert snapstore("push", machines / "d", "newest", server.url, *at)[0] == 0
    shutil.rmtree(machines)
    assert snapstore("pull", server.url, "--dir", tmp_path / "fresh", *at)[0] == 0
    assert snapstore("restore", tmp_path / "fresh", 12, f"lmdb:{tmp_path / 'kv'}")[0] == 0
    with lmdb.open(str(tmp_path / "kv"), readonly=True) as env, env.begin() as txn:
        assert dict(txn.cursor()) == content
