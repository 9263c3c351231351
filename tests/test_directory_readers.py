"""Sources that end early, never end, lie, raise, or reach back into the directory while they are read."""

from __future__ import annotations

import array
import io
import os
import socket
import threading
import traceback

import pytest

from residue import nothing_left
from snapstore import _fastpipe
from snapstore.directory import SnapshotDir
from snapstore.errors import (
    PipeClosed,
    SnapshotBusy,
    SnapshotExists,
    SnapshotTooLarge,
    SnapshotTruncated,
)
from snapstore.manifest import MANIFEST_CHUNKS_MAX

UNIT = _fastpipe.CHUNK_SIZE_MIN

#: Enough that a second thread writes, in the chunks of these tests.
CONTENT = os.urandom(300 * UNIT + 1)

#: How long a source may be silent where the test waits for just that.
SILENCE_S = 0.02

WAIT_S = 20.0


@pytest.fixture
def directory(tmp_path):
    with SnapshotDir(tmp_path / "snap", chunk_size=UNIT) as directory:
        yield directory


class Reader:
    """Gives what `answer(size)` gives, after `before` bytes of good content."""

    def __init__(self, answer, before=0):
        self.good, self.answer = io.BytesIO(CONTENT[:before]), answer

    def read(self, size):
        return self.good.read(size) or self.answer(size)


class Filler(io.RawIOBase):
    """Its `readinto` fills the buffer and returns `count(room)`."""

    def __init__(self, count):
        super().__init__()
        self.count = count

    def readinto(self, buffer):
        return self.count(len(buffer))


def throw(error):
    raise error


@pytest.mark.parametrize("size", [0, 1, UNIT - 1, UNIT, UNIT + 1, 256 * UNIT - 1, 256 * UNIT, 256 * UNIT + 1])
@pytest.mark.parametrize("direct", [True, False])
def test_sizes_around_the_bounds_of_chunks_are_saved_right(size, direct, tmp_path):
    with SnapshotDir(tmp_path, chunk_size=UNIT, direct=direct) as directory:
        saved = directory.save_from(io.BytesIO(CONTENT[:size]), 1)
        assert saved.path.read_bytes() == CONTENT[:size]
        assert directory.verify(1).size == saved.size == size
        assert len(saved.manifest.chunk_digests) == -(-size // UNIT)


@pytest.mark.parametrize("piece", [1, 3, UNIT - 1])
def test_a_reader_may_give_less_than_asked(piece, directory):
    content = io.BytesIO(CONTENT[: 3 * UNIT + 7])
    saved = directory.save_from(Reader(lambda size: content.read(min(size, piece))), 1)
    assert saved.path.read_bytes() == CONTENT[: 3 * UNIT + 7]


def test_chunks_may_be_as_large_as_the_largest(tmp_path):
    with SnapshotDir(tmp_path, chunk_size=_fastpipe.CHUNK_SIZE_MAX) as directory:
        assert directory.save_from(io.BytesIO(CONTENT), 1).path.read_bytes() == CONTENT


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, lambda piece: array.array("B", piece)])
def test_a_reader_may_give_any_bytes(kind, directory):
    content = io.BytesIO(CONTENT)
    assert directory.save_from(Reader(lambda size: kind(content.read(size))), 1).path.read_bytes() == CONTENT


def test_a_reader_may_keep_the_buffer_it_filled(directory):
    kept = []

    class Keeper(io.BytesIO):
        def readinto(self, buffer):
            kept.append(memoryview(buffer))
            return super().readinto(buffer)

    saved = directory.save_from(Keeper(CONTENT), 1)
    for view in kept:
        view[:] = bytes(len(view))
    assert saved.path.read_bytes() == CONTENT


LIES = {
    "None": (lambda size: None, BlockingIOError, "nothing now"),
    "text": (lambda size: "text", TypeError, "returned str where bytes were due"),
    "a number": (lambda size: 7, TypeError, "returned int where bytes were due"),
    "a list": (lambda size: [1], TypeError, "returned list where bytes were due"),
    "too much": (lambda size: bytes(size + 1), ValueError, "bytes where .* were asked for"),
    "far too much": (lambda size: bytes(size + (64 << 20)), ValueError, "bytes where .* were asked for"),
    "wide items": (lambda size: array.array("Q", range(size)), ValueError, "bytes where .* were asked for"),
    "gaps": (lambda size: memoryview(bytes(size))[::2], TypeError, "view with gaps"),
}


@pytest.mark.parametrize(
    "before", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2 * UNIT)), len(CONTENT)]
)
@pytest.mark.parametrize("lie", LIES)
def test_an_answer_that_is_no_bytes_is_named_and_nothing_saved(lie, before, directory):
    answer, error, message = LIES[lie]
    with nothing_left(directory.path), pytest.raises(error, match=message):
        directory.save_from(Reader(answer, before), 1)


@pytest.mark.parametrize("count", [-1, 10**9, 1.0, True, "1"])
def test_a_count_that_cannot_be_is_named_and_nothing_saved(count, directory):
    with nothing_left(directory.path), pytest.raises(ValueError, match="readinto returned"):
        directory.save_from(Filler(lambda room: count), 1)


def test_a_filler_that_has_nothing_now_is_refused(directory):
    with nothing_left(directory.path), pytest.raises(BlockingIOError, match="one that waits"):
        directory.save_from(Filler(lambda room: None), 1)


class Own(Exception):
    """An error of the reader's own making."""


@pytest.mark.parametrize(
    "before", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in (UNIT, 200 * UNIT)), len(CONTENT)]
)
@pytest.mark.parametrize("kind", [Own, OSError, KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError])
def test_what_a_reader_raises_comes_out_as_it_is(kind, before, directory):
    error = kind("mine")
    with nothing_left(directory.path):
        with pytest.raises(kind) as raised:
            directory.save_from(Reader(lambda size: throw(error), before), 1)
        assert raised.value is error
        assert "throw" in {frame.name for frame in traceback.extract_tb(error.__traceback__)}
    assert directory.save_from(CONTENT, 1).size == len(CONTENT)


@pytest.mark.parametrize("declared", [0, 1, UNIT, len(CONTENT) - 1])
def test_a_source_with_more_than_declared_is_refused(declared, directory):
    read_fd, write_fd = os.pipe()
    with open(read_fd, "rb") as reader, open(write_fd, "wb") as writer:
        feeder = threading.Thread(target=lambda: (writer.write(CONTENT[: declared + 1]), writer.flush()))
        feeder.start()
        sources = [CONTENT, bytearray(CONTENT), memoryview(CONTENT), io.BytesIO(CONTENT), reader.fileno()]
        with nothing_left(directory.path):
            for source in sources:
                with pytest.raises(SnapshotTooLarge):
                    directory.save_from(source, 1, size=declared)
                if isinstance(source, int):
                    feeder.join()
        feeder.join()


@pytest.mark.parametrize("declared", [len(CONTENT) + 1, 2 * len(CONTENT)])
def test_a_source_with_less_than_declared_is_truncated(declared, directory):
    with nothing_left(directory.path):
        for source in (CONTENT, io.BytesIO(CONTENT), Reader(lambda size: b"", len(CONTENT))):
            with pytest.raises(SnapshotTruncated):
                directory.save_from(source, 1, size=declared)


def test_more_chunks_than_a_manifest_can_name_are_refused_unread(directory):
    with nothing_left(directory.path), pytest.raises(SnapshotTooLarge):
        directory.save_from(Reader(bytes), 1, size=(MANIFEST_CHUNKS_MAX + 1) * UNIT)


@pytest.mark.parametrize("size_max", [0, 1, UNIT, len(CONTENT) - 1])
def test_a_source_that_never_ends_meets_the_limit(size_max, directory):
    with nothing_left(directory.path):
        for source in (Reader(bytes), CONTENT):
            with pytest.raises(SnapshotTooLarge):
                directory.save_from(source, 1, size_max=size_max)
    with (
        SnapshotDir(directory.path, size_max=size_max) as bounded,
        nothing_left(directory.path),
        pytest.raises(SnapshotTooLarge),
    ):
        bounded.save_from(Reader(bytes), 1)


@pytest.mark.parametrize("source", [None, True, "text", io.StringIO("text"), object(), 1.5, {}], ids=repr)
def test_what_cannot_be_read_is_refused_by_its_type(source, directory):
    with nothing_left(directory.path), pytest.raises(TypeError, match="cannot read a snapshot from"):
        directory.save_from(source, 1)


def test_views_with_gaps_closed_files_and_dead_descriptors_are_refused(directory, tmp_path):
    closed = open(tmp_path / "closed", "wb+")  # noqa: SIM115 - that it is closed is the point.
    closed.close()
    with nothing_left(directory.path):
        for source in (memoryview(CONTENT)[::2], closed, -1, 10**6):
            with pytest.raises((BufferError, ValueError, OSError)):
                directory.save_from(source, 1)


def test_the_descriptor_of_a_directory_is_no_source(directory):
    fd = os.open(directory.path, os.O_RDONLY)
    with nothing_left(directory.path), pytest.raises(IsADirectoryError):
        directory.save_from(fd, 1)
    os.close(fd)


def test_a_file_that_is_only_open_for_writing_is_refused(directory, tmp_path):
    with (
        open(tmp_path / "target", "wb", buffering=0) as file,
        nothing_left(directory.path),
        pytest.raises(OSError, match="Bad file descriptor"),
    ):
        directory.save_from(file, 1)


def test_the_same_reader_has_nothing_left_for_a_second_save(directory):
    reader = io.BytesIO(CONTENT)
    assert directory.save_from(reader, 1).size == len(CONTENT)
    assert directory.save_from(reader, 2).size == 0
    with pytest.raises(SnapshotTruncated):
        directory.save_from(reader, 3, size=1)


def test_a_silent_source_is_given_up_after_its_time(directory):
    read_fd, write_fd = os.pipe()
    ours, theirs = socket.socketpair()
    with open(read_fd, "rb") as reader, open(write_fd, "wb", buffering=0) as writer, ours, theirs:
        writer.write(b"begun")
        theirs.sendall(b"begun")
        with nothing_left(directory.path):
            for source in (reader.fileno(), ours):
                with pytest.raises(TimeoutError):
                    directory.save_from(source, 1, idle_timeout_s=SILENCE_S)


def test_a_source_that_blocks_for_ever_can_be_cancelled(directory):
    read_fd, write_fd = os.pipe()
    progress = _fastpipe.Progress()
    errors = []

    def save():
        try:
            directory.save_from(read_fd, 1, progress=progress)
        except PipeClosed as error:
            errors.append(error)

    with nothing_left(directory.path):
        saver = threading.Thread(target=save)
        saver.start()
        progress.cancel()
        saver.join(WAIT_S)
    assert "cancelled" in str(errors)
    os.close(read_fd)
    os.close(write_fd)


def test_a_descriptor_that_does_not_block_is_waited_for(directory):
    read_fd, write_fd = os.pipe()
    os.set_blocking(read_fd, False)

    def feed():
        with open(write_fd, "wb") as writer:
            writer.write(CONTENT)

    feeder = threading.Thread(target=feed)
    feeder.start()
    assert directory.save_from(read_fd, 1).path.read_bytes() == CONTENT
    feeder.join()
    os.close(read_fd)


def test_a_pipe_that_breaks_gives_its_reason(directory):
    reader, writer = _fastpipe.pipe(chunk_size=UNIT)
    error = Own("the other end gave up")
    writer.write(CONTENT[:UNIT])
    writer.close(error)
    with nothing_left(directory.path), pytest.raises(Own) as raised:
        directory.save_from(reader, 1)
    assert raised.value is error
    reader.close()


def test_a_reader_that_saves_the_same_index_meanwhile_is_told_that_it_is_busy(directory):
    with nothing_left(directory.path), pytest.raises(SnapshotBusy, match="index 1 is being saved"):
        directory.save_from(Reader(lambda size: directory.save_from(CONTENT, 1)), 1)


def test_a_reader_may_use_the_directory_for_everything_else(directory):
    directory.save_from(CONTENT, 1)

    def answer(size):
        assert directory.save_from(CONTENT, 3).size == len(CONTENT)
        assert [saved.index for saved in directory.list()] == [1, 3]
        assert directory.purge(keep=1) == [1]
        assert directory.remove_orphans() == []
        assert directory.verify(3).size == len(CONTENT)
        return b""

    directory.save_from(Reader(answer, 10), 2)
    assert [saved.index for saved in directory.list()] == [2, 3]


def test_a_second_directory_object_may_win_meanwhile_and_is_kept(directory):
    def answer(size):
        with SnapshotDir(directory.path) as second:
            second.save_from(b"second", 1)
        return b""

    with pytest.raises(SnapshotExists, match="saved by somebody else meanwhile") as raised:
        directory.save_from(Reader(answer, len(CONTENT)), 1)
    assert raised.value.path.read_bytes() == b"second"
    assert directory.verify(1).size == 6


def test_a_reader_that_closes_the_directory_does_not_stop_its_save(tmp_path):
    directory = SnapshotDir(tmp_path)

    def answer(size):
        directory.close()
        return b""

    assert directory.save_from(Reader(answer, len(CONTENT)), 1).path.read_bytes() == CONTENT
    with pytest.raises(ValueError, match="was closed"):
        directory.list()


def test_a_reader_that_closes_itself_fails_like_one(directory):
    class Closing(io.BytesIO):
        def readinto(self, buffer):
            count = super().readinto(buffer)
            self.close()
            return count

    with nothing_left(directory.path), pytest.raises(ValueError, match="closed file"):
        directory.save_from(Closing(CONTENT), 1)
