"""bbolt's meta pages: what they tell of the whole, and that no damage to them is believed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etcd_peers import database, meta_page, meta_record
from snapstore.errors import SnapshotCorrupt, SnapshotTruncated
from snapstore.etcd import bolt

GOOD = database(8)


def test_the_checksum_is_fnv1a():
    # From the page of its authors.
    assert bolt.fnv1a64(b"") == 0xCBF29CE484222325
    assert bolt.fnv1a64(b"a") == 0xAF63DC4C8601EC8C
    assert bolt.fnv1a64(b"foobar") == 0x85944171F73967E8


@pytest.mark.parametrize("page_size", [1024, 4096, 16384, 65536])
def test_the_first_bytes_tell_the_size(page_size):
    whole = database(5, page_size=page_size)
    needed = bolt.head_size(whole[: bolt.HEAD_SIZE])
    assert needed == page_size + 80
    meta = bolt.read_stream_head(whole[:needed])
    assert (meta.page_size, meta.size, meta.txid, meta.root) == (page_size, len(whole), 9, 3)
    with pytest.raises(SnapshotTruncated):
        bolt.read_stream_head(whole[: needed - 1])


def test_a_size_is_right_or_wrong():
    meta = bolt.read_stream_head(GOOD)
    bolt.check_size(meta, len(GOOD))
    with pytest.raises(SnapshotTruncated, match=f"has {len(GOOD) - 1} bytes of {len(GOOD)}"):
        bolt.check_size(meta, len(GOOD) - 1)
    with pytest.raises(SnapshotCorrupt, match="1 more than its pages") as caught:
        bolt.check_size(meta, len(GOOD) + 1)
    assert not isinstance(caught.value, SnapshotTruncated)


@given(st.sampled_from([0, 4096]), st.integers(16 * 8, 80 * 8 - 1))
def test_no_flipped_bit_of_a_record_is_believed(page, bit):
    head = bytearray(GOOD[: bolt.HEAD_SIZE])
    head[page + bit // 8] ^= 1 << bit % 8
    with pytest.raises(SnapshotCorrupt):
        bolt.read_stream_head(bytes(head))


@given(st.binary(max_size=300), st.integers(0, 8192))
def test_anything_is_a_head_or_corrupt(garbage, start):
    head = bytearray(GOOD[: bolt.HEAD_SIZE])
    head[start : start + len(garbage)] = garbage
    try:
        meta = bolt.read_stream_head(bytes(head))
    except SnapshotCorrupt:
        return
    assert meta == bolt.read_stream_head(GOOD)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"magic": 1}, "not a bbolt database"),
        ({"version": 3}, "of version 3"),
        ({"page_count": 3}, "points out of"),
        ({"page_count": 2**60}, "points out of"),
        ({"root": 8}, "points out of"),
        ({"freelist": 8}, "points out of"),
    ],
)
def test_a_record_that_cannot_be_is_refused(changes, reason):
    fields = {"page_size": 4096, "page_count": 8, "txid": 9, **changes}
    with pytest.raises(SnapshotCorrupt, match=reason):
        bolt.read_stream_head(meta_page(0, **fields) + meta_page(1, **fields | {"txid": 8}))


@pytest.mark.parametrize("page_size", [0, 512, 4095, 131072, 2**31])
def test_a_page_size_that_no_system_has_is_refused(page_size):
    record = meta_record(0, page_size=page_size, page_count=8, txid=9)
    with pytest.raises(SnapshotCorrupt, match=f"of {page_size} bytes"):
        bolt.head_size(record)


def test_records_of_two_transactions_are_not_one_snapshot():
    first = meta_page(0, page_size=4096, page_count=8, txid=9)
    for changes in ({"txid": 9}, {"txid": 7}, {"page_count": 9}, {"root": 4}, {"page_size": 1024}):
        second = meta_page(1, **{"page_size": 4096, "page_count": 8, "txid": 8, **changes})
        with pytest.raises(SnapshotCorrupt, match="not one bbolt transaction"):
            bolt.read_stream_head(first + second)
    with pytest.raises(SnapshotCorrupt, match="meta page 1 is page 0"):
        bolt.read_stream_head(first + first)


def test_a_file_is_read_as_bbolt_opens_it(tmp_path):
    path = tmp_path / "db"
    older, newer = ({"page_size": 4096, "page_count": count, "txid": count} for count in (6, 7))
    pages = bytes(5 * 4096)
    for content, count in [
        (meta_page(0, **older) + meta_page(1, **newer) + pages, 7),
        (meta_page(0, **newer) + meta_page(1, **older) + pages, 7),
        (bytes(4096) + meta_page(1, **newer) + pages, 7),
        (meta_page(0, **older) + bytes(4096) + pages, 6),
        (meta_page(0, **newer) + bytes(4096) + pages + bytes(2**16), 7),  # grown ahead of its pages
    ]:
        path.write_bytes(content)
        assert bolt.read_file(path).page_count == count


def test_a_file_that_is_none_or_too_short(tmp_path):
    path = tmp_path / "db"
    path.write_bytes(b"")
    with pytest.raises(SnapshotTruncated):
        bolt.read_file(path)
    path.write_bytes(bytes(2**17))
    with pytest.raises(SnapshotCorrupt, match="not a bbolt database"):
        bolt.read_file(path)
    path.write_bytes(GOOD[:-1])
    with pytest.raises(SnapshotTruncated, match=f"{len(GOOD) - 1} bytes of {len(GOOD)}"):
        bolt.read_file(path)
