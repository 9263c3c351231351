"""The image: a file's bytes with patches laid over them, against the same done in memory."""

from __future__ import annotations

import io
import itertools
import os
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snapstore import _fastpipe
from snapstore.errors import ForkedProcess, PipeClosed

#: Above HOLE_SIZE_MIN in image.pxi several times, so that long patches have their own way.
SIZE = 5 * 64 * 1024 + 123
HOLE = 64 * 1024
DATA = os.urandom(SIZE)
WAIT_S = 20.0


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("image") / "data"
    path.write_bytes(DATA + b"beyond the image")
    return path


def open_image(path, size=SIZE, **options):
    return _fastpipe.Image(os.open(path, os.O_RDONLY), size, **options)


@st.composite
def patches(draw):
    """Patches apart from each other, short and long, touching or not, in any order."""
    edges = sorted(
        draw(st.sets(st.one_of(st.integers(0, SIZE), st.sampled_from([0, SIZE, HOLE, 2 * HOLE])), max_size=9))
    )
    return draw(
        st.permutations(
            [
                (start, stop - start, draw(st.sampled_from([None, bytes([number + 1]) * (stop - start)])))
                for number, (start, stop) in enumerate(itertools.pairwise(edges))
                if draw(st.booleans())
            ]
        )
    )


def patched(laid):
    data = bytearray(DATA)
    for offset, length, other in laid:
        data[offset : offset + length] = bytes(length) if other is None else other
    return bytes(data)


@given(data=st.data(), laid=patches())
@settings(deadline=None, max_examples=80)
def test_patched_bytes_are_as_a_copy_in_memory(path, data, laid):
    expected = patched(laid)
    borders = [0, SIZE, *(offset for offset, _, _ in laid), *(offset + length for offset, length, _ in laid)]
    near = st.builds(
        lambda at, by: min(max(0, at + by), SIZE + 1), st.sampled_from(borders), st.integers(-2, 2)
    )
    with open_image(path, patches=laid) as image:
        assert _fastpipe.digest(image).digest == _fastpipe.crc32c(expected)
        for _ in range(5):
            start, stop = sorted((data.draw(near), data.draw(near)))
            buffer = bytearray(stop - start)
            count = image.readinto(buffer, start)
            assert buffer[:count] == expected[start:stop]


def test_zeros_are_not_read_from_the_file(tmp_path):
    # A long patch of zeros lies where the file has no bytes at all: a read there would be EIO.
    (tmp_path / "short").write_bytes(b"head")
    with open_image(tmp_path / "short", 4 + HOLE, patches=[(4, HOLE, None)]) as image:
        buffer = bytearray(4 + HOLE)
        assert image.readinto(buffer, 0) == 4 + HOLE
        assert buffer == b"head" + bytes(HOLE)


def test_a_file_shorter_than_its_image_is_an_oserror(path):
    with open_image(path, SIZE + 100) as image, pytest.raises(OSError, match="Input/output error"):
        image.readinto(bytearray(200), SIZE - 50)


@pytest.mark.parametrize(
    ("laid", "words"),
    [
        ([(0, 10, None), (9, 10, None)], "overlaps another"),
        ([(9, 10, None), (0, 10, None)], "overlaps another"),
        ([(5, 10, None), (5, 10, None)], "overlaps another"),
        ([(SIZE - 1, 2, None)], "leaves the image"),
        ([(-1, 2, None)], "leaves the image"),
        ([(0, 0, None)], "overlaps another or leaves"),
        ([(0, 3, b"four")], "has 4 bytes and a length of 3"),
    ],
)
def test_patches_that_do_not_fit_are_refused_and_the_descriptor_stays(path, laid, words):
    fd = os.open(path, os.O_RDONLY)
    with pytest.raises(ValueError, match=words):
        _fastpipe.Image(fd, SIZE, patches=laid)
    os.close(fd)  # Still the caller's.


def test_patches_must_be_bytes(path):
    fd = os.open(path, os.O_RDONLY)
    with pytest.raises(TypeError):
        _fastpipe.Image(fd, SIZE, patches=[(0, 3, bytearray(3))])
    os.close(fd)


def test_a_closed_image_gives_nothing_and_closes_its_descriptor(path):
    fd = os.open(path, os.O_RDONLY)
    image = _fastpipe.Image(fd, SIZE)
    assert (image.size, image.closed) == (SIZE, False)
    image.close()
    image.close()
    assert image.closed
    for call in (lambda: image.readinto(bytearray(1), 0), lambda: _fastpipe.digest(image)):
        with pytest.raises(PipeClosed, match="the snapshot was closed"):
            call()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_a_dropped_image_closes_its_descriptor(path):
    fd = os.open(path, os.O_RDONLY)
    _fastpipe.Image(fd, SIZE)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_a_borrowed_descriptor_is_left_open(path):
    fd = os.open(path, os.O_RDONLY)
    with _fastpipe.Image(fd, SIZE, close_fd=False) as image:
        assert image.readinto(bytearray(10), 0) == 10
    os.fstat(fd)
    os.close(fd)


def send_and_close(image, fd):
    try:
        _fastpipe.send(image, fd)
    finally:
        os.close(fd)


def test_reads_under_way_end_when_another_thread_closes(path):
    fd = os.open(path, os.O_RDONLY)
    image = _fastpipe.Image(fd, SIZE)
    out, into = os.pipe()
    with ThreadPoolExecutor() as pool, open(out, "rb") as end:
        sending = pool.submit(send_and_close, image, into)
        assert end.read(100) == DATA[:100]  # Under way, and waiting for the pipe to empty.
        image.close()
        os.fstat(fd)  # Stays open for the transfer that is under way.
        assert len(end.read()) < SIZE
        with pytest.raises(PipeClosed, match="closed while it was read"):
            sending.result(WAIT_S)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_child_of_a_fork_is_refused(path):
    with open_image(path) as image:
        child = os.fork()
        if child == 0:
            status = 1
            try:
                image.readinto(bytearray(1), 0)
            except ForkedProcess:
                status = 0
            finally:
                os._exit(status)
        assert os.waitpid(child, 0)[1] == 0
        assert image.readinto(bytearray(1), 0) == 1


def test_an_image_is_written_to_a_pipe_and_to_any_writer_alike(tmp_path):
    content = os.urandom(3 * 1024 * 1024 + 5)
    (tmp_path / "file").write_bytes(content)
    with _fastpipe.Image(os.open(tmp_path / "file", os.O_RDONLY), len(content)) as image:
        plain = io.BytesIO()
        assert image.write_to(plain) == len(content)
        reader, writer = _fastpipe.pipe(chunk_size=1024 * 1024, chunks=4)
        assert image.write_to(writer) == len(content)
        writer.close()
        target = tmp_path / "target"
        with target.open("wb") as file:
            assert reader.copy_to_fd(file.fileno()) == len(content)
        assert plain.getvalue() == target.read_bytes() == content
    with pytest.raises(PipeClosed):
        image.write_to(io.BytesIO())
