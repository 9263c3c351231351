"""What the image of a pinned LMDB transaction must be, worked out the slow way.

Plain Python, from the format as mdb.c has it, over the whole file at once: every tree is walked and
every byte that a live page uses is copied into an image of zeros. The core's page map takes the
opposite way (it clears what is unused in the bytes it reads), so the two can be held against each other.
"""

from __future__ import annotations

import struct
from collections import Counter
from dataclasses import dataclass, field

BRANCH, LEAF, OVERFLOW, LEAF2, SUBPAGE = 0x01, 0x02, 0x04, 0x20, 0x40
BIGDATA, SUBDATA, DUPDATA = 0x01, 0x02, 0x04
NO_PAGE = 2**64 - 1


@dataclass
class Oracle:
    """`expected` is the image that `data`, read while the transaction was pinned, must give."""

    data: bytes
    header_size: int
    page_size: int
    expected: bytearray
    pages: set[int] = field(default_factory=set)
    free: set[int] = field(default_factory=set)
    #: How many pages each transaction has freed, of those that are free.
    freed: Counter[int] = field(default_factory=Counter)

    @property
    def base(self) -> int:
        return 24 if self.header_size == 24 else 0

    def u16(self, at: int) -> int:
        return int(struct.unpack_from("=H", self.data, at)[0])

    def u64(self, at: int) -> int:
        return int(struct.unpack_from("=Q", self.data, at)[0])

    def keep(self, start: int, stop: int) -> None:
        self.expected[start:stop] = self.data[start:stop]

    def take(self, page: int) -> int:
        assert page not in self.pages, "a page was reached twice"
        assert 2 <= page < len(self.expected) // self.page_size
        self.pages.add(page)
        return page * self.page_size

    def head(self, at: int) -> tuple[int, int, int, int]:
        """The kind, key count, and the two ends of the gap, of the page or sub-page at `at`."""
        end = at + self.header_size
        kind = self.u16(end - 6) & (BRANCH | LEAF | OVERFLOW | LEAF2 | SUBPAGE)
        lower, upper = at + self.base + self.u16(end - 4), at + self.base + self.u16(end - 2)
        return kind, (lower - end) // 2, lower, upper

    def keep_used(self, at: int, size: int) -> list[int]:
        """Keep what the page or sub-page at `at` uses; return where its nodes are."""
        kind, keys, lower, upper = self.head(at)
        if kind & LEAF2:
            self.keep(at, at + self.header_size + keys * self.u16(at + self.header_size - 8))
            return []
        self.keep(at, lower)
        self.keep(upper, at + size)
        return [at + self.base + self.u16(at + self.header_size + 2 * index) for index in range(keys)]

    def walk(self, root: int, *, freelist: bool = False) -> None:
        if root == NO_PAGE:
            return
        at = self.take(root)
        kind = self.head(at)[0]
        for node in self.keep_used(at, self.page_size):
            if kind == BRANCH:
                self.walk(self.u64(node) & 0xFFFFFFFFFFFF, freelist=freelist)
            else:
                self.node(node, freelist=freelist)

    def node(self, at: int, *, freelist: bool) -> None:
        size = self.u16(at) | self.u16(at + 2) << 16
        flags, key_size = self.u16(at + 4), self.u16(at + 6)
        data = at + 8 + (key_size + (key_size & 1 if self.base else 0))
        free_before = len(self.free)
        if flags & BIGDATA:
            page = self.u64(data)
            first = self.take(page)
            count = struct.unpack_from("=I", self.data, first + self.header_size - 4)[0]
            assert self.u16(first + self.header_size - 6) & OVERFLOW
            for more in range(page + 1, page + count):
                self.take(more)
            data = first + self.header_size
            self.keep(first, data + (self.ids(data) if freelist else size))
        elif freelist:
            used = self.ids(data)
            self.expected[data + used : data + size] = bytes(size - used)
        elif flags & SUBDATA:
            self.walk(self.u64(data + 40))
        elif flags & DUPDATA:
            self.expected[data : data + size] = bytes(size)
            self.keep_used(data, size)
        if freelist:
            self.freed[self.u64(at + 8)] += len(self.free) - free_before

    def ids(self, at: int) -> int:
        """Note a freelist record's pages; return how many bytes it uses."""
        count = self.u64(at)
        pages = struct.unpack_from(f"={count}Q", self.data, at + 8)
        assert not self.free & set(pages), "a page is free twice"
        self.free |= set(pages)
        return 8 + 8 * count


def expected_image(data: bytes, metas: bytes, *, header_size: int, txnid: int) -> Oracle:
    """Work out the image of `data`, the file as read while `txnid` was pinned, with these meta pages."""
    page_size = len(metas) // 2
    meta = (txnid & 1) * page_size + header_size
    last_page = struct.unpack_from("=Q", metas, meta + 24 + 96)[0]
    oracle = Oracle(data, header_size, page_size, bytearray((last_page + 1) * page_size))
    oracle.expected[: 2 * page_size] = metas
    free_root, main_root = (struct.unpack_from("=Q", metas, meta + 24 + at)[0] for at in (40, 88))
    oracle.walk(free_root, freelist=True)
    oracle.walk(main_root)
    return oracle
