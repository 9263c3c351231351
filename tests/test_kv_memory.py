"""The memory KV's own: its format, its limits, and what sharing the dict must not let through."""

from __future__ import annotations

import hashlib
import io
import struct

import pytest

from snapstore.errors import SnapshotCorrupt, SnapshotTruncated
from snapstore.kv import memory
from snapstore.kv.memory import MAGIC, MemoryKV


def image_of(kv: MemoryKV) -> bytes:
    image = io.BytesIO()
    with kv.snapshot() as snapshot:
        snapshot.write_to(image)
    return image.getvalue()


def sealed(content: bytes) -> bytes:
    return content + hashlib.sha256(content).digest()


def item(key: bytes, value: bytes) -> bytes:
    return struct.pack(">II", len(key), len(value)) + key + value


def test_the_format_is_the_documented_one():
    kv = MemoryKV()
    kv.put(b"b", b"")
    kv.put(b"a", b"value")
    content = MAGIC + struct.pack(">Q", 2) + item(b"a", b"value") + item(b"b", b"")
    assert image_of(kv) == sealed(content)


def test_the_order_of_the_puts_does_not_show():
    one, other = MemoryKV(), MemoryKV()
    for number in range(1000):
        one.put(b"%d" % number, b"x")
        other.put(b"%d" % (999 - number), b"x")
    assert image_of(one) == image_of(other)


def test_an_empty_kv_round_trips():
    kv = MemoryKV()
    kv.put(b"old", b"content")
    kv.restore(io.BytesIO(image_of(MemoryKV())))
    assert kv.items() == []


def test_get_put_and_delete_take_any_bytes_and_copy_them():
    kv = MemoryKV()
    value = bytearray(b"value")
    kv.put(memoryview(b"key"), value)
    value[:] = b"other"
    assert kv.get(bytearray(b"key")) == b"value"
    assert kv.delete(b"key") is True
    assert kv.delete(b"key") is False
    assert kv.get(b"key") is None
    with pytest.raises(TypeError, match="bytes-like"):
        kv.put("text", b"")  # type: ignore[arg-type]


def test_every_pin_keeps_its_own_moment():
    kv = MemoryKV()
    snapshots = []
    for number in range(5):
        kv.put(b"key", b"%d" % number)
        snapshots.append(kv.snapshot())
    kv.delete(b"key")
    for number, snapshot in enumerate(snapshots):
        image = io.BytesIO()
        assert snapshot.write_to(image) == snapshot.size
        follower = MemoryKV()
        follower.restore(io.BytesIO(image.getvalue()))
        assert follower.items() == [(b"key", b"%d" % number)]
    assert len(kv) == 0


def test_a_restore_does_not_reach_into_a_snapshot():
    kv = MemoryKV()
    kv.put(b"key", b"pinned")
    before = image_of(kv)
    snapshot = kv.snapshot()
    kv.restore(io.BytesIO(image_of(MemoryKV())))
    kv.put(b"key", b"later")
    image = io.BytesIO()
    snapshot.write_to(image)
    assert image.getvalue() == before


def test_the_size_follows_puts_overwrites_deletes_and_restores():
    kv = MemoryKV()
    kv.put(b"one", b"1" * 100)
    kv.put(b"one", b"1" * 7)
    kv.put(b"two", b"")
    kv.delete(b"one")
    kv.delete(b"absent")
    assert kv.snapshot().size == len(image_of(kv))
    other = MemoryKV()
    other.restore(io.BytesIO(image_of(kv)))
    other.put(b"three", b"3")
    assert other.snapshot().size == len(image_of(other))


def test_an_item_over_the_limit_is_refused_on_both_ways(monkeypatch):
    kv = MemoryKV()
    kv.put(b"key", b"v" * 11)
    image = image_of(kv)
    monkeypatch.setattr(memory, "ITEM_SIZE_MAX", 10)
    with pytest.raises(ValueError, match="over the limit"):
        kv.put(b"key", b"v" * 11)
    with pytest.raises(SnapshotCorrupt, match="over 10"):
        kv.restore(io.BytesIO(image))


@pytest.mark.parametrize("keys", [(b"b", b"a"), (b"a", b"a")])
def test_keys_out_of_order_are_refused(keys):
    content = MAGIC + struct.pack(">Q", 2) + b"".join(item(key, b"") for key in keys)
    with pytest.raises(SnapshotCorrupt, match="order"):
        MemoryKV().restore(io.BytesIO(sealed(content)))


def test_no_bit_can_flip_unnoticed():
    kv = MemoryKV()
    kv.put(b"key", b"value")
    kv.put(b"other", b"thing")
    image = image_of(kv)
    for bit in range(len(image) * 8):
        bad = bytearray(image)
        bad[bit // 8] ^= 1 << bit % 8
        with pytest.raises(SnapshotCorrupt):
            kv.restore(io.BytesIO(bad))
    for length in range(len(image)):
        with pytest.raises(SnapshotTruncated):
            kv.restore(io.BytesIO(image[:length]))
    assert image_of(kv) == image
