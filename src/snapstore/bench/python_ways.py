"""Durable copies as people write them in Python: the baselines that a user has at hand."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from snapstore.bench.ways import Way, nothing

if TYPE_CHECKING:
    from snapstore.bench.content import Content

#: shutil's own size, a usual one, and one of those that ought to be better because they are large.
BUFFER_SIZES = (64 * 1024, 1024 * 1024, 8 * 1024 * 1024)


def copyfileobj_ways(
    opened: Callable[[], AbstractContextManager[BinaryIO]],
    target: Path,
    content: Content,
    prepare: Callable[[], None] = nothing,
) -> Sequence[Way]:
    """Return `shutil.copyfileobj` and an fsync into `target`, once for each size of buffer.

    `opened()` gives what is read, anew for each run.
    """

    def copy(buffer_size: int) -> None:
        with opened() as source, open(target, "wb") as file:
            copy_durably(source, file, buffer_size)

    def check() -> None:
        content.check(target)
        os.unlink(target)

    return [
        Way(f"copyfileobj {size // 1024} KiB", lambda size=size: copy(size), check, prepare)  # type: ignore[misc]
        for size in BUFFER_SIZES
    ]


def copy_durably(source: BinaryIO, target: BinaryIO, buffer_size: int) -> None:
    """Copy all of `source`, and wait until it is on the disk."""
    shutil.copyfileobj(source, target, buffer_size)
    target.flush()
    os.fsync(target.fileno())
