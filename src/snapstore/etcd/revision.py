"""Which revision a database of etcd stands at, read out of its pages.

Looks at a dozen pages of a bbolt file, whatever its size. No gRPC, no names, no writing. Every number
in a page may be a lie: each is checked before it is used.

Nothing that etcd says beside a snapshot names it exactly: writes go on while one asks. The database
does. Its bucket `key` has an entry for each change, under the revision of the change, big-endian, so
the last key is the newest. Where compaction took that one away, what it noted in the bucket `meta`
counts; etcd itself does the same when it starts (`restore` in its `mvcc` package).

A page is a header, `count` elements, then what they point to. Branches lead to pages, leaves have
values; a bucket is a value that names its root page, or that has a small page of its own behind it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from snapstore.errors import SnapshotCorrupt
from snapstore.etcd.bolt import HEAD_SIZE, check_size, head_size, read_stream_head

if TYPE_CHECKING:
    from snapstore._fastpipe import Image

#: Where a store stands that was never written to.
REVISION_MIN = 1

#: No tree of as many pages as a number can count is so deep; a circle of pages has no end.
_DEPTH_MAX = 64

#: bbolt takes no longer keys.
_KEY_SIZE_MAX = 32 * 1024

#: The values that are wanted here have 17 bytes; small buckets have up to a quarter of a page.
_VALUE_SIZE_MAX = 64 * 1024

_PAGE = struct.Struct("<QHHI")  # its number, its kind, how many elements, how many pages more it takes
_BRANCH = struct.Struct("<IIQ")  # where the key is, seen from here; its size; the page below
_LEAF = struct.Struct("<IIII")  # flags; where the key is, seen from here; its size; the value's
_BUCKET = struct.Struct("<QQ")  # the root page, 0 where the page follows; a sequence
_REVISION = struct.Struct(">Qc")  # the change and `_`; the place within the change comes behind

_BRANCH_PAGE, _LEAF_PAGE = 1, 2
_BUCKET_FLAG = 1

_COMPACTIONS = (b"scheduledCompactRev", b"finishedCompactRev")


def read_revision(image: Image, size: int) -> int:
    """Return the revision of the database that is the first `size` bytes of `image`.

    It must be as bbolt writes one out of a single transaction, of exactly that size. Raises
    SnapshotTruncated and SnapshotCorrupt where it is not, or is not etcd's.
    """
    file = _Bytes(image, size)
    head = file.read(0, min(HEAD_SIZE, size))
    meta = read_stream_head(file.read(0, min(head_size(head), size)))
    check_size(meta, size)
    tree = _Tree(file, meta.page_size)
    buckets = tree.page(meta.root)
    keys, notes = tree.bucket(buckets, b"key"), tree.bucket(buckets, b"meta")
    if keys is None or notes is None:
        raise SnapshotCorrupt("a bbolt database, but not etcd's: its buckets `key` and `meta` are missing")
    newest = tree.last(keys)
    seen = [found.value() for name in _COMPACTIONS if (found := tree.find(notes, name))]
    if newest is not None:
        seen.append(newest.key())
    return max([REVISION_MIN, *map(_revision, seen)])


def _revision(data: bytes) -> int:
    if len(data) < _REVISION.size or _REVISION.unpack_from(data)[1] != b"_":
        raise SnapshotCorrupt(f"{data[:32].hex()!r} in etcd's database is no revision")
    revision: int = _REVISION.unpack_from(data)[0]
    return revision


class _Bytes:
    """The first `size` bytes of an image."""

    def __init__(self, image: Image, size: int) -> None:
        self._image, self.size = image, size

    def read(self, start: int, size: int) -> bytes:
        buffer = memoryview(bytearray(size))
        done = 0
        while done < size:
            count = self._image.readinto(buffer[done:], start + done)
            if not count:
                raise SnapshotCorrupt(f"the database ends at byte {start + done}, within a page")
            done += count
        return bytes(buffer)


@dataclass(frozen=True, slots=True)
class _Element:
    """An element of a page: of a branch with the page below it, of a leaf with the size of its value."""

    page: _Page
    key_start: int
    key_size: int
    below: int = 0
    value_size: int = 0
    flags: int = 0

    def key(self) -> bytes:
        return self.page.read(self.key_start, self.key_size, _KEY_SIZE_MAX)

    def value(self) -> bytes:
        return self.page.read(self.value_start, self.value_size, _VALUE_SIZE_MAX)

    @property
    def value_start(self) -> int:
        return self.key_start + self.key_size


class _Page:
    """A page, with what it takes of those behind it: `size` bytes from `start`. Branch or leaf."""

    def __init__(self, file: _Bytes, start: int, size: int) -> None:
        self._file, self.start, self.size = file, start, size
        self.number, kind, self.count, self.overflow = _PAGE.unpack(self.read(0, _PAGE.size))
        if kind not in (_BRANCH_PAGE, _LEAF_PAGE):
            raise SnapshotCorrupt(f"the page at byte {start} of the database is of the wrong kind {kind:#x}")
        self.is_leaf = kind == _LEAF_PAGE

    def read(self, start: int, size: int, size_max: int = _PAGE.size) -> bytes:
        if size > size_max or start + size > self.size:
            raise SnapshotCorrupt(f"the page at byte {self.start} of the database points out of itself")
        return self._file.read(self.start + start, size)

    def element(self, number: int) -> _Element:
        start = _PAGE.size + number * _LEAF.size  # Elements of both kinds have the same size.
        data = self.read(start, _LEAF.size)
        if self.is_leaf:
            flags, position, key_size, value_size = _LEAF.unpack(data)
            return _Element(self, start + position, key_size, value_size=value_size, flags=flags)
        position, key_size, below = _BRANCH.unpack(data)
        return _Element(self, start + position, key_size, below=below)

    def last(self) -> _Element | None:
        return self.element(self.count - 1) if self.count else None

    def last_up_to(self, key: bytes) -> _Element | None:
        """The last element whose key is not above `key`; keys are in order."""
        low, high = 0, self.count
        while low < high:
            middle = (low + high) // 2
            if self.element(middle).key() <= key:
                low = middle + 1
            else:
                high = middle
        return self.element(low - 1) if low else None


class _Tree:
    """The pages of a database, and the buckets that they are."""

    def __init__(self, file: _Bytes, page_size: int) -> None:
        self._file, self._page_size = file, page_size

    def page(self, number: int) -> _Page:
        start = number * self._page_size
        if start + self._page_size > self._file.size:
            raise SnapshotCorrupt(f"the database points to its page {number}, which it does not have")
        page = _Page(self._file, start, self._page_size)
        if page.number != number:
            raise SnapshotCorrupt(f"page {number} of the database calls itself {page.number}")
        page.size += page.overflow * self._page_size
        if start + page.size > self._file.size:
            raise SnapshotCorrupt(f"page {number} of the database goes on behind its end")
        return page

    def bucket(self, buckets: _Page, name: bytes) -> _Page | None:
        """The root page of the bucket with this name, where there is one."""
        element = self.find(buckets, name)
        if element is None or not element.flags & _BUCKET_FLAG:
            return None
        value = element.value()
        if len(value) < _BUCKET.size:
            raise SnapshotCorrupt(f"the bucket `{name.decode()}` of the database is cut")
        root, _ = _BUCKET.unpack_from(value)
        if root:
            return self.page(root)
        start = element.page.start + element.value_start + _BUCKET.size
        return _Page(self._file, start, len(value) - _BUCKET.size)

    def find(self, root: _Page, key: bytes) -> _Element | None:
        """The element with this key, in the leaves below `root`."""
        found = self._descend(root, lambda page: page.last_up_to(key))
        return found if found is not None and found.key() == key else None

    def last(self, root: _Page) -> _Element | None:
        """The element with the greatest key, in the leaves below `root`."""
        return self._descend(root, _Page.last)

    def _descend(self, page: _Page, choose: Callable[[_Page], _Element | None]) -> _Element | None:
        for _ in range(_DEPTH_MAX):
            element = choose(page)
            if element is None or page.is_leaf:
                return element
            page = self.page(element.below)
        raise SnapshotCorrupt("the pages of the database lead in a circle")
