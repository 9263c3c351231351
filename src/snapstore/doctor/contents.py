"""What lies in a directory of snapshots: each name looked at, nothing changed, nothing waited for.

A node may be at work in it meanwhile: what is gone at a second look was never there. Snapshots are
found and read by stored.py, what was set aside by broken.py; leftovers.py tells of unfinished saves.
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from snapstore import disk
from snapstore.broken import BrokenSnapshot, list_broken
from snapstore.doctor.finding import Finding, Level
from snapstore.doctor.leftovers import Leftover, find_leftovers, is_leftover_name, judge_leftover
from snapstore.errors import SnapshotCorrupt, SnapshotNotFound
from snapstore.stored import SavedSnapshot, find_saved, open_stored

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from snapstore._fastpipe import Progress

#: A node that saves and purges quicker than it can be looked at so often has no need of a doctor.
LOOKS_MAX = 8

#: What is said of names that are none of ours; a directory may have as many as it likes.
STRANGERS_SHOWN_MAX = 20

#: A marker says in one line which error it was.
_MARKER_SIZE_MAX = 4096

_OURS = re.compile(r"[0-9a-f]{16}\.(?:db|json)\Z")
_BROKEN = re.compile(r"[0-9a-f]{16}\.broken-[1-9][0-9]*(?:\.json)?\Z")
_MARKER = re.compile(r"\.poisoned-[0-9a-f]{16}\Z")

#: What a file system puts at its own top.
_FILE_SYSTEMS_OWN = {"lost+found"}


@dataclass(frozen=True, slots=True)
class Stored:
    """A snapshot as it was found. `mode` its permissions, `saved_at_s` in seconds of the epoch.

    `read_back`: all its bytes came from the disk now, and were what its manifest says. `problem` is what
    is wrong with it, None where nothing is known to be.
    """

    saved: SavedSnapshot
    mode: int
    saved_at_s: float
    read_back: bool
    problem: str | None

    def to_json(self) -> dict[str, Any]:
        """Return it for machines."""
        return {
            **self.saved.to_json(),
            "path": str(self.saved.path),
            "saved_at_s": self.saved_at_s,
            "read_back": self.read_back,
            "problem": self.problem,
        }


@dataclass(frozen=True, slots=True)
class Contents:
    """All that a directory has. `misplaced` are strangers in places of ours, with what they are."""

    stored: tuple[Stored, ...]
    leftovers: tuple[Leftover, ...]
    broken: tuple[BrokenSnapshot, ...]
    markers: tuple[tuple[str, str], ...]
    misplaced: tuple[tuple[str, str], ...]
    strangers: tuple[str, ...]
    looked_at_s: float

    @property
    def newest_sound(self) -> Stored | None:
        """The snapshot that a node would restore; None where there is none."""
        return next((found for found in reversed(self.stored) if found.problem is None), None)

    def to_json(self) -> dict[str, Any]:
        """Return it for machines."""
        return {
            "snapshots": [found.to_json() for found in self.stored],
            "left_over": [found.to_json() for found in self.leftovers],
            "broken": [
                {"index": found.index, "size": found.size, "path": str(found.path)} for found in self.broken
            ],
            "fsync_failed": [{"name": name, "words": words} for name, words in self.markers],
            "misplaced": [{"name": name, "why": why} for name, why in self.misplaced],
            "strangers": list(self.strangers),
        }


def look_into(
    directory: int, path: Path, *, now_s: float, read: bool = False, progress: Progress | None = None
) -> Contents:
    """Return what an open directory has; `now_s` in seconds of the epoch.

    With `read` every byte of every snapshot is read from the disk, and `progress` counts them. Raises
    OSError where the directory itself cannot be read.
    """
    names = sorted(disk.list_names(directory))
    stored = _look_at_stored(directory, path, read, progress)
    newest = max((found.saved.index for found in stored if found.saved.problem is None), default=None)
    leftovers = tuple(find_leftovers(directory, names, newest, now_s))
    broken = tuple(list_broken(directory, path))
    known = {found.path.name for found in broken} | {f"{found.path.name}.json" for found in broken}
    known |= {found.name for found in leftovers} | {found.note for found in leftovers if found.note}
    return Contents(
        stored,
        leftovers,
        broken,
        tuple((name, _words(directory, name)) for name in names if _MARKER.match(name)),
        tuple(_misplaced(directory, names)),
        tuple(name for name in names if _is_strange(name) or (_BROKEN.match(name) and name not in known)),
        now_s,
    )


def _look_at_stored(directory: int, path: Path, read: bool, progress: Progress | None) -> tuple[Stored, ...]:
    """What is stored, oldest index first. Where some is purged meanwhile, what came instead is looked at."""
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
    read_back, problem = False, saved.problem
    if read:
        read_back, problem = _read_back(directory, saved, progress)
    return Stored(saved, stat.S_IMODE(status.st_mode), status.st_mtime, read_back, problem)


def _read_back(directory: int, saved: SavedSnapshot, progress: Progress | None) -> tuple[bool, str | None]:
    """Whether all of it was read and is right, and what is wrong."""
    try:
        with open_stored(directory, saved.path, saved.index, from_disk=True) as stored:
            stored.verify(progress)
    except SnapshotNotFound:  # A purge has it, or its saver has not let it go yet.
        return False, saved.problem
    except SnapshotCorrupt as error:
        return False, saved.problem or str(error).removeprefix(f"{saved.path}: ")
    except OSError as error:
        return False, f"it cannot be read now: {error.strerror}"
    return True, None


def _words(directory: int, name: str) -> str:
    try:
        return disk.read_small(directory, name, _MARKER_SIZE_MAX).decode("utf-8", "replace").strip()
    except OSError as error:
        return f"it cannot be read: {error.strerror}"


def _misplaced(directory: int, names: list[str]) -> Iterator[tuple[str, str]]:
    for name in names:
        ours = _OURS.match(name) or is_leftover_name(name) or _MARKER.match(name)
        if ours and disk.stranger_named(directory, name):
            try:
                os.close(disk.open_regular(directory, name))
            except FileNotFoundError:  # Gone meanwhile.
                continue
            except OSError as error:
                yield name, error.strerror or str(error)


def _is_strange(name: str) -> bool:
    ours = _OURS.match(name) or _BROKEN.match(name) or _MARKER.match(name) or is_leftover_name(name)
    return not ours and name not in _FILE_SYSTEMS_OWN


def judge_contents(contents: Contents) -> Iterator[Finding]:
    """Yield what each thing that was found means, the snapshots first."""
    for found in contents.stored:
        yield from _judge_stored(found, contents.looked_at_s)
    if contents.stored and contents.newest_sound is None:
        yield Finding(
            "none-sound",
            "snapshots",
            Level.PROBLEM,
            "none of them is sound",
            "this node cannot be restored from here",
            "fetch one from a peer: `snapstore fetch URL INDEX --dir DIR`",
        )
    for aside in contents.broken:
        yield Finding(
            "set-aside",
            aside.path.name,
            Level.PROBLEM,
            f"snapshot {aside.index} was found broken, and set aside",
            "the disk, the memory or a program changed bytes that had been right",
            "look into the kernel's log (dmesg) and test the disk (`smartctl -a`); then remove the file",
            size=aside.size,
        )
    for name, words in contents.markers:
        yield Finding(
            "fsync-failed",
            name,
            Level.PROBLEM,
            words,
            "what was saved around then may not be on the disk; the next opening reads all of it back",
            "look into the kernel's log (dmesg); with the disk mended, `snapstore doctor --fix DIR`",
        )
    yield from map(judge_leftover, contents.leftovers)
    for name, why in contents.misplaced:
        yield Finding(
            "misplaced",
            name,
            Level.PROBLEM,
            f"it has a name of ours: {why}",
            "it is neither read nor replaced, so no snapshot can have this name",
            "move it out of the directory",
        )
    if contents.strangers:
        yield _judge_strangers(contents.strangers)


def _judge_stored(found: Stored, now_s: float) -> Iterator[Finding]:
    saved, age_s = found.saved, max(0.0, now_s - found.saved_at_s)
    subject = disk.snapshot_name(saved.index)
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
            f"chmod 600 {saved.path}",
        )


def _judge_strangers(names: tuple[str, ...]) -> Finding:
    shown = ", ".join(ascii(name)[1:-1] for name in names[:STRANGERS_SHOWN_MAX])
    more = f", and {len(names) - STRANGERS_SHOWN_MAX} more" if len(names) > STRANGERS_SHOWN_MAX else ""
    return Finding(
        "strangers",
        "other files",
        Level.HINT,
        f"{len(names)} with names that are not ours: {shown}{more}",
        "nothing here reads, replaces or removes them",
        "move out of the directory what does not belong into it",
    )
