"""etcd's databases: the meta pages, off the wire and in a file, and the walk that finds the revision."""

from __future__ import annotations

import struct

from fuzz.peers import file_with
from fuzz.runs import expand, pack
from snapstore import _fastpipe
from snapstore.errors import SnapshotCorrupt
from snapstore.etcd import bolt
from snapstore.etcd.blobs import TRAILER_SIZE
from snapstore.etcd.revision import REVISION_MIN, read_revision

_MENDED = 1

#: The smallest, so that a tree fits into an input.
_PAGE_SIZE = bolt.PAGE_SIZE_MIN

#: Of a meta page: its header, the record, and of that the page size.
_HEADER_SIZE, _RECORD_SIZE, _PAGE_SIZE_AT = 16, 56, 8

_LEAF, _BRANCH, _META, _FREELIST = 2, 1, 4, 16
_ROOT = 3


def check(data: bytes) -> bool:
    """A byte: whether the checksums are made right; the database, with runs."""
    image = expand(data[1:])
    if data and data[0] & _MENDED:
        image = _mended(image)
    streamed = _outcome(_read_stream, image)
    with file_with(image + bytes(TRAILER_SIZE)) as fd:
        found = _outcome(_walk, fd, len(image))
        with file_with(image) as bare:
            assert _outcome(_walk, bare, len(image)) == found
            stored = _outcome(bolt.read_file, f"/proc/self/fd/{bare}")
    if not isinstance(streamed, bolt.BoltMeta):
        assert found is streamed
        return False
    assert stored == streamed
    assert streamed.size == len(image)
    if not isinstance(found, int):
        return False
    assert REVISION_MIN <= found < 2**64
    return True


def _outcome(read: object, *arguments: object) -> object:
    """What comes of it, or what was raised."""
    try:
        return read(*arguments)  # type: ignore[operator]
    except SnapshotCorrupt as error:  # SnapshotTruncated is one.
        return type(error)


def _read_stream(image: bytes) -> bolt.BoltMeta:
    meta = bolt.read_stream_head(image[: bolt.head_size(image[: bolt.HEAD_SIZE])])
    bolt.check_size(meta, len(image))
    return meta


def _walk(fd: int, size: int) -> int:
    with _fastpipe.Image(fd, size, close_fd=False) as image:
        return read_revision(image, size)


def _mended(image: bytes) -> bytes:
    """The same database with the records' checksums made right, which no fuzzer guesses."""
    mended = bytearray(image)
    second = int.from_bytes(image[_HEADER_SIZE + _PAGE_SIZE_AT :][:4], "little")
    for start in (0, second):
        end = start + _HEADER_SIZE + _RECORD_SIZE
        if end + 8 <= len(mended):
            record = bytes(mended[start + _HEADER_SIZE : end])
            mended[end : end + 8] = bolt.fnv1a64(record).to_bytes(8, "little")
    return bytes(mended)


# A database to begin with.


def _meta(number: int, page_count: int) -> bytes:
    record = struct.pack(
        "<IIIIQQQQQ", 0xED0CDAED, 2, _PAGE_SIZE, 0, _ROOT, 0, 2**64 - 1, page_count, 8 - number
    )
    return struct.pack("<QHHI", number, _META, 0, 0) + record + bytes(8)


def _leaf(number: int, *elements: tuple[bytes, bytes, int]) -> bytes:
    heads, data = b"", b""
    for place, (key, value, flags) in enumerate(elements):
        position = 16 * (len(elements) - place) + len(data)
        heads += struct.pack("<IIII", flags, position, len(key), len(value))
        data += key + value
    return struct.pack("<QHHI", number, _LEAF, len(elements), 0) + heads + data


def _branch(number: int, *elements: tuple[bytes, int]) -> bytes:
    heads, data = b"", b""
    for place, (key, below) in enumerate(elements):
        heads += struct.pack("<IIQ", 16 * (len(elements) - place) + len(data), len(key), below)
        data += key
    return struct.pack("<QHHI", number, _BRANCH, len(elements), 0) + heads + data


def _change(revision: int) -> bytes:
    return struct.pack(">QcQ", revision, b"_", 0)


def _database(*keys: bytes) -> bytes:
    """A database whose bucket of keys is in the pages `keys`, from the first one behind the root."""
    note = _leaf(0, (b"finishedCompactRev", _change(3), 0))
    buckets = _leaf(
        _ROOT, (b"key", struct.pack("<QQ", _ROOT + 1, 0), 1), (b"meta", struct.pack("<QQ", 0, 0) + note, 1)
    )
    count = _ROOT + 1 + len(keys)
    freelist = struct.pack("<QHHI", 2, _FREELIST, 0, 0)
    pages = (_meta(0, count), _meta(1, count), freelist, buckets, *keys)
    return _mended(b"".join(page.ljust(_PAGE_SIZE, b"\0") for page in pages))


def seeds() -> dict[str, bytes]:
    """A store with one change and one with branches; and what is wrong with some."""
    change = (_change(7), b"value", 0)
    plain = _database(_leaf(_ROOT + 1, change))
    branches = _database(
        _branch(_ROOT + 1, (_change(1), _ROOT + 2), (_change(5), _ROOT + 3)),
        _leaf(_ROOT + 2, (_change(1), b"", 0)),
        _leaf(_ROOT + 3, (_change(5), b"", 0), change),
    )
    circle = _database(_branch(_ROOT + 1, (_change(1), _ROOT + 1)))
    return {
        "good-plain": b"\0" + pack(plain),
        "good-branches": b"\0" + pack(branches),
        "good-mended": b"\1" + pack(branches),
        "bad-checksum": b"\0" + pack(plain[:20] + b"\1" + plain[21:]),
        "bad-short": b"\1" + pack(plain[:-_PAGE_SIZE]),
        "bad-long": b"\1" + pack(plain + b"\1"),
        "bad-circle": b"\1" + pack(circle),
        "bad-keys": b"\1" + pack(_database(_leaf(_ROOT + 1, (b"no revision", b"", 0)))),
    }
