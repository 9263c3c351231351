"""A directory whose fsync failed: the marker that is left there, and what the next opening does about it.

The kernel tells of a failed fsync once, drops the pages that it could not write, and answers 0 the
next time. So no later fsync is believed: whoever opens the directory next, in whatever process, syncs
all that is there and then reads all of it back from the disk, past the page cache. Knows names and
order; what is broken is said by stored.py, and set aside by broken.py.

The marker binds openers only. An object that has the directory open meanwhile hears of a failure by its
own fsync, since the kernel tells each open file of it, or was not touched by it.

Names: `.poisoned-...` a marker, with 64 random bits, so that an opener removes the ones it has seen and
never one that was left while it was at work.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
from typing import TYPE_CHECKING

from snapstore import disk
from snapstore.broken import set_aside
from snapstore.errors import SnapshotCorrupt, SnapshotNotFound
from snapstore.stored import open_stored

if TYPE_CHECKING:
    from pathlib import Path

logger = logging.getLogger("snapstore")

_MARKER_NAME = re.compile(r"\.poisoned-[0-9a-f]{16}\Z")


def leave_marker(directory: int, words: str) -> None:
    """Tell the next opener that an fsync failed, and in which words; as well as a failing disk allows.

    Written through by O_SYNC, and not by another fsync of the directory, of which nobody could say
    what its success means. On a journaling file system that takes the marker's name along.
    """
    name = f".poisoned-{os.urandom(8).hex()}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_SYNC | os.O_CLOEXEC
    with contextlib.suppress(OSError):
        fd = os.open(name, flags, 0o600, dir_fd=directory)
        try:
            os.write(fd, f"an fsync failed: {words}\n".encode())
        finally:
            os.close(fd)


def recover(directory: int, path: Path) -> None:
    """Where a marker stands, trust nothing: sync all, read all back, set aside what is broken.

    Only then the markers go. Raises OSError, and leaves them, when an fsync fails again or something
    cannot be read. Takes as long as the disk needs for all snapshots. In a directory that we cannot
    change the markers stay, and so does what is broken, which no verifying reader gets.
    """
    markers = [name for name in disk.list_names(directory) if _MARKER_NAME.match(name)]
    if not markers:
        return
    logger.warning("an fsync of %s failed earlier; reading back all it has", path)
    indexes = [
        index
        for index in disk.snapshot_indexes(directory)
        if disk.regular_status(directory, disk.snapshot_name(index)) is not None
    ]
    for index in indexes:
        _sync_file(directory, path, disk.snapshot_name(index))
        _sync_file(directory, path, disk.manifest_name(index))
    disk.sync_directory(directory)
    for index in indexes:
        _read_back(directory, path, index)
    disk.sync_directory(directory)
    for name in markers:
        with disk.unless_read_only(), contextlib.suppress(FileNotFoundError):  # Another opener's doing.
            os.unlink(name, dir_fd=directory)
    disk.sync_directory(directory)


def _sync_file(directory: int, path: Path, name: str) -> None:
    if disk.regular_status(directory, name) is None:
        return
    try:
        fd = disk.open_regular(directory, name)
    except FileNotFoundError:  # Purged meanwhile.
        return
    try:
        os.fsync(fd)
    except OSError as error:
        error.filename = str(path / name)
        raise
    finally:
        os.close(fd)


def _read_back(directory: int, path: Path, index: int) -> None:
    try:
        stored = open_stored(directory, path / disk.snapshot_name(index), index, from_disk=True)
    except SnapshotNotFound:  # Purged meanwhile, or its saver is still at its own fsync.
        return
    with stored:
        try:
            stored.verify()
        except SnapshotCorrupt as error:
            with disk.unless_read_only():
                logger.warning("%s; it was set aside as %s", error, set_aside(directory, stored.saved))
