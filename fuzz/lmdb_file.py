"""LMDB data files to be restored: the meta pages, the trees, and LMDB's own view of them."""

from __future__ import annotations

import os
from pathlib import Path

import lmdb

from fuzz.peers import directory, file_with
from fuzz.runs import expand, pack
from snapstore import _fastpipe
from snapstore.errors import SnapshotCorrupt
from snapstore.kv.lmdb_file import META_PAGES, META_SIZE_MAX, DataMeta, check_data_file


def check(data: bytes) -> bool:
    """The input is the file, with runs."""
    image = expand(data)
    with file_with(image) as fd:
        try:
            meta = check_data_file(fd, f"/proc/self/fd/{fd}")
        except SnapshotCorrupt:  # SnapshotTruncated is one.
            return False
        assert len(image) <= meta.size
        for number in range(META_PAGES):
            assert DataMeta.parse(meta.page(number)[:META_SIZE_MAX]).txnid == meta.txnid
        assert max(map(_txnid, _pages(meta.both_pages(), meta.page_size))) == meta.txnid
        compare_pieces(fd, len(image) - len(image) % meta.page_size, meta.page_map(fd))
    return True


def _pages(data: bytes, page_size: int) -> list[bytes]:
    return [data[at : at + page_size] for at in range(0, len(data), page_size)]


def _txnid(page: bytes) -> int:
    return DataMeta.parse(page).txnid


def compare_pieces(fd: int, size: int, page_map: _fastpipe.LmdbPageMap) -> None:
    """Assert that an image of the file is the same read whole and in pieces, and that its holes are."""
    image = _fastpipe.Image(fd, size, page_map=page_map, close_fd=False)
    whole = bytearray(size)
    assert image.readinto(whole, 0) == size
    piece = bytearray(3 * page_map.page_size)
    for at in range(0, size, len(piece)):
        count = image.readinto(piece, at)
        assert piece[:count] == whole[at : at + count]
    # From the middle of a page to the middle of another.
    odd = bytearray(max(0, size - 100))
    assert image.readinto(odd, 50) == min(len(odd), max(0, size - 50))
    assert odd == whole[50 : 50 + len(odd)]
    end = 0
    for offset, length in page_map.zero_runs():
        assert offset >= end
        end = offset + length
        assert not any(whole[offset:end])


def environment(*, big: bool, named: bool) -> bytes:
    """Return a small data file; `big` with overflow values and free pages, `named` with a database."""
    with directory() as path:
        place = os.fspath(path / "db")
        with lmdb.open(place, subdir=False, max_dbs=1, map_size=1 << 20, sync=False, lock=False) as env:
            for turn in range(3 if big else 1):
                with env.begin(write=True) as txn:
                    txn.put(b"small", b"%d" % turn)
                    if big:
                        txn.put(b"large", b"x" * 5000)
            if named:
                pairs = env.open_db(b"pairs", dupsort=True)
                with env.begin(write=True, db=pairs) as txn:
                    for number in range(3):
                        txn.put(b"key", b"%d" % number)
        return Path(place).read_bytes()


def seeds() -> dict[str, bytes]:
    """An environment of each kind, and what is wrong with some."""
    plain = environment(big=False, named=False)
    big = environment(big=True, named=False)
    return {
        "good-plain": pack(plain),
        "good-big": pack(big),
        "good-named": pack(environment(big=True, named=True)),
        "bad-short": pack(plain[:8192]),
        "bad-long": pack(plain + bytes(4096)),
        "bad-magic": pack(bytes(24) + plain[24:]),
        "bad-page": pack(big[:8192] + b"\xee" * (len(big) - 8192)),
    }
