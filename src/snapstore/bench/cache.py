"""What the page cache holds of a file: all of it, or nothing.

Warm is a store that is being used, cold is one that is larger than memory or was just started.
"""

from __future__ import annotations

import os

#: As much is read at once: more is not faster.
_READ_SIZE = 1024 * 1024


def evict(path: str | os.PathLike[str]) -> None:
    """Have the page cache forget a file, so that its next reader gets it from the disk.

    What is not written yet is written first: dirty pages are not dropped (posix_fadvise(2)). Pages that a
    process has mapped stay, too.
    """
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def load(path: str | os.PathLike[str]) -> None:
    """Read a file, so that its next reader finds it in the page cache as far as memory allows."""
    buffer = bytearray(_READ_SIZE)
    with open(path, "rb", buffering=0) as file:
        while file.readinto(buffer):
            pass
