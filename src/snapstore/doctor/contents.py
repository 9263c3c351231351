"""What lies in a directory of snapshots: each name looked at, nothing changed, nothing waited for.

A node may be at work in it meanwhile: what is gone at a second look was never there. snapshots.py tells of
what is stored, leftovers.py of unfinished saves; what was set aside is found by broken.py.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from snapstore import disk
from snapstore.broken import BrokenSnapshot, list_broken
from snapstore.doctor.finding import Finding, Level
from snapstore.doctor.leftovers import Leftover, find_leftovers, is_leftover_name, judge_leftover
from snapstore.doctor.snapshots import Stored, judge_stored, look_at_stored

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from snapstore._fastpipe import Progress

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
    stored = look_at_stored(directory, path, read, progress)
    names = sorted(disk.list_names(directory))  # Behind it: reading takes long, and names go meanwhile.
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
        yield from judge_stored(found, contents.looked_at_s)
    if contents.newest_sound is None and any(found.readable for found in contents.stored):
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
            "look into the kernel's log (dmesg), test the disk (`smartctl -a`); then remove it and its .json",
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
