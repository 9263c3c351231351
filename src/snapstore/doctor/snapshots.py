"""The snapshots of a directory, each looked at and on demand read back: sound, broken, or not readable now.

How one is found and read is stored.py's. What is purged meanwhile was never there.
"""

from __future__ import annotations

import errno
import os
import shlex
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from snapstore import disk
from snapstore.doctor.finding import Finding, Level
from snapstore.errors import SnapshotCorrupt, SnapshotNotFound
from snapstore.manifest import MANIFEST_SIZE_MAX
from snapstore.stored import SavedSnapshot, find_saved, open_stored

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from snapstore._fastpipe import Progress

#: A node that saves and purges quicker than it can be looked at so often has no need of a doctor.
LOOKS_MAX = 8

#: What says something of the file: it is gone, too long for a manifest, or none of ours (see disk.py).
_TELLING = {errno.ENOENT, errno.EFBIG, errno.ELOOP, errno.EINVAL, errno.EMLINK, errno.EPERM}


@dataclass(frozen=True, slots=True)
class Stored:
    """A snapshot as it was found. `mode` its permissions, `saved_at_s` in seconds of the epoch.

    `read_back`: all its bytes came from the disk now, and were what its manifest says. `problem` is what
    is wrong with it, None where nothing is known to be. `readable` is False where that is only that it
    cannot be read now: by this user, or from this disk.
    """

    saved: SavedSnapshot
    mode: int
    saved_at_s: float
    read_back: bool
    problem: str | None
    readable: bool = True

    def to_json(self) -> dict[str, Any]:
        """Return it for machines."""
        return {
            **self.saved.to_json(),
            "path": str(self.saved.path),
            "saved_at_s": self.saved_at_s,
            "read_back": self.read_back,
            "problem": self.problem,
            "readable": self.readable,
        }


def look_at_stored(directory: int, path: Path, read: bool, progress: Progress | None) -> tuple[Stored, ...]:
    """Return what is stored, oldest index first; where some is purged meanwhile, what came in its place, too.

    With `read` every byte is read from the disk, and `progress` counts them.
    """
    found: dict[int, Stored | None] = {}
    for _ in range(LOOKS_MAX):
        indexes = [index for index in disk.snapshot_indexes(directory) if index not in found]
        for index in indexes:
            found[index] = _stored(directory, path, index, read, progress)
        if all(found[index] for index in indexes):
            break
    return tuple(stored for _, stored in sorted(found.items()) if stored)


def _stored(directory: int, path: Path, index: int, read: bool, progress: Progress | None) -> Stored | None:
    saved = find_saved(directory, path / disk.snapshot_name(index), index)
    # Asked for again behind the manifest, which a purge takes last: that is missing only from what is there.
    status = disk.regular_status(directory, disk.snapshot_name(index))
    if saved is None or status is None:
        return None
    read_back, problem, readable = False, saved.problem, True
    try:
        _check_readable(directory, saved)
        if read:
            read_back, problem = _read_back(directory, saved, progress)
    except OSError as error:
        problem, readable = f"it cannot be read now: {error.strerror}", False
    return Stored(saved, stat.S_IMODE(status.st_mode), status.st_mtime, read_back, problem, readable)


def _check_readable(directory: int, saved: SavedSnapshot) -> None:
    """OSError where it is for the moment, or for this user, that something cannot be read."""
    try:
        os.close(disk.open_regular(directory, disk.snapshot_name(saved.index)))
        if saved.manifest is None:
            disk.read_small(directory, disk.manifest_name(saved.index), MANIFEST_SIZE_MAX)
    except OSError as error:
        if error.errno not in _TELLING:
            raise


def _read_back(directory: int, saved: SavedSnapshot, progress: Progress | None) -> tuple[bool, str | None]:
    """Whether all of it was read and is right, and what is wrong. OSError where it cannot be read now."""
    try:
        with open_stored(directory, saved.path, saved.index, from_disk=True) as stored:
            stored.verify(progress)
    except SnapshotNotFound:  # A purge has it, or its saver has not let it go yet.
        return False, saved.problem
    except SnapshotCorrupt as error:
        return False, saved.problem or str(error).removeprefix(f"{saved.path}: ")
    return True, None


def judge_stored(found: Stored, now_s: float) -> Iterator[Finding]:
    """Yield what it means; `now_s` in seconds of the epoch."""
    saved, age_s = found.saved, max(0.0, now_s - found.saved_at_s)
    subject = disk.snapshot_name(saved.index)
    if not found.readable:
        yield Finding(
            "snapshot-unreadable",
            subject,
            Level.PROBLEM,
            found.problem or "",
            "nothing can be said of it, and nobody restores it as long as that lasts",
            "run this as the user of the node; where the disk fails, look into the kernel's log (dmesg)",
            size=saved.size,
            age_s=age_s,
        )
        return
    if found.problem is not None:
        yield Finding(
            "snapshot-broken",
            subject,
            Level.PROBLEM,
            found.problem,
            "no node restores it",
            "`snapstore verify DIR` reads it again and sets it aside where it is broken; then fetch another",
            size=saved.size,
            age_s=age_s,
        )
        return
    words = "every byte was read back" if found.read_back else "not read back; --read does"
    seen = f"index {saved.index}, term {saved.meta.term}; {words}"
    yield Finding("snapshot", subject, Level.OK, seen, size=saved.size, age_s=age_s)
    if found.mode & 0o077:
        yield Finding(
            "snapshot-mode",
            subject,
            Level.HINT,
            f"its mode is {found.mode:04o}",
            "other users can read what is in the store, or write to it",
            f"chmod 600 {shlex.quote(str(saved.path))}",
        )
