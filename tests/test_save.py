"""The durable copy: every size, source and way of writing gives the bytes and their digests."""

from __future__ import annotations

import gc
import io
import os
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from snapstore import _fastpipe
from snapstore.errors import PipeClosed, SnapshotCorrupt, SnapshotTooLarge, SnapshotTruncated

PAGE = 4096
CHUNK = 64 * 1024
SIZES = [0, 1, PAGE - 1, PAGE, PAGE + 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 5]
DATA = os.urandom(3 * CHUNK + 5)
WAIT_S = 20.0
SOURCES = ["fd", "memory", "ring", "image", "reader", "socket", "pipe"]


@pytest.fixture
def background():
    with ThreadPoolExecutor() as pool:
        yield pool.submit


@pytest.fixture(params=["disk", "memory"])
def target(request, tmp_path):
    """A new file on the disk, and on a file system that has no disk below it."""
    shm = Path("/dev/shm")
    if request.param == "memory" and not shm.is_dir():
        pytest.skip("NOT TESTED: there is no /dev/shm")
    folder = tmp_path if request.param == "disk" else shm
    fd = os.open(folder, os.O_RDWR | os.O_TMPFILE, 0o600)
    yield fd
    os.close(fd)


@pytest.fixture
def make_source(tmp_path, background):
    """Makes a source of a kind that holds `data`; all of them are closed in the end."""
    opened = []

    def keep(fd):
        opened.append(fd)
        return fd

    def make(kind, data):
        if kind == "memory":
            return bytearray(data)
        if kind == "reader":
            return io.BytesIO(data)
        if kind in ("fd", "image"):
            (tmp_path / "source").write_bytes(data)
            fd = os.open(tmp_path / "source", os.O_RDONLY)
            return keep(fd) if kind == "fd" else _fastpipe.Image(fd, len(data))
        if kind == "ring":
            reader, writer = _fastpipe.pipe(chunk_size=PAGE, chunks=2)
            background(lambda: (writer.write(data), writer.close()))
            return reader
        if kind == "socket":
            near, far = socket.socketpair()
            background(lambda: (far.sendall(data), far.close()))
            return keep(near.detach())
        out, into = os.pipe()
        background(pour, data, into)
        return keep(out)

    yield make
    for fd in opened:
        os.close(fd)


def pour(data, fd):
    """Write `data` into a pipe, as far as its reader wants it."""
    try:
        _fastpipe.send(data, fd)
    finally:
        os.close(fd)


def content(fd):
    assert os.fstat(fd).st_size <= 2 * len(DATA)
    return os.pread(fd, 2 * len(DATA), 0)


def digests(data, chunk_size):
    return tuple(_fastpipe.crc32c(data[at : at + chunk_size]) for at in range(0, len(data), chunk_size))


@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("kind", SOURCES)
def test_the_bytes_and_digests_come_out(target, make_source, kind, known, direct):
    for size in SIZES:
        data = DATA[:size]
        os.ftruncate(target, 0)
        copied = _fastpipe.save(
            make_source(kind, data), target, size=size if known else None, chunk_size=CHUNK, direct=direct
        )
        assert content(target) == data
        assert copied == (size, _fastpipe.crc32c(data), digests(data, CHUNK))


@pytest.mark.parametrize("size", [1024 * 1024, 1024 * 1024 + 1, 4 * 1024 * 1024 - 1, 8 * 1024 * 1024 + 3])
def test_default_chunks_on_both_sides_of_where_a_second_thread_pays(target, size):
    data = os.urandom(size)
    copied = _fastpipe.save(data, target)
    with open(target, "rb", closefd=False) as file:
        assert file.read() == data
    assert copied == (size, _fastpipe.crc32c(data), digests(data, _fastpipe.CHUNK_SIZE_DEFAULT))


@pytest.mark.parametrize("chunks", [1, 2, 7])
def test_any_number_of_chunks_will_do(target, chunks):
    assert _fastpipe.save(DATA, target, chunk_size=PAGE, chunks=chunks).size == len(DATA)
    assert content(target) == DATA


def test_the_target_is_left_without_direct_io(target):
    _fastpipe.save(DATA, target, chunk_size=CHUNK)
    with open(f"/proc/self/fdinfo/{target}") as info:
        flags = next(int(line.split()[1], 8) for line in info if line.startswith("flags"))
    assert not flags & os.O_DIRECT


def test_digest_is_a_save_that_writes_nowhere():
    assert _fastpipe.digest(DATA, chunk_size=CHUNK) == (
        len(DATA),
        _fastpipe.crc32c(DATA),
        digests(DATA, CHUNK),
    )


@pytest.mark.parametrize("kind", SOURCES)
def test_a_source_with_less_than_declared_is_truncated(target, make_source, kind):
    with pytest.raises(SnapshotTruncated, match="ended after"):
        _fastpipe.save(make_source(kind, DATA), target, size=len(DATA) + 1, chunk_size=CHUNK)


@pytest.mark.parametrize("kind", [kind for kind in SOURCES if kind != "socket"])
def test_a_source_with_more_than_declared_is_too_large(target, make_source, kind):
    for size in (0, CHUNK, len(DATA) - 1):
        with pytest.raises(SnapshotTooLarge):
            _fastpipe.save(make_source(kind, DATA), target, size=size, chunk_size=CHUNK)


def test_what_follows_on_a_socket_is_left_there(target):
    near, far = socket.socketpair()
    with near, far:
        far.sendall(DATA[:CHUNK] + b"next")
        _fastpipe.save(near.fileno(), target, size=CHUNK, chunk_size=CHUNK)
        assert near.recv(10) == b"next"


def test_the_limit_holds_whether_the_size_is_known_or_not(target):
    for size in (None, len(DATA)):
        with pytest.raises(SnapshotTooLarge):
            _fastpipe.save(io.BytesIO(DATA), target, size=size, size_max=len(DATA) - 1, chunk_size=CHUNK)
        assert _fastpipe.save(DATA, target, size=size, size_max=len(DATA), chunk_size=CHUNK).size == len(DATA)


def test_the_first_chunk_that_is_not_as_expected_is_named(target):
    expected = list(digests(DATA, CHUNK))
    assert _fastpipe.save(DATA, target, chunk_size=CHUNK, expected=expected).chunk_digests == tuple(expected)
    for chunk in range(4):
        wrong = expected.copy()
        wrong[chunk] ^= 1
        with pytest.raises(SnapshotCorrupt, match=f"chunk {chunk} ") as caught:
            _fastpipe.save(DATA, target, chunk_size=CHUNK, expected=wrong)
        assert caught.value.chunk == chunk
    with pytest.raises(SnapshotTruncated):
        _fastpipe.save(DATA, target, chunk_size=CHUNK, expected=[*expected, 0])
    with pytest.raises(SnapshotCorrupt):
        _fastpipe.save(DATA, target, chunk_size=CHUNK, expected=expected[:-1])


def test_progress_counts_and_cancel_ends_it(target, background):
    progress = _fastpipe.Progress()
    _fastpipe.save(DATA, target, chunk_size=CHUNK, progress=progress)
    assert progress.bytes == len(DATA)
    near, far = socket.socketpair()
    with near, far:
        far.sendall(b"some")
        progress = _fastpipe.Progress()
        saving = background(_fastpipe.save, near.fileno(), target, progress=progress)
        while progress.bytes < 4:
            assert not saving.done()
        assert not progress.cancelled
        progress.cancel()
        with pytest.raises(PipeClosed, match="cancelled"):
            saving.result(WAIT_S)
        assert progress.cancelled


def test_the_progress_of_a_part_counts_in_the_whole_which_can_cancel_it(target):
    whole = _fastpipe.Progress()
    part, other = _fastpipe.Progress(whole), _fastpipe.Progress(whole)
    deeper = _fastpipe.Progress(part)
    _fastpipe.save(DATA, target, progress=deeper)
    _fastpipe.save(DATA[:5], target, progress=other)
    assert [deeper.bytes, part.bytes, other.bytes, whole.bytes] == [len(DATA), len(DATA), 5, len(DATA) + 5]
    part.cancel()
    assert [deeper.cancelled, part.cancelled, other.cancelled, whole.cancelled] == [True, True, False, False]
    with pytest.raises(PipeClosed, match="cancelled"):
        _fastpipe.save(DATA, target, progress=deeper)
    _fastpipe.save(DATA[:5], target, progress=other)
    whole.cancel()
    assert other.cancelled
    with pytest.raises(PipeClosed, match="cancelled"):
        _fastpipe.save(DATA, target, progress=other)


def test_the_progress_of_a_part_keeps_the_whole_and_takes_no_other():
    part = _fastpipe.Progress(_fastpipe.Progress())
    (whole,) = gc.get_referents(part)
    part.__init__()
    assert gc.get_referents(part) == [whole]
    whole.cancel()
    assert part.cancelled


@pytest.mark.parametrize("size", [1, CHUNK, 3 * CHUNK])
def test_a_target_that_cannot_be_written_is_an_oserror(tmp_path, size):
    (tmp_path / "read only").touch()
    fd = os.open(tmp_path / "read only", os.O_RDONLY)
    try:
        with pytest.raises(OSError, match="Bad file descriptor"):
            _fastpipe.save(DATA[:size], fd, chunk_size=CHUNK)
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"size": -1}, ValueError, "size must be 0 to 2\\^63-1"),
        ({"size": 2**63}, ValueError, "must be 0 to 2\\^63-1"),
        ({"size": 1.5}, TypeError, "must be an int"),
        ({"size_max": -1}, ValueError, "size_max must be"),
        ({"chunk_size": 5000}, ValueError, "chunk_size must be a multiple of 4096"),
        ({"chunks": 0}, ValueError, "chunks must be 1 to 1024"),
        ({"idle_timeout_s": 0}, ValueError, "idle_timeout_s must be above 0"),
        ({"idle_timeout_s": float("nan")}, ValueError, "idle_timeout_s must be above 0"),
        ({"expected": [-1]}, OverflowError, "negative"),
    ],
)
def test_bad_options_are_refused_before_a_byte_is_read(options, error, words):
    source = io.BytesIO(DATA)
    with pytest.raises(error, match=words):
        _fastpipe.digest(source, **options)
    assert source.tell() == 0
