"""What a pinned LMDB transaction costs, held against the oracle that walks the whole file."""

from __future__ import annotations

import random
import struct
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import lmdb
import pytest

from lmdb_oracle import Oracle, expected_image
from snapstore.errors import SnapshotCorrupt
from snapstore.kv.lmdb import LmdbKV
from snapstore.kv.lmdb_file import HEADER_SIZES, DataMeta
from snapstore.kv.lmdb_freelist import pages_waiting_for

if TYPE_CHECKING:
    from pathlib import Path

    from snapstore.kv.lmdb import LmdbSnapshot

MAP_SIZE = 1 << 28
PAGE_SIZE = 4096

try:
    lmdb.version(lib_version=1)
    FORMATS: list[dict[str, Any]] = [{"lib_version": 0}, {"lib_version": 1}]
except (TypeError, lmdb.Error):
    FORMATS = [{}]


def written(kv: LmdbKV, count: int, *, transactions: int = 1) -> None:
    """Overwrite `count` of 2,000 records in each transaction; values of all lengths up to two pages."""
    choose = random.Random(count)
    for _ in range(transactions):
        with kv.env.begin(write=True) as txn:
            for _ in range(count):
                txn.put(b"%08d" % choose.randrange(2000), choose.randbytes(choose.randrange(2 * PAGE_SIZE)))


def oracle_of(path: Path, snapshot: LmdbSnapshot) -> Oracle:
    """The whole file as of `snapshot`, the newest: nobody may write meanwhile."""
    metas = bytearray(2 * PAGE_SIZE)
    snapshot.image().readinto(metas, 0)
    version = DataMeta.parse(bytes(metas[:256])).version
    data = (path / "data.mdb").read_bytes()
    return expected_image(data, bytes(metas), header_size=HEADER_SIZES[version], txnid=snapshot.txnid)


@pytest.mark.parametrize("options", FORMATS, ids=str)
def test_a_pin_costs_the_pages_that_the_next_writer_could_use(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    with LmdbKV(tmp_path, map_size=MAP_SIZE, sync=False, **options) as kv:
        written(kv, 900, transactions=3)  # Its records lie on pages of their own.
        with kv.snapshot() as older:
            written(kv, 2, transactions=40)
            with kv.snapshot() as snapshot:
                assert snapshot.pages_held == 0
                written(kv, 900)
                written(kv, 2, transactions=150)  # Enough records for a freelist with branches.
                with kv.snapshot() as now:
                    freed = oracle_of(tmp_path, now).freed
                    for pin in (older, snapshot, now):
                        waiting = sum(freed[txnid] for txnid in range(pin.txnid, now.txnid))
                        assert pin.pages_held == waiting
                    assert len(freed) > 150
                    assert min(freed[snapshot.txnid], freed[now.txnid]) > 0, "the ends say nothing"
                assert snapshot.bytes_held == snapshot.pages_held * PAGE_SIZE > 0
        assert (snapshot.pages_held, snapshot.bytes_held) == (0, 0)


def test_what_a_pin_costs_is_there_for_the_next_writer_when_it_ends(tmp_path: Path) -> None:
    with LmdbKV(tmp_path, map_size=MAP_SIZE, sync=False) as kv:
        written(kv, 900, transactions=3)
        snapshot = kv.snapshot()
        written(kv, 900, transactions=3)
        cost, last_page = snapshot.pages_held, kv.env.info()["last_pgno"]
        snapshot.close()
        with kv.env.begin(write=True) as txn:  # One page for each value, and some for the tree.
            for number in range(cost // 2):
                txn.put(b"new %d" % number, bytes(PAGE_SIZE - 100))
        assert cost > 1000
        assert kv.env.info()["last_pgno"] == last_page


def test_a_freelist_that_contradicts_itself_is_an_error(tmp_path: Path) -> None:
    with LmdbKV(tmp_path, map_size=MAP_SIZE) as kv:
        written(kv, 100, transactions=3)
    with open(tmp_path / "data.mdb", "r+b") as data:
        pages = data.read(2 * PAGE_SIZE)
        meta = max((DataMeta.parse(pages[at:]) for at in (0, PAGE_SIZE)), key=lambda meta: meta.txnid)
        assert pages_waiting_for(data.fileno(), meta, 0) > 0
        root = int.from_bytes(meta.free_db[40:], "little")
        for number in (0, 1, 2**40, 2**64 - 2):  # A meta page; beyond the file; beyond all files.
            broken = replace(meta, free_db=meta.free_db[:40] + number.to_bytes(8, "little"))
            with pytest.raises(SnapshotCorrupt):
                pages_waiting_for(data.fileno(), broken, 0)
        size = meta.header_size
        for at, value in ((size - 6, 0x01), (size - 6, 0x04), (size - 4, 0xFFFF), (size, 0xFFFF)):
            data.seek(root * PAGE_SIZE + at)
            whole = data.read(2)
            data.seek(root * PAGE_SIZE + at)
            data.write(value.to_bytes(2, "little"))
            data.flush()
            with pytest.raises(SnapshotCorrupt):
                pages_waiting_for(data.fileno(), meta, 0)
            data.seek(root * PAGE_SIZE + at)
            data.write(whole)
            data.flush()
        assert pages_waiting_for(data.fileno(), meta, 0) > 0


def page_of(flags: int, nodes: list[bytes]) -> bytes:
    """A page of data format 1 with these nodes, each 16 bytes or a multiple."""
    places = [PAGE_SIZE - sum(map(len, nodes[number:])) for number in range(len(nodes))]
    head = bytes(10) + struct.pack("=HHH", flags, 16 + 2 * len(nodes), places[0])
    return (head + struct.pack(f"={len(nodes)}H", *places)).ljust(places[0], b"\0") + b"".join(nodes)


def leaf_of(txnid: int, count: int) -> bytes:
    """A leaf with one record: what this transaction has freed."""
    return page_of(0x02, [struct.pack("=HHHHQQ", 8, 0, 0, 8, txnid, count)])


def branch_to(*children: tuple[int, int]) -> bytes:
    """A branch to these pages, each with the key that it begins with."""
    return page_of(0x01, [struct.pack("=HHHHQ", number, 0, 0, 8, key) for number, key in children])


def count_in(path: Path, pages: list[bytes], root: int, pin: int) -> int:
    """What is counted in the tree of `pages`, of which the first is page 2, for a pin of this transaction."""
    path.write_bytes(bytes(2 * PAGE_SIZE) + b"".join(pages))
    tree = struct.pack("=I", PAGE_SIZE).ljust(40, b"\0") + root.to_bytes(8, "little")
    meta = DataMeta(bytes(16), 1, 0, 0, tree, bytes(48), len(pages) + 1, 9)
    with open(path, "rb") as data:
        return pages_waiting_for(data.fileno(), meta, pin)


@pytest.mark.parametrize(("pin", "waiting"), [(4, 1110), (5, 1110), (6, 1100), (7, 1000), (8, 0), (9, 0)])
def test_a_record_counts_wherever_a_branch_divides(tmp_path: Path, pin: int, waiting: int) -> None:
    """Of the subtree before the pin's own record nothing is read, of the one that ends with it all."""
    pages = [branch_to((3, 3), (4, 5), (5, 6), (6, 7), (7, 9))]
    pages += [leaf_of(txnid, count) for txnid, count in ((3, 1), (5, 10), (6, 100), (7, 1000), (9, 10_000))]
    assert count_in(tmp_path / "data.mdb", pages, 2, pin) == waiting


def test_a_tree_that_leads_to_a_page_twice_is_an_error_and_not_walked_again_and_again(tmp_path: Path) -> None:
    """Two ways from each page to the next make 2 to the power of the depth: LMDB's 32 would never end."""
    last = 12
    pages = [branch_to((number + 1, 1), (number + 1, 2)) for number in range(2, last)] + [leaf_of(1, 5)]
    assert count_in(tmp_path / "data.mdb", pages, last, 0) == 5
    with pytest.raises(SnapshotCorrupt):
        count_in(tmp_path / "data.mdb", pages, 2, 0)
