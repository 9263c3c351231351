"""The reader drawn as a string: what each letter gives, and what a save and a restore make of it."""

from __future__ import annotations

import errno
import io
import os

import pytest

from residue import nothing_left
from snapstore.directory import SnapshotDir
from snapstore.errors import SnapshotTruncated
from snapstore.kv.memory import MemoryKV
from snapstore.meta import SnapshotMeta
from snapstore.stream import SnapshotStream
from snapstore.testing import LetterReader

CHUNK_SIZE = 4096

#: Some chunks and a piece of one.
CONTENT = os.urandom(5 * CHUNK_SIZE + 7)


@pytest.fixture
def directory(tmp_path):
    with SnapshotDir(tmp_path / "snapshots", chunk_size=CHUNK_SIZE) as directory:
        yield directory


def kv_image():
    """A store's image, and what it holds."""
    kv = MemoryKV()
    kv.put(b"key", b"value" * 100)
    written = io.BytesIO()
    with kv.snapshot() as snapshot:
        snapshot.write_to(written)
    return written.getvalue()


def test_each_letter_gives_what_it_says():
    reader = LetterReader(b"0123456789abcdefghij", "rs1ewx")
    assert [reader.read(4) for _ in range(6)] == [b"0123", b"45", b"6", b"", None, b"789ab"]
    assert reader.reads == 6
    assert (reader.read(4), reader.read(), reader.read(4)) == (b"cdef", b"ghij", b"")
    assert reader.size == 20


@pytest.mark.parametrize(
    ("letter", "kind", "code"),
    [("E", OSError, errno.EIO), ("i", InterruptedError, errno.EINTR), ("t", TimeoutError, errno.ETIMEDOUT)],
)
def test_a_read_that_fails_takes_nothing_away(letter, kind, code):
    reader = LetterReader(b"content", "r" + letter)
    assert reader.read(3) == b"con"
    with pytest.raises(kind) as caught:
        reader.read(3)
    assert caught.value.errno == code
    assert reader.read() == b"tent"


def test_a_letter_that_is_none_and_a_closed_reader_are_refused():
    with pytest.raises(ValueError, match="no read goes like 'R' in 'rR'"):
        LetterReader(b"", "rR")
    reader = LetterReader(b"content")
    reader.close()
    reader.close()
    with pytest.raises(ValueError, match="closed"):
        reader.read(1)
    assert repr(reader) == "<LetterReader '' after 0 reads, 7 bytes left>"


@pytest.mark.parametrize("letters", ["", "rrr", "ssss", "1s1s", "1" * 50, "rsr1"])
def test_a_save_takes_whatever_portions_a_reader_gives(directory, letters):
    assert directory.save_from(LetterReader(CONTENT, letters), 1).size == len(CONTENT)
    assert directory.verify(1).path.read_bytes() == CONTENT


@pytest.mark.parametrize(
    "failing", [0, *(pytest.param(read, marks=pytest.mark.slow) for read in (1, 2, 3)), 4]
)
@pytest.mark.parametrize(
    ("letter", "kind"), [("E", OSError), ("t", TimeoutError), ("w", BlockingIOError), ("x", ValueError)]
)
def test_a_save_ends_with_the_readers_error_and_leaves_nothing(directory, letter, kind, failing):
    reader = LetterReader(CONTENT, "r" * failing + letter)
    with nothing_left(directory.path), pytest.raises(kind):
        directory.save_from(reader, 1)
    assert reader.reads == failing + 1
    assert directory.save_from(LetterReader(CONTENT), 1).size == len(CONTENT)


def test_an_end_that_comes_too_early_is_told_by_the_size_alone(directory):
    with nothing_left(directory.path), pytest.raises(SnapshotTruncated):
        directory.save_from(LetterReader(CONTENT, "rre"), 1, size=len(CONTENT))
    assert directory.save_from(LetterReader(CONTENT, "rre"), 1).size == 2 * CHUNK_SIZE


def test_it_is_a_snapshot_of_a_store_too(directory):
    for letters in ("", "1s", "srs"):
        kv = MemoryKV()
        kv.restore(LetterReader(kv_image(), letters))
        assert kv.get(b"key") == b"value" * 100
    with SnapshotStream(SnapshotMeta(1), LetterReader(CONTENT, "s1r", block_size=1000)) as stream:
        directory.save_from(stream, 1)
    assert directory.verify(1).path.read_bytes() == CONTENT


def test_a_store_whose_reader_fails_stays_as_it_was():
    kv = MemoryKV()
    kv.put(b"old", b"1")
    for letters in ("E", "1E", "ssE"):
        with pytest.raises(OSError, match="Input/output error"):
            kv.restore(LetterReader(kv_image(), letters))
        assert (kv.get(b"old"), kv.get(b"key")) == (b"1", None)
