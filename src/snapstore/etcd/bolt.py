"""The meta pages of a bbolt database: how long the whole is, told by its first bytes.

etcd sends its database without a length and without a checksum. But each of its first two pages has a
meta record with a checksum of its own, and that says how many pages there are. So a database that
ends too early, or goes on too long, is known before its last byte came.

Bytes in, values out. No sockets, no files but one function that reads them. bbolt's words for what
is here: `page_count` is its `meta.pgid`, the number of the first page that is not used.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass

from snapstore.errors import SnapshotCorrupt, SnapshotTruncated

#: A page's header: its number, its kind, two counts that a meta page does not use.
_PAGE = struct.Struct("<QHHI")

#: The record behind it: magic, version, page size, flags, root page and sequence, page of the free
#: list, page count, transaction; then the checksum of these.
_META = struct.Struct("<IIIIQQQQQ")
_CHECKSUM = struct.Struct("<Q")

#: What has to be there of a meta page.
_RECORD_SIZE = _PAGE.size + _META.size + _CHECKSUM.size

_META_PAGE = 0x04
_MAGIC = 0xED0CDAED
_VERSION = 2

#: In place of a page: the free list is not in the file, and is found anew when it is opened.
_NO_FREELIST = 2**64 - 1

#: bbolt takes the system's page size. None is smaller than 1 KiB (the least that bbolt looks for)
#: or larger than 64 KiB (arm64 and ppc64 at their largest).
PAGE_SIZE_MIN = 1024
PAGE_SIZE_MAX = 64 * 1024

#: A new database has two meta pages, a free list and an empty root.
_PAGES_MIN = 4

#: A file offset is signed.
_SIZE_MAX = 2**63 - 1

#: What both records need at the usual page size of 4 KiB, and enough to tell another size.
HEAD_SIZE = 8 * 1024


@dataclass(frozen=True, slots=True)
class BoltMeta:
    """One meta record, with a good checksum. Sizes in bytes; pages count from 0."""

    page_size: int
    root: int
    freelist: int
    page_count: int
    txid: int

    @property
    def size(self) -> int:
        """The exact size of the database."""
        return self.page_count * self.page_size


def head_size(first: bytes) -> int:
    """Return how many of a database's first bytes `read_stream_head` needs, from the first HEAD_SIZE.

    Raises as that does, where the first page tells enough.
    """
    return _read_meta(first, 0, 0).page_size + _RECORD_SIZE


def read_stream_head(head: bytes) -> BoltMeta:
    """Return the meta of a database as bbolt writes it out of one transaction (`Tx.WriteTo`).

    There both records are good and differ in the transaction alone, the second being one older: so
    whatever else is on the wire was damaged. Raises SnapshotTruncated where `head` is shorter than
    `head_size` says, and SnapshotCorrupt.
    """
    first = _read_meta(head, 0, 0)
    second = _read_meta(head, first.page_size, 1)
    if (second.page_size, second.page_count, second.root) != (first.page_size, first.page_count, first.root):
        raise SnapshotCorrupt("not one bbolt transaction: its two meta pages disagree")
    if second.txid + 1 != first.txid:
        raise SnapshotCorrupt(f"not one bbolt transaction: numbers {first.txid} and {second.txid}")
    return first


def check_size(meta: BoltMeta, size: int) -> None:
    """Raise SnapshotTruncated where `size`, in bytes, is less than the pages have, or SnapshotCorrupt."""
    if size < meta.size:
        raise SnapshotTruncated(f"the bbolt database has {size} bytes of {meta.size}")
    if size > meta.size:
        raise SnapshotCorrupt(f"the bbolt database has {size} bytes, {size - meta.size} more than its pages")


def read_file(path: str | os.PathLike[str]) -> BoltMeta:
    """Return the newer good meta record of the file at `path`, as bbolt itself would open it.

    One of the two may be torn: a power cut leaves it so, and the other counts. The file may be
    longer than its pages, since bbolt grows it in steps; `check_size` says whether it is. Raises
    SnapshotTruncated where it is shorter, SnapshotCorrupt where neither record is good, OSError.
    """
    with open(path, "rb") as file:
        head = file.read(PAGE_SIZE_MAX + _RECORD_SIZE)
        size = os.fstat(file.fileno()).st_size
    found, problem = [], None
    # Without the first record the page size is not known, and the second may be behind any.
    for number, start in [(0, 0), *((1, start) for start in _page_sizes())]:
        try:
            meta = _read_meta(head, start, number)
        except SnapshotCorrupt as error:
            problem = problem or error
        else:
            if number == 0 or meta.page_size == start:
                found.append(meta)
    if not found:
        raise problem or AssertionError("no record was looked at")
    newest = max(found, key=lambda meta: meta.txid)
    if size < newest.size:
        check_size(newest, size)
    return newest


def _page_sizes() -> list[int]:
    return [1 << bits for bits in range(PAGE_SIZE_MIN.bit_length() - 1, PAGE_SIZE_MAX.bit_length())]


def _read_meta(data: bytes, start: int, number: int) -> BoltMeta:
    """Return the record of meta page `number`, which begins at `start` in `data`."""
    if len(data) < start + _RECORD_SIZE:
        raise SnapshotTruncated(f"a bbolt database has more than {len(data)} bytes")
    page, kind, _, _ = _PAGE.unpack_from(data, start)
    record = data[start + _PAGE.size : start + _PAGE.size + _META.size]
    magic, version, page_size, _, root, _, freelist, page_count, txid = _META.unpack(record)
    (checksum,) = _CHECKSUM.unpack_from(data, start + _PAGE.size + _META.size)
    if magic != _MAGIC:
        raise SnapshotCorrupt("not a bbolt database: the magic number of a meta page is missing")
    if version != _VERSION:
        raise SnapshotCorrupt(f"a bbolt database of version {version}; known is {_VERSION}")
    if checksum != fnv1a64(record):
        raise SnapshotCorrupt(f"the checksum of bbolt's meta page {number} is wrong")
    if page != number or not kind & _META_PAGE or page_size not in _page_sizes():
        raise SnapshotCorrupt(
            f"bbolt's meta page {number} is page {page}, of {page_size} bytes, kind {kind:#x}"
        )
    meta = BoltMeta(page_size, root, freelist, page_count, txid)
    inside = root < page_count and (freelist < page_count or freelist == _NO_FREELIST)
    if not inside or page_count < _PAGES_MIN or meta.size > _SIZE_MAX:
        raise SnapshotCorrupt(f"bbolt's meta page {number} points out of its {page_count} pages")
    return meta


def fnv1a64(data: bytes) -> int:
    """Return the 64-bit FNV-1a of `data`: what bbolt's records carry, and nothing else here."""
    value = 0xCBF29CE484222325
    for byte in data:
        value = (value ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return value
