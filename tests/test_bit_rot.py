"""Snapshots that rot: every flipped bit is found, its chunk named, and an older snapshot offered."""

from __future__ import annotations

import errno
import mmap
import os
import tempfile

import pytest

from nodes import CONTENT, META, UNIT, Follower, push, written
from residue import names, nothing_left
from rotten import fail, rot
from snapstore import _fastpipe
from snapstore.broken import BROKEN_MAX, broken_manifest_name
from snapstore.directory import SnapshotDir
from snapstore.errors import SnapshotCorrupt, SnapshotNotFound, SnapshotTruncated
from snapstore.manifest import MANIFEST_SIZE_MAX
from snapstore.meta import SnapshotMeta
from snapstore.transport.http import SnapshotClient


@pytest.fixture
def directory(tmp_path):
    with SnapshotDir(tmp_path / "snap", chunk_size=UNIT) as directory:
        yield directory


@pytest.fixture
def quick_directory(tmp_path):
    """In memory where that can be, for the thousands of fsyncs of a sweep over all bits."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else tmp_path
    with (
        tempfile.TemporaryDirectory(prefix="snapstore-", dir=memory) as path,
        SnapshotDir(path, chunk_size=UNIT) as directory,
    ):
        yield directory


def test_every_flipped_bit_of_the_bytes_names_its_chunk(directory):
    content = CONTENT[: UNIT + 300]
    path = directory.save_from(content, 1).path
    with (
        directory.open(1) as stored,
        open(path, "r+b") as file,
        mmap.mmap(file.fileno(), len(content)) as view,
    ):
        for bit in range(8 * len(content)):
            view[bit // 8] ^= 1 << bit % 8
            with pytest.raises(SnapshotCorrupt, match=str(path)) as raised:
                stored.verify()
            assert raised.value.chunk == bit // 8 // UNIT
            view[bit // 8] ^= 1 << bit % 8
        stored.verify()


@pytest.mark.parametrize("suffix", [".db", ".json"])
def test_every_flipped_bit_sets_the_snapshot_aside_and_the_older_one_is_offered(suffix, quick_directory):
    directory = quick_directory
    directory.save_from(CONTENT, 1)
    saved = directory.save_from(b"tiny", 2)
    sound = {kind: saved.path.with_suffix(kind).read_bytes() for kind in (".db", ".json")}
    for bit in range(8 * len(sound[suffix])):
        for kind, content in sound.items():
            saved.path.with_suffix(kind).write_bytes(content)
        rot(saved.path.with_suffix(suffix), bit)
        rotten = saved.path.with_suffix(suffix).read_bytes()
        with directory.open_newest() as stored:
            assert stored.meta.index == 1
        assert [found.index for found in directory.list()] == [1]
        aside = directory.broken()[-1]
        assert (aside.index, aside.number, aside.size) == (2, bit + 1, 4)
        kept = {".db": aside.path, ".json": directory.path / broken_manifest_name(2, bit + 1)}
        assert kept[suffix].read_bytes() == rotten
    assert len(directory.broken()) == BROKEN_MAX
    assert len(names(directory.path)) == 2 + 2 * BROKEN_MAX


def test_the_error_says_what_is_broken_and_where_it_is_now(directory):
    path = directory.save_from(CONTENT, 7).path
    rot(path, 8 * UNIT)
    with pytest.raises(SnapshotCorrupt) as raised:
        directory.open(7)
    words = str(raised.value)
    assert words.startswith(f"{path}: the digest of chunk 1")
    assert words.endswith(f"; it was set aside as {7:016x}.broken-1")
    assert raised.value.chunk == 1
    with pytest.raises(SnapshotNotFound):
        directory.open(7)
    assert names(directory.path) == [f"{7:016x}.broken-1", f"{7:016x}.broken-1.json"]


@pytest.mark.parametrize("size", [0, 1, UNIT, len(CONTENT) - 1])
def test_a_truncated_snapshot_is_called_so(size, directory):
    os.truncate(directory.save_from(CONTENT, 1).path, size)
    with pytest.raises(SnapshotTruncated, match="set aside") as raised:
        directory.open(1)
    assert raised.value.chunk == size // UNIT
    assert [found.size for found in directory.broken()] == [size]


def test_an_extended_snapshot_is_corrupt(directory):
    with open(directory.save_from(CONTENT, 1).path, "ab") as file:
        file.write(b"\0")
    with pytest.raises(SnapshotCorrupt, match=f"has {len(CONTENT) + 1} bytes, its manifest {len(CONTENT)}"):
        directory.verify(1)


SPOILED = {
    "has no manifest": lambda manifest: manifest.unlink(),
    "manifest is broken": lambda manifest: manifest.write_bytes(b"{}"),
    "manifest is that of index 2": lambda manifest: manifest.write_bytes(
        manifest.with_name(f"{2:016x}.json").read_bytes()
    ),
    "not a regular file": lambda manifest: (manifest.unlink(), manifest.mkdir()),
    "symbolic links": lambda manifest: (manifest.unlink(), manifest.symlink_to("nowhere")),
    "a hard link": lambda manifest: os.link(manifest, manifest.parent.parent / "outside"),
    "longer than": lambda manifest: os.truncate(manifest, MANIFEST_SIZE_MAX + 1),
}
STRANGERS = {"not a regular file", "symbolic links", "a hard link"}


@pytest.mark.parametrize("problem", SPOILED)
def test_a_manifest_that_is_missing_foreign_or_of_another_index_is_a_problem_with_a_name(problem, directory):
    directory.save_from(CONTENT, 2)
    path = directory.save_from(CONTENT, 1).path
    SPOILED[problem](path.with_suffix(".json"))
    first, second = directory.list()
    assert problem in first.problem
    assert (first.manifest, first.meta, first.digest) == (None, SnapshotMeta(1), None)
    assert second.problem is None
    with nothing_left(directory.path), directory.open(1, verify=False) as stored:
        assert stored.size == len(CONTENT)
    with pytest.raises(SnapshotCorrupt, match=problem):
        directory.verify(1)
    assert not path.exists()
    assert os.path.lexists(path.with_suffix(".json")) == (problem in STRANGERS)


def test_readers_that_do_not_verify_set_nothing_aside(directory):
    rot(directory.save_from(CONTENT, 1).path)
    directory.save_from(CONTENT, 2).path.with_suffix(".json").write_bytes(b"{}")
    with nothing_left(directory.path):
        with directory.open(1, verify=False) as stored, pytest.raises(SnapshotCorrupt, match="chunk 0"):
            stored.verify()
        with directory.open_newest(verify=False) as stored:
            assert stored.meta.index == 1


@pytest.mark.parametrize("what", ["bytes", "manifest"])
def test_a_disk_that_cannot_be_read_now_speaks_against_no_snapshot(what, directory, monkeypatch):
    directory.save_from(CONTENT, 1)
    directory.save_from(CONTENT, 2)
    with monkeypatch.context() as patch:
        if what == "bytes":
            patch.setattr(_fastpipe, "digest", lambda *given, **options: fail(errno.EIO))
        else:
            patch.setattr("snapstore.disk.read_small", lambda *given, **options: fail(errno.EIO))
        calls = [lambda: directory.open(2), directory.open_newest, lambda: directory.purge(keep=1)]
        if what == "manifest":  # It is listed with its problem, so that a purge counts nothing.
            calls[2] = lambda: directory.set_aside(2, "a better one is offered")
            assert directory.purge(keep=1) == []
        with nothing_left(directory.path):
            for call in calls:
                with pytest.raises(OSError, match=os.strerror(errno.EIO)):
                    call()
    assert directory.verify(2).index == 2


def test_where_nothing_sound_is_left_nothing_is_offered(directory):
    with pytest.raises(SnapshotNotFound, match="no sound snapshot in"):
        directory.open_newest()
    (directory.path / f"{9:016x}.db").mkdir()
    for index in (1, 2):
        rot(directory.save_from(CONTENT, index).path)
    with pytest.raises(SnapshotNotFound, match="no sound snapshot in"):
        directory.open_newest()
    assert [aside.index for aside in directory.broken()] == [2, 1]


def test_a_server_has_the_older_one_then_and_takes_the_broken_one_anew(nothing_lost, tmp_path):
    with Follower(tmp_path / "follower") as follower, SnapshotDir(tmp_path / "target") as target:
        follower.directory.save_from(CONTENT, 5, chunk_size=UNIT)
        push(follower, written())
        rot(follower.directory.get_snap_file_path(META.index), 8 * UNIT)
        with follower.directory.open_newest() as stored:
            assert stored.meta.index == 5
        assert [found["index"] for found in SnapshotClient().list(follower.url)] == [5]
        assert SnapshotClient().fetch(follower.url, 5, target).path.read_bytes() == CONTENT
        assert not push(follower, written()).existed
        assert follower.directory.verify(META.index).meta == META
