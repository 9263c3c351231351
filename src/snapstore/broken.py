"""Snapshots that were found broken: out of the way under another name, for somebody to look at.

Renames and counts; whether a snapshot is broken is stored.py's to say. A broken one is never deleted
on the spot: what it still has may be all there is, and the disk or the memory may be what is at fault.

Names: `%016x.broken-N` the bytes and `%016x.broken-N.json` their manifest, where there was one. N is
one more than the highest in the directory, so that it tells the order in which they were set aside.
"""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from snapstore import _fastpipe, disk

if TYPE_CHECKING:
    from pathlib import Path

    from snapstore.stored import SavedSnapshot

#: Each takes as much of the disk as a snapshot does. The last few show whether it happens again.
BROKEN_MAX = 4

_BROKEN_NAME = re.compile(r"([0-9a-f]{16})\.broken-([1-9][0-9]*)(?:\.json)?\Z")


@dataclass(frozen=True, slots=True)
class BrokenSnapshot:
    """A snapshot that was set aside; its `size` in bytes. The highest `number` came last."""

    number: int
    index: int
    path: Path
    size: int


def broken_name(index: int, number: int) -> str:
    """Return the name of a broken snapshot's bytes."""
    return f"{index:016x}.broken-{number}"


def broken_manifest_name(index: int, number: int) -> str:
    """Return the name of the manifest that belongs to `broken_name(index, number)`."""
    return f"{index:016x}.broken-{number}.json"


def list_broken(directory: int, path: Path) -> list[BrokenSnapshot]:
    """Return what was set aside in the directory at `path`, the oldest first."""
    found = []
    for number, index in _numbered(directory):
        status = disk.regular_status(directory, broken_name(index, number))
        if status is not None:
            found.append(BrokenSnapshot(number, index, path / broken_name(index, number), status.st_size))
    return found


def set_aside(directory: int, saved: SavedSnapshot) -> Path | None:
    """Rename what was read as `saved`; where it is now, or None where it is gone.

    Only the very file that was read: another one may have come under its name meanwhile. One that
    somebody else has set aside already stays where it is. Whoever holds a lease reads on. The oldest
    beyond BROKEN_MAX are removed. Needs `disk.sync_directory` to last.
    """
    assert saved.identity is not None
    name, parent = disk.snapshot_name(saved.index), saved.path.parent
    # Nobody else gives names meanwhile, so that the number is free until the rename.
    with _fastpipe.DirectoryLock(directory):
        taken = _numbered(directory)
        for number, index in taken:
            if _inode(directory, broken_name(index, number)) == saved.identity.inode:
                return parent / broken_name(index, number)
        if _inode(directory, name) != saved.identity.inode:
            return None
        number = taken[-1][0] + 1 if taken else 1
        # The bytes first: a kill in between leaves a manifest alone, which the next opening sweeps.
        _rename(directory, name, broken_name(saved.index, number))
        if disk.regular_status(directory, disk.manifest_name(saved.index)) is not None:
            _rename(directory, disk.manifest_name(saved.index), broken_manifest_name(saved.index, number))
        _remove_oldest(directory, [*taken, (number, saved.index)])
    return parent / broken_name(saved.index, number)


def _numbered(directory: int) -> list[tuple[int, int]]:
    """The number and the index of each name that is taken, ascending."""
    names = disk.list_names(directory)
    return sorted(
        {(int(found[2]), int(found[1], 16)) for name in names if (found := _BROKEN_NAME.match(name))}
    )


def _inode(directory: int, name: str) -> int | None:
    status = disk.regular_status(directory, name)
    return None if status is None else status.st_ino


def _rename(directory: int, name: str, target: str) -> None:
    os.rename(name, target, src_dir_fd=directory, dst_dir_fd=directory)


def _remove_oldest(directory: int, taken: list[tuple[int, int]]) -> None:
    for number, index in taken[:-BROKEN_MAX]:
        for name in (broken_name(index, number), broken_manifest_name(index, number)):
            with contextlib.suppress(FileNotFoundError, IsADirectoryError):
                os.unlink(name, dir_fd=directory)
