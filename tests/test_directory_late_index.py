"""A save whose index only its bytes tell: it is named at the end, or not at all."""

from __future__ import annotations

import errno
import threading

import pytest

from residue import names, nothing_left
from snapstore import _fastpipe
from snapstore.directory import SnapshotDir
from snapstore.errors import SnapshotBusy, SnapshotCorrupt, SnapshotExists, SnapshotTruncated
from snapstore.meta import SnapshotMeta

UNIT = _fastpipe.CHUNK_SIZE_MIN

#: Its first eight bytes are its index; then some chunks and a bit.
CONTENT = (7).to_bytes(8, "big") + bytes(range(256)) * 64 + b"the end"


@pytest.fixture(params=[True, False], ids=["nameless", "named"])
def directory(request, tmp_path):
    with SnapshotDir(tmp_path / "d", chunk_size=UNIT, nameless=request.param) as directory:
        yield directory


def read(image, offset, size):
    buffer = bytearray(size)
    assert image.readinto(buffer, offset) == size
    return bytes(buffer)


def first_bytes(image):
    return SnapshotMeta(int.from_bytes(read(image, 0, 8), "big"), term=3)


def test_the_bytes_say_the_index(directory):
    saved = directory.save_from(CONTENT, first_bytes)
    assert (saved.index, saved.meta.term) == (7, 3)
    assert directory.verify(7).path.read_bytes() == CONTENT
    assert names(directory.path) == ["0000000000000007.db", "0000000000000007.json"]


def test_a_bare_index_will_do(directory):
    assert directory.save_from(CONTENT, lambda image: 9).index == 9


@pytest.mark.parametrize("direct", [True, False])
def test_all_bytes_are_there_when_it_is_asked_for_and_none_has_a_name(tmp_path, direct):
    with SnapshotDir(tmp_path / "d", chunk_size=UNIT, direct=direct) as directory:
        seen = []

        def look(image):
            seen.append((read(image, 0, image.size), names(directory.path)))
            return 7

        directory.save_from(CONTENT, look)
        assert seen == [(CONTENT, [])]


def test_what_the_function_raises_ends_the_save(directory):
    def refuse(image):
        raise SnapshotCorrupt("not one of ours")

    with nothing_left(directory.path), pytest.raises(SnapshotCorrupt, match="not one of ours"):
        directory.save_from(CONTENT, refuse)


@pytest.mark.parametrize(("answer", "error"), [(2**64, ValueError), (-1, ValueError), ("7", TypeError)])
def test_what_is_no_index_is_refused(directory, answer, error):
    with nothing_left(directory.path), pytest.raises(error):
        directory.save_from(CONTENT, lambda image: answer)


def test_it_is_not_asked_for_what_is_not_all_there(directory):
    with nothing_left(directory.path), pytest.raises(SnapshotTruncated):
        directory.save_from(CONTENT, lambda image: pytest.fail("asked"), size=len(CONTENT) + 1)


def test_what_is_stored_is_kept(directory):
    directory.save_from(b"first", 7)
    with nothing_left(directory.path), pytest.raises(SnapshotExists):
        directory.save_from(CONTENT, first_bytes)
    assert directory.get_snap_file_path(7).read_bytes() == b"first"


def test_two_at_once_under_one_index(directory, background):
    inside, over = threading.Event(), threading.Event()

    class Slow:
        def read(self, size):
            inside.set()
            assert over.wait(20)
            return b""

    other = background(directory.save_from, Slow(), 7)
    assert inside.wait(20)
    with pytest.raises(SnapshotBusy):
        directory.save_from(CONTENT, first_bytes)
    over.set()
    assert other.result().size == 0


def test_any_number_at_once_under_their_own(directory, background):
    contents = [index.to_bytes(8, "big") + CONTENT for index in range(1, 9)]
    saved = [background(directory.save_from, content, first_bytes) for content in contents]
    assert [found.result().index for found in saved] == [*range(1, 9)]
    assert [found.path.read_bytes() for found in directory.list()] == contents


def test_a_full_disk_is_told_with_the_directory_s_path(directory):
    class Full:
        def read(self, size):
            raise OSError(errno.ENOSPC, "No space left on device")

    with nothing_left(directory.path), pytest.raises(OSError, match="No space") as failure:
        directory.save_from(Full(), first_bytes)
    assert failure.value.filename == str(directory.path)


def test_a_closed_directory_reads_nothing(directory):
    directory.close()
    with pytest.raises(ValueError, match="was closed"):
        directory.save_from(CONTENT, lambda image: pytest.fail("asked"))
