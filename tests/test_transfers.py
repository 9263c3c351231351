"""Whole transfers between descriptors, memory, images and the ring: every pair gives the same bytes."""

from __future__ import annotations

import io
import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipes_at_work import read_all
from snapstore import _fastpipe
from snapstore.errors import PipeClosed, SnapshotCorrupt, SnapshotTooLarge, SnapshotTruncated

SIZE = 4096
WAIT_S = 20.0
DATA = os.urandom(20 * SIZE + 11)


@pytest.fixture
def background():
    with ThreadPoolExecutor() as pool:
        yield pool.submit


@pytest.fixture
def sockets():
    near, far = socket.socketpair()
    with near, far:
        yield near, far


@pytest.fixture
def file(tmp_path):
    (tmp_path / "data").write_bytes(DATA)
    with (tmp_path / "data").open("r+b", buffering=0) as file:
        yield file


@pytest.fixture
def target(tmp_path):
    with (tmp_path / "target").open("w+b", buffering=0) as target:
        yield target


def content(file):
    return os.pread(file.fileno(), 2 * len(DATA), 0)


def full_pipe():
    return _fastpipe.pipe(chunk_size=SIZE, chunks=64)


def holding(data):
    reader, writer = full_pipe()
    with writer:
        writer.write(data)
    return reader


class TestCopyFromFd:
    @pytest.mark.parametrize("offset", [0, 1, SIZE, len(DATA) - 1, len(DATA), len(DATA) + 5])
    @pytest.mark.parametrize("length", [None, 0, 1, SIZE + 1, 2 * len(DATA)])
    def test_a_part_of_a_file_leaves_its_position(self, file, offset, length):
        reader, writer = full_pipe()
        expected = DATA[offset:] if length is None else DATA[offset : offset + length]
        with writer:
            assert writer.copy_from_fd(file.fileno(), offset, length) == len(expected)
        assert read_all(reader) == expected
        assert file.tell() == 0

    def test_without_an_offset_it_reads_from_where_the_file_stands(self, file):
        reader, writer = full_pipe()
        file.seek(10)
        with writer:
            assert writer.copy_from_fd(file.fileno(), length=20) == 20
            assert file.tell() == 30
            writer.write(b"|")
            assert writer.copy_from_fd(file.fileno()) == len(DATA) - 30
        assert read_all(reader) == DATA[10:30] + b"|" + DATA[30:]

    def test_sockets_and_pipes_are_read_to_their_end(self, sockets, background):
        near, far = sockets
        out, into = os.pipe()
        background(lambda: (far.sendall(DATA), far.shutdown(socket.SHUT_WR)))
        background(lambda: (os.write(into, DATA[:SIZE]), os.write(into, DATA[:SIZE]), os.close(into)))
        reader, writer = _fastpipe.pipe(chunk_size=SIZE, chunks=64)
        try:
            with writer:
                assert writer.copy_from_fd(near.fileno()) == len(DATA)
                assert writer.copy_from_fd(out) == 2 * SIZE
        finally:
            os.close(out)
        assert read_all(reader) == DATA + 2 * DATA[:SIZE]

    def test_a_length_leaves_the_rest_in_the_socket(self, sockets):
        near, far = sockets
        far.sendall(b"bodynext")
        reader, writer = full_pipe()
        with writer:
            assert writer.copy_from_fd(near.fileno(), length=4) == 4
        assert near.recv(10) == b"next"
        assert read_all(reader) == b"body"

    def test_what_cannot_be_read_is_an_oserror_and_the_pipe_goes_on(self, tmp_path, sockets):
        reader, writer = full_pipe()
        writer.write(b"before")
        directory = os.open(tmp_path, os.O_RDONLY)
        out, into = os.pipe()
        try:
            with pytest.raises(IsADirectoryError):
                writer.copy_from_fd(directory)
            with pytest.raises(OSError, match="Bad file descriptor"):
                writer.copy_from_fd(into)
            with pytest.raises(OSError, match="Illegal seek"):
                writer.copy_from_fd(out, 5)
        finally:
            for fd in (directory, out, into):
                os.close(fd)
        with pytest.raises(ValueError, match="offset needs a source"):
            writer.copy_from_fd(sockets[0].fileno(), 5)
        with pytest.raises(ValueError, match="offset must be 0 to"):
            writer.copy_from_fd(0, -1)
        writer.write(b"after")
        writer.close()
        assert read_all(reader) == b"beforeafter"


class TestCopyToFd:
    def test_a_file_a_socket_and_a_pipe_get_all_of_it(self, sockets, target, background):
        assert holding(DATA).copy_to_fd(target.fileno()) == len(DATA)
        assert content(target) == DATA
        near, far = sockets
        sent = background(holding(DATA).copy_to_fd, near.fileno())
        assert far.recv(len(DATA), socket.MSG_WAITALL) == DATA
        assert sent.result(WAIT_S) == len(DATA)
        out, into = os.pipe()
        sent = background(lambda: (holding(DATA).copy_to_fd(into), os.close(into)))
        with open(out, "rb") as end:
            assert end.read() == DATA
        assert sent.result(WAIT_S)[0] == len(DATA)

    def test_a_reader_that_went_away_is_a_broken_pipe(self, sockets):
        out, into = os.pipe()
        os.close(out)
        with pytest.raises(BrokenPipeError):
            holding(DATA).copy_to_fd(into)
        os.close(into)
        sockets[1].close()
        with pytest.raises(BrokenPipeError):
            holding(DATA).copy_to_fd(sockets[0].fileno())

    def test_a_reader_that_goes_away_meanwhile_is_a_broken_pipe(self, background):
        out, into = os.pipe()
        sent = background(holding(DATA * 2).copy_to_fd, into)
        assert os.read(out, SIZE) == DATA[:SIZE]  # The transfer is under way, and more than the pipe takes.
        os.close(out)
        with pytest.raises(BrokenPipeError):
            sent.result(WAIT_S)
        os.close(into)

    def test_the_writers_reason_ends_it(self, target):
        reader, writer = full_pipe()
        writer.close(RuntimeError("the store is broken"))
        with pytest.raises(RuntimeError, match="the store is broken"):
            reader.copy_to_fd(target.fileno())


class TestSend:
    @pytest.mark.parametrize("offset", [0, 1, SIZE, len(DATA), len(DATA) + 1])
    @pytest.mark.parametrize("length", [None, 0, 5, 2 * len(DATA)])
    def test_parts_of_memory_files_and_images(self, file, target, offset, length):
        expected = DATA[offset:] if length is None else DATA[offset : offset + length]
        with _fastpipe.Image(file.fileno(), len(DATA), close_fd=False) as image:
            for source in (DATA, file.fileno(), image):
                file.seek(0)
                target.truncate(0)
                target.seek(0)
                assert _fastpipe.send(source, target.fileno(), offset=offset, length=length) == len(expected)
                assert content(target) == expected

    def test_a_python_reader_is_asked_to_its_end(self, target):
        assert _fastpipe.send(io.BytesIO(DATA), target.fileno()) == len(DATA)
        assert content(target) == DATA

    def test_parts_of_what_cannot_be_read_at_random_are_refused(self, target):
        with pytest.raises(ValueError, match="offset needs a source"):
            _fastpipe.send(io.BytesIO(DATA), target.fileno(), offset=1)
        with pytest.raises(ValueError, match="a pipe is sent to its end"):
            _fastpipe.send(holding(DATA), target.fileno(), length=1)
        with pytest.raises(TypeError, match="cannot read a snapshot from object"):
            _fastpipe.send(object(), target.fileno())

    def test_a_closed_reader_is_refused(self, target):
        reader = holding(DATA)
        reader.close()
        with pytest.raises(PipeClosed):
            _fastpipe.send(reader, target.fileno())


class TestSendFrames:
    @pytest.mark.parametrize("chunk_size", [SIZE, 256 * 1024])  # The second is what is moved at a time.
    @pytest.mark.parametrize("known", [True, False])
    def test_every_source_gives_the_same_frames(self, file, target, chunk_size, known):
        data = os.urandom(3 * 256 * 1024 + 5)
        file.write(data)
        frames = set()
        with _fastpipe.Image(file.fileno(), len(data), close_fd=False) as image:
            reader, writer = _fastpipe.pipe(chunk_size=1024 * 1024)
            writer.write(data)
            writer.close()
            for source in (data, file.fileno(), image, io.BytesIO(data), reader):
                file.seek(0)
                target.truncate(0)
                target.seek(0)
                size = len(data) if known else None
                copied = _fastpipe.send_frames(source, target.fileno(), size=size, chunk_size=chunk_size)
                assert copied.size == len(data)
                assert copied.digest == _fastpipe.crc32c(data)
                frames.add(Path(f"/proc/self/fd/{target.fileno()}").read_bytes())
        assert len(frames) == 1

    def test_less_or_more_than_declared_is_refused(self, target, file):
        with _fastpipe.Image(file.fileno(), len(DATA), close_fd=False) as image:
            for source in (lambda: DATA, lambda: io.BytesIO(DATA), lambda: holding(DATA), lambda: image):
                for size, error in ((len(DATA) + 1, SnapshotTruncated), (len(DATA) - 1, SnapshotTooLarge)):
                    with pytest.raises(error):
                        _fastpipe.send_frames(source(), target.fileno(), size=size, chunk_size=SIZE)


CHILD = """
import os, sys
from snapstore import _fastpipe
reader, writer = _fastpipe.pipe(chunk_size=4096, chunks=64)
with writer:
    writer.copy_from_fd(0)
reader.copy_to_fd(1)
"""


def test_another_process_takes_the_bytes_and_gives_them_back(background):
    folder = Path(_fastpipe.__file__).parent.parent
    with subprocess.Popen(
        [sys.executable, "-c", CHILD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(folder)},
    ) as child:
        sent = background(lambda: (holding(DATA).copy_to_fd(child.stdin.fileno()), child.stdin.close()))
        reader, writer = full_pipe()
        with writer:
            assert writer.copy_from_fd(child.stdout.fileno()) == len(DATA)
        assert read_all(reader) == DATA
        assert sent.result(WAIT_S)[0] == len(DATA)
    assert child.returncode == 0


# Sent bare, and proved on the way.


@pytest.mark.parametrize("size", [1, SIZE, SIZE + 1, 500 * SIZE + 13, 512 * SIZE])
@pytest.mark.parametrize("place", [0, -1])
def test_what_ends_a_chunk_goes_out_only_where_it_is_right(tmp_path, size, place):
    content, unit = bytearray(os.urandom(size)), 128 * SIZE
    digests = _fastpipe.digest(content, chunk_size=unit).chunk_digests
    with (tmp_path / "sent").open("w+b", buffering=0) as target:
        assert _fastpipe.send(content, target.fileno(), expected=digests, chunk_size=unit) == size
        target.seek(0)
        assert target.read() == content
        sent_before = target.tell()
        content[place] ^= 1
        with pytest.raises(SnapshotCorrupt, match="the digest of chunk") as raised:
            _fastpipe.send(content, target.fileno(), expected=digests, chunk_size=unit)
        assert raised.value.chunk == range(size)[place] // unit
        assert target.tell() - sent_before < min(size, (raised.value.chunk + 1) * unit)


def test_digests_of_another_size_are_refused(tmp_path):
    digests = _fastpipe.digest(bytes(3 * SIZE), chunk_size=SIZE).chunk_digests
    with (tmp_path / "sent").open("wb") as target:
        for size in (0, 2 * SIZE, 3 * SIZE + 1):
            with pytest.raises(ValueError, match="3 digests"):
                _fastpipe.send(bytes(size), target.fileno(), expected=digests, chunk_size=SIZE)
        with pytest.raises(ValueError, match="3 digests"):
            _fastpipe.send(io.BytesIO(bytes(3 * SIZE)), target.fileno(), expected=digests, chunk_size=SIZE)
        assert target.tell() == 0
