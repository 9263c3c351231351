"""A directory of snapshots in good times: saved, found, listed, leased, verified, purged."""

from __future__ import annotations

import io
import os
import socket
import ssl
import stat
import threading
from dataclasses import replace

import pytest

from processes import Process
from residue import descriptors, names, nothing_left
from snapstore import _fastpipe
from snapstore.directory import SnapshotDir
from snapstore.errors import (
    DirectoryPoisoned,
    SnapshotCorrupt,
    SnapshotExists,
    SnapshotNotFound,
    SnapshotTruncated,
)
from snapstore.meta import ConfState, SnapshotMeta
from snapstore.stream import SnapshotStream

UNIT = _fastpipe.CHUNK_SIZE_MIN

#: Some chunks of the smallest kind and a bit.
CONTENT = os.urandom(5 * UNIT + 13)
META = SnapshotMeta(0x2A, 3, ConfState((1, 2, 3)), b"engine")


class UnreadSource:
    """A source that must not be touched."""

    def read(self, size):
        pytest.fail("the source was read")


@pytest.fixture(params=[True, False], ids=["nameless", "named"])
def directory(request, tmp_path):
    with SnapshotDir(tmp_path / "snap", chunk_size=UNIT, nameless=request.param) as directory:
        yield directory


def fill(directory, *indexes):
    return [directory.save_from(CONTENT, index) for index in indexes]


def test_a_save_puts_the_bytes_under_the_name_of_the_index(directory):
    saved = directory.save_from(io.BytesIO(CONTENT), META)
    assert saved.path == directory.path / "000000000000002a.db"
    assert saved.path.read_bytes() == CONTENT
    assert (saved.index, saved.size, saved.meta, saved.problem) == (0x2A, len(CONTENT), META, None)
    assert saved.digest == f"crc32c:{_fastpipe.crc32c(CONTENT):08x}"
    assert names(directory.path) == ["000000000000002a.db", "000000000000002a.json"]


def test_a_save_of_an_index_that_exists_keeps_the_first_and_reads_nothing(directory):
    first = directory.save_from(CONTENT, 7)
    with nothing_left(directory.path), pytest.raises(SnapshotExists, match="was kept") as raised:
        directory.save_from(UnreadSource(), 7)
    assert raised.value.path == first.path
    assert first.path.read_bytes() == CONTENT
    assert directory.verify(7).manifest == first.manifest


def test_the_path_of_a_snapshot_is_found_and_that_of_a_missing_one_is_an_error(directory):
    fill(directory, 1)
    assert directory.get_snap_file_path(1) == directory.path / "0000000000000001.db"
    with pytest.raises(SnapshotNotFound, match="no snapshot of index 2 in"):
        directory.get_snap_file_path(2)
    with pytest.raises(SnapshotNotFound):
        directory.open(2)


def test_another_opening_finds_what_was_saved(directory):
    saved = directory.save_from(CONTENT, META)
    with SnapshotDir(directory.path) as again:
        (found,) = again.list()
    assert (found.meta, found.size, found.manifest) == (META, len(CONTENT), saved.manifest)


def test_the_list_is_in_order_of_the_index(directory):
    fill(directory, 2**64 - 1, 10, 9, 0)
    assert [saved.index for saved in directory.list()] == [0, 9, 10, 2**64 - 1]


def test_files_are_for_their_owner_whatever_the_umask(directory):
    for index, mask in enumerate([0o000, 0o022, 0o377]):
        before = os.umask(mask)
        try:
            fill(directory, index)
        finally:
            os.umask(before)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in directory.path.glob("*.db")}
    assert modes == {0o600}


def test_a_directory_is_made_with_its_parents_for_its_owner(tmp_path):
    before = os.umask(0)
    try:
        SnapshotDir(tmp_path / "a" / "b" / "c").close()
    finally:
        os.umask(before)
    for path in ("a", "a/b", "a/b/c"):
        assert stat.S_IMODE((tmp_path / path).stat().st_mode) == 0o700


def from_socket(content, run):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        sender = threading.Thread(target=lambda: (theirs.sendall(content), theirs.shutdown(socket.SHUT_WR)))
        sender.start()
        run(ours)
        sender.join()


def from_tls(content, run):
    """A TLS connection without certificates: its descriptor carries other bytes than its reader."""
    ours, theirs = socket.socketpair()

    def wrap(end, server_side):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server_side else ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers("AECDH-AES256-SHA:@SECLEVEL=0")
        return context.wrap_socket(end, server_side=server_side)

    def send():
        with wrap(theirs, True) as secured:
            secured.sendall(content)
            secured.unwrap()

    sender = threading.Thread(target=send)
    sender.start()
    with wrap(ours, False) as secured:
        run(secured)
        secured.unwrap()
    sender.join()


def from_pipe(content, run):
    read_fd, write_fd = os.pipe()

    def feed():
        with open(write_fd, "wb") as writer:
            writer.write(content)

    feeder = threading.Thread(target=feed)
    feeder.start()
    try:
        run(read_fd)
    finally:
        os.close(read_fd)
        feeder.join()


def from_ring(content, run):
    reader, writer = _fastpipe.pipe()
    with reader, writer:
        feeder = threading.Thread(target=lambda: (writer.write(content), writer.close()))
        feeder.start()
        run(reader)
        feeder.join()


class Imaged:
    def __init__(self, path):
        self.size = path.stat().st_size
        self._image = _fastpipe.Image(os.open(path, os.O_RDONLY), self.size)
        self.close = self._image.close

    def image(self):
        return self._image


def from_stream(path, run):
    with SnapshotStream(META, Imaged(path)) as stream:
        run(stream)


def from_image(path, run):
    with _fastpipe.Image(os.open(path, os.O_RDONLY), path.stat().st_size) as image:
        run(image)


def from_file(path, run, **how):
    with open(path, **how) as file:
        run(file)


SOURCES = {
    "bytes": lambda path, run: run(path.read_bytes()),
    "bytearray": lambda path, run: run(bytearray(path.read_bytes())),
    "memoryview": lambda path, run: run(memoryview(path.read_bytes())),
    "BytesIO": lambda path, run: run(io.BytesIO(path.read_bytes())),
    "file": lambda path, run: from_file(path, run, mode="rb"),
    "raw file": lambda path, run: from_file(path, run, mode="rb", buffering=0),
    "file for both": lambda path, run: from_file(path, run, mode="r+b"),
    "descriptor": lambda path, run: from_file(path, lambda file: run(file.fileno()), mode="rb"),
    "socket": lambda path, run: from_socket(path.read_bytes(), run),
    "socket file": lambda path, run: from_socket(path.read_bytes(), lambda end: run(end.makefile("rb"))),
    "TLS socket": lambda path, run: from_tls(path.read_bytes(), run),
    "pipe": lambda path, run: from_pipe(path.read_bytes(), run),
    "ring": lambda path, run: from_ring(path.read_bytes(), run),
    "image": from_image,
    "stream": from_stream,
}


@pytest.mark.parametrize("size", [0, UNIT + 1, 3_000_001])
@pytest.mark.parametrize("kind", SOURCES)
def test_every_kind_of_source_saves_the_same_bytes(kind, size, tmp_path):
    content = (os.urandom(1 << 20) * 3)[:size]
    (tmp_path / "source").write_bytes(content)
    with SnapshotDir(tmp_path / "snap") as directory:
        SOURCES[kind](tmp_path / "source", lambda source: directory.save_from(source, 1))
        saved = directory.verify(1)
    assert saved.path.read_bytes() == content
    assert saved.digest == f"crc32c:{_fastpipe.crc32c(content):08x}"


@pytest.mark.parametrize("read_before", [1, 10, 5000, 70_000])
@pytest.mark.parametrize("buffering", [0, -1])
def test_a_file_that_was_read_from_is_saved_from_where_it_stands(read_before, buffering, tmp_path):
    content = os.urandom(100_000)
    (tmp_path / "source").write_bytes(content)
    with SnapshotDir(tmp_path / "snap") as directory, open(tmp_path / "source", "rb", buffering) as file:
        assert len(file.read(read_before)) == read_before
        saved = directory.save_from(file, 1)
        assert saved.path.read_bytes() == content[read_before:]
        assert file.read() == b""


def test_a_socket_is_read_for_the_declared_size_and_not_beyond(directory):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(CONTENT[:5000] + b"next")
        assert directory.save_from(ours, 1, size=5000).path.read_bytes() == CONTENT[:5000]
        assert ours.recv(10) == b"next"


def test_an_expected_manifest_is_met_or_nothing_is_saved(directory):
    expected = directory.save_from(CONTENT, 1).manifest
    assert directory.save_from(CONTENT, 2, expected=expected).manifest.digest == expected.digest
    flipped = bytearray(CONTENT)
    flipped[2 * UNIT] ^= 1
    with nothing_left(directory.path):
        with pytest.raises(SnapshotCorrupt) as raised:
            directory.save_from(flipped, 3, expected=expected)
        assert raised.value.chunk == 2
        with pytest.raises(SnapshotTruncated):
            directory.save_from(io.BytesIO(CONTENT[: 5 * UNIT]), 3, expected=expected)


def test_progress_counts_the_bytes(directory):
    progress = _fastpipe.Progress()
    directory.save_from(CONTENT, 1, progress=progress)
    assert progress.bytes == len(CONTENT)


def test_purge_keeps_the_newest_and_takes_manifests_along(directory):
    fill(directory, 1, 2, 3, 4)
    assert directory.purge(keep=4) == []
    assert directory.purge(keep=9) == []
    assert directory.purge(keep=2) == [1, 2]
    assert names(directory.path) == [f"{index:016x}.{kind}" for index in (3, 4) for kind in ("db", "json")]


@pytest.mark.parametrize("keep", [0, -1, True, 1.0, None, "1"])
def test_purge_never_takes_the_last_one(directory, keep):
    fill(directory, 1)
    with pytest.raises(ValueError, match="keep must be 1 or more"):
        directory.purge(keep=keep)
    assert [saved.index for saved in directory.list()] == [1]


def test_what_nobody_can_restore_pushes_no_good_snapshot_out(directory):
    fill(directory, 1, 2)
    (directory.path / f"{3:016x}.db").touch()
    (directory.path / f"{4:016x}.db").mkdir()
    (directory.path / f"{5:016x}.db").symlink_to(directory.path / f"{1:016x}.db")
    assert directory.purge(keep=2) == []
    assert directory.purge(keep=1) == [1]
    assert directory.verify(2).size == len(CONTENT)


def test_a_leased_snapshot_outlives_a_purge_and_goes_with_the_next(directory):
    fill(directory, 1, 2, 3)
    with directory.open(1) as stored, directory.open(1, verify=False) as again:
        assert directory.purge(keep=1) == [2]
        again.close()
        assert directory.purge(keep=1) == []
        sink = io.BytesIO()
        assert stored.write_to(sink) == len(CONTENT)
    assert sink.getvalue() == CONTENT
    assert directory.purge(keep=1) == [1]


def test_a_lease_of_another_process_counts_until_that_dies(directory):
    fill(directory, 1, 2)
    script = """
        stored = SnapshotDir(sys.argv[1]).open(1)
        say("leased")
        sys.stdin.read()
    """
    with Process(script, directory.path) as holder:
        assert holder.hear() == "leased"
        assert directory.purge(keep=1) == []
        holder.kill()
        holder.wait()
    assert directory.purge(keep=1) == [1]


def test_a_stored_snapshot_is_sent_on_as_it_is(directory):
    fill(directory, 1)
    stored = directory.open(1)
    assert "leased" in repr(stored)
    with SnapshotStream(stored.meta, stored) as stream:
        assert directory.save_from(stream, 2).manifest.digest == stored.saved.manifest.digest
    assert "closed" in repr(stored)


def test_closing_gives_every_descriptor_back_and_may_come_twice(tmp_path):
    before = descriptors()
    directory = SnapshotDir(tmp_path)
    fill(directory, 1)
    stored = directory.open(1)
    directory.close()
    directory.close()
    assert stored.image().readinto(bytearray(10), 0) == 10
    stored.close()
    stored.close()
    assert descriptors() == before
    for call in (
        directory.list,
        directory.remove_orphans,
        lambda: fill(directory, 2),
        lambda: directory.open(1),
    ):
        with pytest.raises(ValueError, match="was closed"):
            call()


def test_a_snapshot_of_another_length_than_its_manifest_is_not_sound_and_pushes_no_good_one_out(directory):
    first, second, _ = fill(directory, 1, 2, 3)
    os.truncate(second.path, 0)
    os.truncate(directory.get_snap_file_path(3), len(CONTENT) + 1)
    assert [saved.problem is None for saved in directory.list()] == [True, False, False]
    assert directory.newest() == replace(first, sync_s=0.0)
    assert directory.purge(keep=1) == []
    directory.verify(1)


def test_a_lease_ends_with_its_close_although_a_forked_child_lives_on(directory):
    fill(directory, 1, 2)
    out, into = os.pipe()
    with directory.open(1):
        child = os.fork()
        if child == 0:
            os.close(into)
            os.read(out, 1)  # Until the parent has closed its end.
            os._exit(0)
        os.close(out)
        assert directory.purge(keep=1) == []
    assert directory.purge(keep=1) == [1]
    os.close(into)
    assert os.waitpid(child, 0)[1] == 0


def test_a_save_under_way_fails_when_another_ones_last_fsync_did(directory):
    """The kernel tells of a failed fsync once: the saver that hears nothing must not call itself saved."""

    class FailsMeanwhile(io.BytesIO):
        def readinto(self, buffer):
            directory._directory_sync.fail(5)
            return super().readinto(buffer)

    with pytest.raises(DirectoryPoisoned, match="open a new SnapshotDir"):
        directory.save_from(FailsMeanwhile(CONTENT), 1)
    assert directory.list() == []
