"""Disks that say of themselves what a test wants, and sources for them."""

from __future__ import annotations

import contextlib
import os
import re
from types import SimpleNamespace

import pytest

from nodes import UNIT
from residue import descriptors
from snapstore.directory import SnapshotDir
from snapstore.errors import NoRoom
from snapstore.meta import SnapshotMeta

GIB = 1024**3
MIB = 1024**2

#: A file that an attempt may be kept in, or one without a name.
UNDER_WAY = re.compile(r"\.part-[0-9a-f]{16}\Z|#[0-9]+ \(deleted\)\Z")


class FakeDisk:
    """What `statvfs` says of a disk of `size` bytes: `free`, but for what saves under way have allocated."""

    def __init__(self, free, size=None):
        self.free, self.size = free, size or free
        self.asked = 0

    def statvfs(self, fd):
        self.asked += 1
        path = os.readlink(f"/proc/self/fd/{fd}")
        sizes = {}
        for number, target in descriptors():
            if os.path.dirname(target) == path and UNDER_WAY.match(os.path.basename(target)):
                with contextlib.suppress(OSError):  # Published or removed meanwhile.
                    status = os.stat(f"/proc/self/fd/{number}")
                    sizes[status.st_ino] = status.st_blocks * 512
        free = max(0, self.free - sum(sizes.values()))
        return SimpleNamespace(f_bavail=free // 4096, f_blocks=self.size // 4096, f_frsize=4096)

    def open(self, path, **options):
        return SnapshotDir(path, statvfs=self.statvfs, **options)


def offered(directory, index, size):
    """Begin to receive so much."""
    return directory.receive(SnapshotMeta(index), size=size, chunk_size=UNIT)


def refusal(begun):
    with pytest.raises(NoRoom) as raised, begun:
        pytest.fail("it was accepted")
    return raised.value


class Whole:
    """So many bytes that nobody announced."""

    def __init__(self, size):
        self._left = size

    def read(self, size):
        count = min(size, self._left)
        self._left -= count
        return bytes(count)
