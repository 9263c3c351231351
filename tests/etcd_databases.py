"""Small databases of etcd for tests, built from bbolt's description and not by the code that reads them."""

from __future__ import annotations

import struct

PAGE_SIZE = 1024

LEAF, BRANCH, META, FREELIST = 2, 1, 4, 16
BUCKET = 1

#: The pages that every database here has: two metas, the free list, the root bucket.
ROOT = 3


def revision_key(main, sub=0, *, tombstone=False):
    return struct.pack(">QcQ", main, b"_", sub) + (b"t" if tombstone else b"")


def page(number, kind, count, body, *, overflow=0):
    return struct.pack("<QHHI", number, kind, count, overflow) + body


def leaf(number, *elements):
    """A leaf page, bare; each element is key and value, or key, value and flags."""
    heads, data, behind = b"", b"", 16 * len(elements)
    for place, (key, value, *flags) in enumerate(elements):
        position = behind - 16 * place + len(data)
        heads += struct.pack("<IIII", flags[0] if flags else 0, position, len(key), len(value))
        data += key + value
    return page(number, LEAF, len(elements), heads + data)


def branch(number, *elements):
    """A branch page, bare; each element is the first key below, and the page there."""
    heads, data, behind = b"", b"", 16 * len(elements)
    for place, (key, below) in enumerate(elements):
        heads += struct.pack("<IIQ", behind - 16 * place + len(data), len(key), below)
        data += key
    return page(number, BRANCH, len(elements), heads + data)


def bucket(name, root):
    """The element of a bucket whose root page is `root`, a number, or stands in the value, as bytes."""
    value = struct.pack("<QQ", root, 0) if isinstance(root, int) else struct.pack("<QQ", 0, 0) + root
    return name, value, BUCKET


def fnv1a64(data):
    value = 0xCBF29CE484222325
    for byte in data:
        value = (value ^ byte) * 0x100000001B3 % 2**64
    return value


def meta(number, page_count, txid, root=ROOT):
    record = struct.pack("<IIIIQQQQQ", 0xED0CDAED, 2, PAGE_SIZE, 0, root, 0, 2, page_count, txid)
    return page(number, META, 0, record + struct.pack("<Q", fnv1a64(record)))


def database(*pages):
    """A whole database of the root bucket's page and those behind it; a page may be longer than one."""
    blocks, count = [], ROOT
    for bare in pages:
        taken = -(-len(bare) // PAGE_SIZE)
        head = bare[:12] + struct.pack("<I", taken - 1)
        blocks.append((head + bare[16:]).ljust(taken * PAGE_SIZE, b"\0"))
        count += taken
    heads = [meta(0, count, 8), meta(1, count, 7), page(2, FREELIST, 0, b"")]
    return b"".join(head.ljust(PAGE_SIZE, b"\0") for head in heads) + b"".join(blocks)


def store(revision, *, filler=b"", notes=()):
    """An etcd's database at `revision`: one change, with `filler` as its value."""
    buckets = leaf(ROOT, bucket(b"key", ROOT + 1), bucket(b"meta", leaf(0, *notes)))
    return database(buckets, leaf(ROOT + 1, (revision_key(revision), filler)))
