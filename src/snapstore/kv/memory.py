"""A dict that can be pinned: the KV of tests and of examples.

Bytes in memory only: no files are made, nothing survives the process. It offers no image on
purpose, so that a snapshot of it goes the long way, through a pump thread and a pipe.

Plan: the content is one dict, and a snapshot shares it. The first change after a pin copies the dict
and leaves the old one to the snapshots, so pinning costs nothing and a content nobody changes is
never copied. The format of a snapshot stands at `MAGIC`.
"""

from __future__ import annotations

import hashlib
import os
import struct
import threading
from typing import TYPE_CHECKING

from snapstore.errors import ForkedProcess, PipeClosed, SnapshotCorrupt, SnapshotTruncated

if TYPE_CHECKING:
    from typing_extensions import Buffer, Self

    from snapstore.protocols import Reader, Writer

#: A snapshot: this, the number of items (u64), then for each item in the order of the keys the length
#: of its key (u32), of its value (u32), key and value, then the SHA-256 of all that. Big-endian, so
#: that a dump of it can be read.
MAGIC = b"snapmem1"

#: A longer key or value is a mistake in a KV that lives in memory, and in a snapshot it is damage.
ITEM_SIZE_MAX = 1024**3

_HEAD = struct.Struct(">8sQ")
_LENGTHS = struct.Struct(">II")

#: Items are gathered up to this many bytes before they are written, since each write has its price.
_BLOCK_SIZE = 256 * 1024


class MemoryKV:
    """A key-value store in a dict; keys and values are bytes. Safe to use from any thread.

    `size_known=False` gives snapshots whose `size` is None, as backends have them that learn their
    size by writing. After a fork the child's copy raises `ForkedProcess`.

    >>> kv = MemoryKV()
    >>> kv.put(b"motto", b"complete or nothing")
    >>> snapshot = kv.snapshot()
    >>> kv.delete(b"motto")
    True
    >>> import io; image = io.BytesIO(); _ = snapshot.write_to(image); snapshot.close()
    >>> _ = image.seek(0); kv.restore(image); kv.get(b"motto")
    b'complete or nothing'
    """

    def __init__(self, *, size_known: bool = True) -> None:
        self._size_known = size_known
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._items: dict[bytes, bytes] = {}
        self._size = _size_of(self._items)
        self._shared = False  # A snapshot reads this very dict, so it must not change.

    def get(self, key: Buffer, /) -> bytes | None:
        """Return the value of `key`, or None."""
        self._check_process()
        with self._lock:
            return self._items.get(_as_bytes(key))

    def put(self, key: Buffer, value: Buffer, /) -> None:
        """Set `key` to `value`; both are copied. ValueError beyond `ITEM_SIZE_MAX` bytes."""
        self._check_process()
        key, value = _as_bytes(key), _as_bytes(value)
        with self._lock:
            self._unshare()
            self._size += _item_size(key, value) - self._forget(key)
            self._items[key] = value

    def delete(self, key: Buffer, /) -> bool:
        """Remove `key`; tells whether it was there."""
        self._check_process()
        with self._lock:
            self._unshare()
            freed = self._forget(_as_bytes(key))
            self._size -= freed
            return bool(freed)

    def items(self) -> list[tuple[bytes, bytes]]:
        """Return all items as of now, in the order of their keys."""
        self._check_process()
        with self._lock:
            return sorted(self._items.items())

    def __len__(self) -> int:
        return len(self._items)

    def __repr__(self) -> str:
        return f"<MemoryKV of {len(self)} items>"

    def snapshot(self) -> MemorySnapshot:
        """Pin the content as it is now. O(1); the next change copies the dict once (8 bytes an item)."""
        self._check_process()
        with self._lock:
            self._shared = True
            return MemorySnapshot(self._items, self._size, size_known=self._size_known)

    def restore(self, source: str | os.PathLike[str] | Reader, /) -> None:
        """Replace the content by the snapshot in `source`, a path or a reader of bytes.

        The source is read and checked wholly before anything is replaced. Raises `SnapshotTruncated`
        when it ends early and `SnapshotCorrupt` when it is anything else than one whole snapshot.
        """
        self._check_process()
        if isinstance(source, (str, os.PathLike)):
            with open(source, "rb") as reader:
                items = _read_items(reader)
        else:
            items = _read_items(source)
        with self._lock:
            self._items, self._size, self._shared = items, _size_of(items), False

    def _unshare(self) -> None:
        if self._shared:
            self._items, self._shared = dict(self._items), False

    def _forget(self, key: bytes) -> int:
        """Remove `key` and return how many bytes of a snapshot it took."""
        value = self._items.pop(key, None)
        return 0 if value is None else _item_size(key, value)

    def _check_process(self) -> None:
        # The lock may have been held by another thread at the fork; then it is held for ever here.
        if os.getpid() != self._pid:
            raise ForkedProcess("this MemoryKV was made before a fork; make a new one in the child")


class MemorySnapshot:
    """The content of a `MemoryKV` as of one moment; made by `MemoryKV.snapshot`."""

    def __init__(self, items: dict[bytes, bytes], size: int, *, size_known: bool) -> None:
        self._items: dict[bytes, bytes] | None = items
        self._size = size if size_known else None
        self._pid = os.getpid()

    @property
    def size(self) -> int | None:
        """Its length in bytes; None where the KV was made with `size_known=False`."""
        return self._size

    def write_to(self, writer: Writer, /) -> int:
        """Write the image and return its length. The same bytes each time.

        Raises `PipeClosed` once the snapshot is closed, in the middle too.
        """
        if os.getpid() != self._pid:
            raise ForkedProcess("this snapshot was pinned before a fork; only the parent can read it")
        items = self._content()
        digest = hashlib.sha256()
        written = 0
        block = bytearray(_HEAD.pack(MAGIC, len(items)))
        for key in sorted(items):
            value = items[key]
            block += _LENGTHS.pack(len(key), len(value))
            block += key
            block += value
            if len(block) >= _BLOCK_SIZE:
                digest.update(block)
                written += self._write(writer, block)
                block = bytearray()
        digest.update(block)
        block += digest.digest()
        return written + self._write(writer, block)

    def close(self) -> None:
        """Let go of the content; any thread, any number of times."""
        self._items = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_args: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<MemorySnapshot {'closed' if self._items is None else 'pinned'}>"

    def _write(self, writer: Writer, block: bytearray) -> int:
        self._content()
        writer.write(block)
        return len(block)

    def _content(self) -> dict[bytes, bytes]:
        items = self._items
        if items is None:
            raise PipeClosed("the snapshot is closed")
        return items


def _as_bytes(part: Buffer) -> bytes:
    whole = bytes(memoryview(part))
    if len(whole) > ITEM_SIZE_MAX:
        raise ValueError(f"a key or value of {len(whole)} bytes is over the limit of {ITEM_SIZE_MAX}")
    return whole


def _item_size(key: bytes, value: bytes) -> int:
    return _LENGTHS.size + len(key) + len(value)


def _size_of(items: dict[bytes, bytes]) -> int:
    content = sum(_item_size(key, value) for key, value in items.items())
    return _HEAD.size + content + hashlib.sha256().digest_size


class _Input:
    """Reads exact lengths from a reader and digests what it reads."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._digest = hashlib.sha256()

    def take(self, size: int) -> bytes:
        """Return the next `size` bytes; allocates as they arrive, so a damaged length costs nothing."""
        taken = bytearray()
        while len(taken) < size:
            part = self._reader.read(min(size - len(taken), _BLOCK_SIZE))
            if not part:
                raise SnapshotTruncated("the bytes ended before the snapshot did")
            taken += part
        self._digest.update(taken)
        return bytes(taken)

    def check_digest(self) -> None:
        """Compare the digest of all that was taken with the one that comes next."""
        digest = self._digest.digest()
        if self.take(len(digest)) != digest:
            raise SnapshotCorrupt("the digest of the snapshot does not match its bytes")

    def check_end(self) -> None:
        if self._reader.read(1):
            raise SnapshotCorrupt("the snapshot is followed by bytes that do not belong to it")


def _read_items(reader: Reader) -> dict[bytes, bytes]:
    """Read one whole snapshot; nothing may follow it."""
    source = _Input(reader)
    magic, count = _HEAD.unpack(source.take(_HEAD.size))
    if magic != MAGIC:
        raise SnapshotCorrupt(f"these bytes are no snapshot of a MemoryKV: they do not start with {MAGIC!r}")
    items: dict[bytes, bytes] = {}
    last = None
    for _ in range(count):
        key_size, value_size = _LENGTHS.unpack(source.take(_LENGTHS.size))
        if max(key_size, value_size) > ITEM_SIZE_MAX:
            raise SnapshotCorrupt(f"an item of {max(key_size, value_size)} bytes is over {ITEM_SIZE_MAX}")
        key = source.take(key_size)
        if last is not None and key <= last:
            raise SnapshotCorrupt("the keys of the snapshot are not in their order")
        last = key
        items[key] = source.take(value_size)
    source.check_digest()
    source.check_end()
    return items
