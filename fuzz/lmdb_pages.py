"""The walk over an LMDB file's trees and the scrubbing of its pages, behind what the meta pages say."""

from __future__ import annotations

import errno

from fuzz.lmdb_file import compare_pieces, environment
from fuzz.peers import file_with
from fuzz.runs import expand, pack
from snapstore import _fastpipe
from snapstore.errors import SnapshotCorrupt
from snapstore.kv.lmdb_file import DataMeta

_RECORD_SIZE = 48


def check(data: bytes) -> bool:
    """A byte: page size and header size; one more: the last page; two DB records; pages, with runs."""
    if len(data) < 2 + 2 * _RECORD_SIZE:
        return False
    page_size, header_size = 256 << (data[0] & 7) % 5, 24 if data[0] & 8 else 16
    free_db, main_db = data[2 : 2 + _RECORD_SIZE], data[2 + _RECORD_SIZE : 2 + 2 * _RECORD_SIZE]
    image = expand(data[2 + 2 * _RECORD_SIZE :])
    with file_with(image) as fd:
        try:
            page_map = _fastpipe.LmdbPageMap(fd, page_size, header_size, free_db, main_db, max(1, data[1]))
        except SnapshotCorrupt:
            return False
        except OSError as error:
            if error.errno != errno.EIO:  # The file ends before its last page.
                raise
            return False
        assert page_map.pages_walked <= max(1, data[1]) + 1
        compare_pieces(fd, len(image) - len(image) % page_size, page_map)
    return True


def _input(image: bytes) -> bytes:
    meta = max(DataMeta.parse(image), DataMeta.parse(image[4096:]), key=lambda found: found.txnid)
    selector = (meta.page_size // 256).bit_length() - 1 | (8 if meta.header_size == 24 else 0)
    return bytes([selector, meta.last_page]) + meta.free_db + meta.main_db + pack(image)


def seeds() -> dict[str, bytes]:
    """Environments with free pages, overflow values and duplicates, and one whose pages are no pages."""
    big = _input(environment(big=True, named=False))
    return {
        "good-plain": _input(environment(big=False, named=False)),
        "good-big": big,
        "good-named": _input(environment(big=True, named=True)),
        "bad-pages": big[: 2 + 2 * _RECORD_SIZE] + pack(b"\xee" * 40000),
        "bad-short": big[: 2 + 2 * _RECORD_SIZE],
    }
