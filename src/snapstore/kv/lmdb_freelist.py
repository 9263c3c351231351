"""What a pinned LMDB transaction costs: the pages that would be used again if it ended.

Bytes of a data file in, a number of pages out. Knows no environment; whoever calls keeps the transaction
of the meta that is read pinned meanwhile.

Plan: LMDB notes the pages that transaction N frees in its freelist, a B+tree, as one record under the key
N: a count, then the page numbers. The writer after transaction M takes from the records before M, but not
from those of the oldest reader and later (`mdb_page_alloc`, `mdb_find_oldest`). So the records from the
pin's on are read, of each only the count, and the subtrees before them are not.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from snapstore.errors import SnapshotCorrupt
from snapstore.kv.lmdb_file import META_PAGES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from snapstore.kv.lmdb_file import DataMeta

#: `P_BRANCH` and `P_LEAF`, of a page; `F_BIGDATA`, of a node whose value lies on pages of its own.
_BRANCH, _LEAF, _BIGDATA = 0x01, 0x02, 0x01

#: `CURSOR_STACK`: LMDB itself follows no deeper tree.
_DEPTH_MAX = 32

#: The root of a tree without pages, `P_INVALID`; where `MDB_db` has its root.
_NO_ROOT, _ROOT_AT = 2**64 - 1, 40

#: A node's head: low and high half of the value's size, flags, and the key's size; in a branch the first
#: three are a page number. Its key, a transaction, follows, but the first of a branch has none.
_NODE = struct.Struct("=HHHH")

_U64 = struct.Struct("=Q")


def pages_waiting_for(fd: int, meta: DataMeta, txnid: int) -> int:
    """Return how many pages the next writer could use if there were no reader of `txnid`.

    `meta` is of the last transaction in the file `fd`; other readers may want the same pages.

    Raises SnapshotCorrupt where the pages contradict themselves, and OSError.
    """
    (root,) = _U64.unpack_from(meta.free_db, _ROOT_AT)
    if root == _NO_ROOT:
        return 0
    try:
        return sum(_Tree(fd, meta, txnid).counts(root))
    except struct.error:
        raise SnapshotCorrupt("the freelist of the LMDB data file contradicts itself") from None


@dataclass(frozen=True, slots=True)
class _Tree:
    fd: int
    meta: DataMeta
    txnid: int
    # A damaged tree that leads to one page twice may do so at each level: no walk would end.
    _seen: set[int] = field(default_factory=set)

    def counts(self, number: int, depth: int = 1) -> Iterator[int]:
        """Yield the counts of the records below page `number` that wait for the pin."""
        page = self._read(number, self.meta.page_size)
        kind, places = self._head(page)
        if number in self._seen or depth > _DEPTH_MAX or not kind & (_BRANCH | _LEAF):
            raise SnapshotCorrupt(f"page {number} is none of a freelist")
        self._seen.add(number)
        for place, following in zip(places, [*places[1:], None], strict=True):
            low, middle, flags, _ = _NODE.unpack_from(page, place)
            if kind & _LEAF:
                if self.txnid <= self._key(page, place) < self.meta.txnid:
                    yield self._count(page, place + _NODE.size + _U64.size, flags)
            # All keys of a subtree lie before the key of the next one.
            elif following is None or self._key(page, following) > self.txnid:
                yield from self.counts(low | middle << 16 | flags << 32, depth + 1)

    @staticmethod
    def _key(page: bytes, place: int) -> int:
        (key,) = _U64.unpack_from(page, place + _NODE.size)
        return int(key)

    def _head(self, page: bytes) -> tuple[int, list[int]]:
        """The kind of a page, and where its nodes lie in it."""
        size = self.meta.header_size
        # In data format 3 a page's offsets count from behind its header.
        base = size if self.meta.version == 3 else 0
        kind, lower = struct.unpack_from("=HH", page, size - 6)
        count = (base + lower - size) // 2
        return kind, [base + place for place in struct.unpack_from(f"={max(0, count)}H", page, size)]

    def _count(self, page: bytes, place: int, flags: int) -> int:
        (first,) = _U64.unpack_from(page, place)
        if flags & _BIGDATA:
            value = self._read(first, self.meta.header_size + _U64.size)
            (first,) = _U64.unpack_from(value, self.meta.header_size)
        return int(first)

    def _read(self, number: int, size: int) -> bytes:
        if not META_PAGES <= number <= self.meta.last_page:
            raise SnapshotCorrupt(f"an LMDB data file cannot have its freelist on page {number}")
        return os.pread(self.fd, size, number * self.meta.page_size)
