"""Which store made a snapshot, seen by its first bytes: LMDB, SQLite or bbolt, and what its head tells.

Reads a few pages of a file that nobody has vouched for: whatever its head says wrongly makes it a file
of no known kind, or of one whose head is damaged, and never an error.
"""

from __future__ import annotations

import contextlib
import struct
from typing import TYPE_CHECKING, Any

from snapstore.errors import SnapshotCorrupt
from snapstore.etcd.bolt import HEAD_SIZE, BoltMeta, head_size, read_stream_head
from snapstore.etcd.revision import read_revision
from snapstore.kv.lmdb_file import META_SIZE_MAX, DataMeta

if TYPE_CHECKING:
    from snapstore._fastpipe import Image

#: Behind its magic: page size; at 18 the write version (2: WAL); at 24 changes and pages.
_SQLITE = struct.Struct(">16sHB5xII")
_SQLITE_MAGIC = b"SQLite format 3\0"
_SQLITE_WAL = 2

#: `MDB_db` in mdb.c: padding, flags, depth, branch, leaf and overflow pages, entries, root page.
_LMDB_TREE = struct.Struct("=IHHQQQQQ")

#: `etcdctl snapshot save` puts a SHA-256 of the database behind it.
_ETCD_DIGEST_SIZE = 32


def describe_image(image: Image) -> dict[str, Any]:
    """Return what the first bytes of `image` tell: `store`, and what is known of it. Sizes in bytes.

    `store` is "lmdb", "sqlite", "bbolt", "empty" or "unknown". OSError where it cannot be read.
    """
    if not image.size:
        return {"store": "empty"}
    head = _read(image, 0, max(HEAD_SIZE, META_SIZE_MAX))
    if head.startswith(_SQLITE_MAGIC) and len(head) >= _SQLITE.size:
        return _sqlite(head)
    for describe in (_lmdb, _bbolt):
        try:
            return describe(image, head)
        except SnapshotCorrupt:
            continue
    return {"store": "unknown"}


def _sqlite(head: bytes) -> dict[str, Any]:
    _, page_size, write_version, changes, pages = _SQLITE.unpack_from(head)
    return {
        "store": "sqlite",
        "page_size": 65536 if page_size == 1 else page_size,
        "pages": pages,
        "change_counter": changes,
        "journal": "wal" if write_version == _SQLITE_WAL else "rollback",
    }


def _lmdb(image: Image, head: bytes) -> dict[str, Any]:
    first = DataMeta.parse(head)
    metas = [first]
    with contextlib.suppress(SnapshotCorrupt):  # One of the two may be torn, and the other counts.
        metas.append(DataMeta.parse(_read(image, first.page_size, META_SIZE_MAX)))
    newer = max(metas, key=lambda meta: meta.txnid)
    _, _, depth, *_, entries, _ = _LMDB_TREE.unpack(newer.main_db)
    return {
        "store": "lmdb",
        "data_format": newer.version,
        "page_size": newer.page_size,
        "pages": newer.last_page + 1,
        "txn_id": newer.txnid,
        "entries": entries,
        "depth": depth,
    }


def _bbolt(image: Image, head: bytes) -> dict[str, Any]:
    meta = read_stream_head(_read(image, 0, head_size(head)))
    told = {"store": "bbolt", "page_size": meta.page_size, "pages": meta.page_count, "txn_id": meta.txid}
    revision = _revision(image, meta)
    return told if revision is None else {**told, "etcd_revision": revision}


def _revision(image: Image, meta: BoltMeta) -> int | None:
    """The revision of etcd that it stands at; None where the database is not etcd's."""
    if image.size - meta.size not in (0, _ETCD_DIGEST_SIZE):
        return None
    try:
        return read_revision(image, meta.size)
    except SnapshotCorrupt:
        return None


def _read(image: Image, offset: int, size: int) -> bytes:
    """As many of these bytes as there are."""
    buffer, done = memoryview(bytearray(size)), 0
    while done < size and (count := image.readinto(buffer[done:], offset + done)):
        done += count
    return bytes(buffer[:done])
