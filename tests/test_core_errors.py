"""No error path of the C core loses a slot, a descriptor or a thread.

Each failure is made to happen with a transfer that is under way; before and after it the process's
descriptors and threads are counted, and the memory that it borrowed must be free again.
"""

from __future__ import annotations

import copy
import errno
import io
import os
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from snapstore import _fastpipe
from snapstore.errors import PipeClosed, SnapshotCorrupt, SnapshotTooLarge, SnapshotTruncated

SIZE = 4096
DATA = os.urandom(20 * SIZE)
WAIT_S = 20.0
#: Silence long enough to be seen, short enough for a test.
IDLE_S = 0.05


def descriptor_count():
    return len(os.listdir("/proc/self/fd"))


def threads():
    return set(os.listdir("/proc/self/task"))


class Held:
    """What is open in this process, to be found the same afterwards.

    A thread that was joined may stand in /proc a moment longer, so its going is waited for.
    """

    def __enter__(self):
        self.threads = threads()
        self.descriptor_count = descriptor_count()

    def __exit__(self, kind, error, trace):
        if kind is None:
            deadline_s = time.monotonic() + WAIT_S
            while not threads() <= self.threads:
                assert time.monotonic() < deadline_s, "a thread was lost"
            assert descriptor_count() == self.descriptor_count


@pytest.fixture
def target(tmp_path):
    with (tmp_path / "target").open("w+b", buffering=0) as target:
        yield target.fileno()


@pytest.fixture
def sockets():
    near, far = socket.socketpair()
    with near, far:
        yield near, far


class Reader:
    """Gives a chunk of bytes, then what it was made with: raised if it can be, returned if not."""

    def __init__(self, then):
        self.then = then
        self.began = False

    def read(self, size):
        if not self.began:
            self.began = True
            return DATA[: min(size, 3 * SIZE)]
        if isinstance(self.then, BaseException):
            raise self.then
        return self.then


READERS = [
    (RuntimeError("the source broke"), RuntimeError, "the source broke"),
    (KeyboardInterrupt(), KeyboardInterrupt, None),
    (None, TypeError, "bytes-like object is required"),
    ("text", TypeError, "bytes-like object is required"),
    (bytes(10 * SIZE), ValueError, "returned 40960 bytes where"),
]


def moving_calls(source, target):
    """The transfers that read `source()`, each writing to `target`."""
    yield lambda: _fastpipe.save(source(), target, chunk_size=SIZE)
    yield lambda: _fastpipe.send(source(), target)
    yield lambda: _fastpipe.send_frames(source(), target, size=None, chunk_size=SIZE)
    yield lambda: _fastpipe.send_frames(source(), target, size=len(DATA), chunk_size=SIZE)


@pytest.mark.parametrize(("then", "error", "words"), READERS)
def test_a_reader_that_fails(target, then, error, words):
    for call in moving_calls(lambda: Reader(then), target):
        with Held(), pytest.raises(error, match=words):
            call()
    with Held(), pytest.raises(error, match=words):
        _fastpipe.digest(Reader(then), chunk_size=SIZE)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"size": len(DATA) + 1}, SnapshotTruncated),
        ({"size": len(DATA) - 1}, SnapshotTooLarge),
        ({"size_max": len(DATA) - 1}, SnapshotTooLarge),
        ({"expected": [0]}, SnapshotCorrupt),
        ({"expected": [0] * 21}, SnapshotCorrupt),
    ],
)
@pytest.mark.parametrize("chunk_size", [SIZE, 1024 * 1024])  # With a writing thread, and without.
def test_a_source_that_is_not_as_declared(target, options, error, chunk_size):
    with Held(), pytest.raises(error):
        _fastpipe.save(io.BytesIO(DATA), target, chunk_size=chunk_size, **options)


def test_a_silent_peer(target, sockets):
    near, far = sockets
    for sent in (b"", DATA[: 2 * SIZE + 5]):
        far.sendall(sent)
        with Held(), pytest.raises(TimeoutError):
            _fastpipe.save(near.fileno(), target, chunk_size=SIZE, idle_timeout_s=IDLE_S)
    with Held(), pytest.raises(TimeoutError):
        _fastpipe.send(bytes(8 * 1024 * 1024), near.fileno(), idle_timeout_s=IDLE_S)
    body = _fastpipe.Body(near.fileno(), b"", 1)
    with Held(), pytest.raises(TimeoutError):
        body.readinto(bytearray(1), idle_timeout_s=IDLE_S)
    reader, writer = _fastpipe.pipe(chunk_size=SIZE)
    with Held(), pytest.raises(TimeoutError):
        _fastpipe.save(reader, target, chunk_size=SIZE, idle_timeout_s=IDLE_S)
    writer.close()


def test_a_cancelled_transfer(target, sockets):
    progress = _fastpipe.Progress()
    progress.cancel()
    sockets[1].sendall(DATA[: 4 * SIZE])
    with Held(), pytest.raises(PipeClosed, match="cancelled"):
        _fastpipe.save(sockets[0].fileno(), target, chunk_size=SIZE, progress=progress)
    with Held(), pytest.raises(PipeClosed, match="cancelled"):
        _fastpipe.send(DATA, target, progress=progress)


def test_a_full_disk():
    with open("/dev/full", "wb", buffering=0) as full:
        for call in moving_calls(lambda: io.BytesIO(DATA), full.fileno()):
            with Held(), pytest.raises(OSError, match="No space left"):
                call()
        reader, writer = _fastpipe.pipe(chunk_size=SIZE, chunks=3)
        writer.write(DATA[: 3 * SIZE])
        with Held(), pytest.raises(OSError, match="No space left"):
            reader.copy_to_fd(full.fileno())
        writer.write(DATA[:SIZE])  # The slot that the failed transfer held is free again.


def test_descriptors_that_are_closed(target):
    closed = os.dup(target)
    os.close(closed)
    for call in moving_calls(lambda: closed, target):
        with Held(), pytest.raises(OSError, match="Bad file descriptor"):
            call()
    for call in (
        lambda: _fastpipe.save(DATA, closed, chunk_size=SIZE),
        lambda: _fastpipe.send(DATA, closed),
        lambda: _fastpipe.send_frames(DATA, closed, size=None, chunk_size=SIZE),
        lambda: _fastpipe.Body(closed, b"", 1).readinto(bytearray(1)),
        lambda: _fastpipe.DirectoryLock(closed),
        lambda: _fastpipe.SaveFile(closed, b"name"),
    ):
        with Held(), pytest.raises(OSError, match="Bad file descriptor"):
            call()


def read_for_ever(image, progress):
    while True:
        _fastpipe.digest(image, chunk_size=SIZE, progress=progress)


def test_an_image_closed_by_another_thread(tmp_path):
    size = 1024 * SIZE
    (tmp_path / "data").write_bytes(bytes(size))
    held = descriptor_count()
    for _ in range(5):
        image = _fastpipe.Image(os.open(tmp_path / "data", os.O_RDONLY), size)
        progress = _fastpipe.Progress()
        with ThreadPoolExecutor() as pool:
            reading = pool.submit(read_for_ever, image, progress)
            while progress.bytes == 0:
                assert not reading.done()
            image.close()
            with pytest.raises(PipeClosed):
                reading.result(WAIT_S)
        assert descriptor_count() == held


def test_arguments_that_are_refused_keep_nothing(tmp_path):
    (tmp_path / "data").write_bytes(DATA)
    with Held():
        image = _fastpipe.Image(os.open(tmp_path / "data", os.O_RDONLY), len(DATA))
        memory = bytearray(DATA)
        for source in (image, memory):
            for call in (
                lambda source=source: _fastpipe.save(source, "target"),
                lambda source=source: _fastpipe.save(source, -1, expected=[-1]),
                lambda source=source: _fastpipe.save(source, -1, size=-1),
                lambda source=source: _fastpipe.save(source, -1, size_max=-1),
                lambda source=source: _fastpipe.send(source, "target"),
                lambda source=source: _fastpipe.send(source, 1, idle_timeout_s=-1),
                lambda source=source: _fastpipe.send_frames(source, "target", size=None, chunk_size=SIZE),
            ):
                with pytest.raises((TypeError, ValueError, OverflowError)):
                    call()
        memory.append(0)  # A BufferError while somebody still borrows it.
        image.close()  # Closes the descriptor unless somebody still reads.


CHILD = """
import os, resource, sys
from snapstore import _fastpipe
resource.setrlimit(resource.RLIMIT_FSIZE, (6 * 4096, resource.RLIM_INFINITY))
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
held = len(os.listdir("/proc/self/fd")), os.listdir("/proc/self/task")
for direct in (True, False):
    for chunk_size in (4096, 1024 * 1024):
        try:
            _fastpipe.save(bytes(40 * 4096), fd, chunk_size=chunk_size, direct=direct)
        except OSError as error:
            print(error.errno)
assert held == (len(os.listdir("/proc/self/fd")), os.listdir("/proc/self/task"))
# What measures this process writes more, at its end.
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
"""


def test_a_file_that_may_grow_no_more_fails_the_writing_thread(tmp_path):
    folder = Path(_fastpipe.__file__).parent.parent
    child = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path / "target")],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(folder)},
    )
    assert child.stdout.split() == [str(errno.EFBIG)] * 4


def test_refused_arguments_of_a_save_file_close_nobodys_descriptors():
    with Held():
        for arguments in ((), (3,), ("directory", b"name"), (3, "name")):
            with pytest.raises(TypeError):
                _fastpipe.SaveFile(*arguments)


@pytest.mark.parametrize("chunks", [1, 3])
def test_a_ring_gets_all_its_slots_back(target, chunks):
    reader, writer = _fastpipe.pipe(chunk_size=SIZE, chunks=chunks)
    for _ in range(3):
        # Fails with a slot reserved: nothing is mapped at address 0.
        with (
            open("/proc/self/mem", "rb", buffering=0) as memory,
            Held(),
            pytest.raises(OSError, match="Input"),
        ):
            writer.copy_from_fd(memory.fileno())
        writer.write(DATA[: chunks * SIZE])
        for _ in range(chunks):
            with Held(), pytest.raises(SnapshotTooLarge):
                _fastpipe.save(reader, target, size_max=1, chunk_size=SIZE)
    writer.close()
    assert reader.read_chunk() is None


def test_what_owns_memory_is_neither_copied_nor_used_unmade():
    reader, writer = _fastpipe.pipe(chunk_size=SIZE, chunks=1)
    writer.write(bytes(SIZE))
    chunk = reader.read_chunk()
    for owner in (chunk, reader, writer):
        with pytest.raises(TypeError):
            copy.copy(owner)
    for call in (
        lambda: _fastpipe.PipeReader.__new__(_fastpipe.PipeReader).read_chunk(),
        lambda: _fastpipe.PipeWriter.__new__(_fastpipe.PipeWriter).close(),
        lambda: _fastpipe.Chunk.__new__(_fastpipe.Chunk).release(),
    ):
        with pytest.raises(AttributeError):
            call()
    chunk.release()
