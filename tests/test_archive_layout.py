"""How an archive cuts a snapshot: parts within S3's limits, and reads that cover every byte once."""

from __future__ import annotations

import pytest

pytest.importorskip("obstore", reason="THE ARCHIVE IS NOT TESTED: snapstore[s3] is not installed")

from snapstore.archive import layout
from snapstore.archive.layout import PART_SIZE_MAX, PARTS_MAX, Inventory
from snapstore.errors import SnapshotTooLarge
from snapstore.manifest import Manifest
from snapstore.meta import SnapshotMeta

MIB = 1024**2
GIB = 1024**3
CHUNK_SIZE = 256 * 1024


def test_parts_are_as_large_as_the_limits_ask():
    assert layout.part_size_for(0, 4 * MIB) == 16 * MIB
    assert layout.part_size_for(GIB, 4 * MIB, 1) == 8 * MIB  # At least 5 MiB, in whole chunks.
    assert layout.part_size_for(GIB, 12 * MIB) == 24 * MIB
    for size in (160_000 * MIB, 160_000 * MIB + 1, 32 * 1024 * GIB):
        part_size = layout.part_size_for(size, 4 * MIB)
        assert -(-size // part_size) <= PARTS_MAX
        assert (part_size % (4 * MIB), part_size <= PART_SIZE_MAX) == (0, True)
    with pytest.raises(SnapshotTooLarge, match="10000 parts of 5368709120 bytes"):
        layout.part_size_for(PARTS_MAX * PART_SIZE_MAX + 1, 4 * MIB)


@pytest.mark.parametrize("start", [0, 1, layout.READ_SIZE_MAX, 20 * CHUNK_SIZE, 99 * CHUNK_SIZE])
def test_reads_cover_every_byte_once_and_stay_small(start):
    size, part_size = 100 * CHUNK_SIZE + 7, 80 * CHUNK_SIZE
    manifest = Manifest(SnapshotMeta(7), size, 0, CHUNK_SIZE, (0,) * 101)
    at = start
    for read in Inventory(manifest, part_size).reads(start):
        assert (read.part.offset + read.start, 0 < read.size <= layout.READ_SIZE_MAX) == (at, True)
        assert read.start + read.size <= read.part.size
        at += read.size
    assert at == size
