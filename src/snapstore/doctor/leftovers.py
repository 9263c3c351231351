"""What was left over in a directory by savers, living and dead: found, and why it stays or goes. Reads only.

What goes is decided by `disk.sweep` and `reception.stale_partials`; here their rules are told, not
carried out. Whether a saver lives is seen by its lock, which is asked for, shared, and given back at once.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from snapstore import disk
from snapstore.doctor.finding import Finding, Level
from snapstore.reception import note_name, partial_name, stale_partials

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

#: A saver locks its file a moment after it has made it, and writes to it only then.
JUST_MADE_S = 1.0

#: Names that are left over when their saver is gone. A test compares them with what makes names.
_TEMP = re.compile(r"\.tmp-([0-9a-f]{16})-[0-9a-f]{16}\Z")
_PART = re.compile(r"\.part-([0-9a-f]{16})(?:\.json)?\Z")
_MANIFEST = re.compile(r"([0-9a-f]{16})\.json\Z")


@dataclass(frozen=True, slots=True)
class Leftover:
    """A file of a save that has not come to its end. `size` in bytes, `age_s` since it was written to.

    `note` is the name of what stands beside kept chunks. `held`: its saver lives. `why` says why the
    next sweep takes it; None where that lets it stay.
    """

    name: str
    index: int
    size: int
    age_s: float
    held: bool
    why: str | None
    note: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return it for machines."""
        return asdict(self)


def is_leftover_name(name: str) -> bool:
    """Whether only a saver gives such a name, for as long as a save is not finished."""
    return bool(_TEMP.match(name) or _PART.match(name))


def find_leftovers(
    directory: int, names: Sequence[str], newest_sound: int | None, now_s: float
) -> Iterator[Leftover]:
    """Yield what is left over among `names`; `now_s` in seconds of the epoch.

    `newest_sound` is the highest index with a sound manifest: older ones are no longer offered.
    """
    yield from _temps(directory, names, now_s)
    yield from _partials(directory, names, 0 if newest_sound is None else newest_sound + 1, now_s)
    yield from _lone_manifests(directory, names, now_s)


def _temps(directory: int, names: Sequence[str], now_s: float) -> Iterator[Leftover]:
    for name in names:
        found = _TEMP.match(name)
        status = disk.regular_status(directory, name) if found else None
        held = _is_held(directory, name) if status else None
        if found and status and held is not None:
            age_s = _age_s(status, now_s)
            held = held or (status.st_size == 0 and age_s < JUST_MADE_S)
            why = None if held else "its saver was killed"
            yield Leftover(name, int(found[1], 16), status.st_size, age_s, held, why)


def _partials(directory: int, names: Sequence[str], lowest: int, now_s: float) -> Iterator[Leftover]:
    stale = stale_partials(directory, names, lowest, now_s)
    for index in sorted({int(found[1], 16) for name in names if (found := _PART.match(name))}):
        name, note = partial_name(index), note_name(index)
        status, noted = disk.regular_status(directory, name), disk.regular_status(directory, note)
        held = None if status is None else _is_held(directory, name)
        if status and held is not None:
            why = None if held else stale.get(index)
            age_s = _age_s(status, now_s)
            yield Leftover(name, index, status.st_size, age_s, held, why, note if noted else None)
        elif status is None and noted and index in stale:
            yield _alone(note, index, noted, now_s, "a note without its chunks")


def _lone_manifests(directory: int, names: Sequence[str], now_s: float) -> Iterator[Leftover]:
    """A manifest is named a moment before its snapshot: nobody may be naming anything meanwhile."""
    if not _without_snapshot(names):
        return
    with _nobody_naming(directory) as certain:
        for index in _without_snapshot(disk.list_names(directory)) if certain else ():
            status = disk.regular_status(directory, disk.manifest_name(index))
            if status:
                name, why = disk.manifest_name(index), "a manifest without its snapshot"
                yield _alone(name, index, status, now_s, why)


def _alone(name: str, index: int, status: os.stat_result, now_s: float, why: str) -> Leftover:
    return Leftover(name, index, status.st_size, _age_s(status, now_s), False, why)


def _without_snapshot(names: Sequence[str]) -> list[int]:
    manifests = {int(found[1], 16) for name in names if (found := _MANIFEST.match(name))}
    return sorted(index for index in manifests if disk.snapshot_name(index) not in set(names))


@contextlib.contextmanager
def _nobody_naming(directory: int) -> Iterator[bool]:
    """Keep savers from naming anything meanwhile; False where one is at it just now. Never waits."""
    fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(fd)


def _is_held(directory: int, name: str) -> bool | None:
    """Whether a living process has the file's lock; None where the file is gone meanwhile.

    A saver that comes to take it at this very moment is told that it is busy, and tries again.
    """
    try:
        fd = disk.open_regular(directory, name)
    except FileNotFoundError:
        return None
    except OSError:  # Not ours to read: then nobody's whose lock we could see.
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False if os.fstat(fd).st_nlink else None
    except BlockingIOError:
        return True
    finally:
        os.close(fd)


def _age_s(status: os.stat_result, now_s: float) -> float:
    return max(0.0, now_s - status.st_mtime)


def judge_leftover(leftover: Leftover) -> Finding:
    """Return what something that was left over means."""
    size, age_s, name = leftover.size, leftover.age_s, leftover.name
    if leftover.held:
        seen = f"index {leftover.index} is being saved"
        return Finding("saving", name, Level.OK, seen, size=size, age_s=age_s)
    if leftover.why is None:
        seen = f"kept of index {leftover.index} by a cut transfer, for its next attempt"
        return Finding("kept", name, Level.OK, seen, size=size, age_s=age_s)
    return Finding(
        "left-over",
        name,
        Level.HINT,
        f"left over: {leftover.why}",
        "it takes room, and nothing else",
        "`snapstore doctor --fix DIR` removes it; so does a node when it opens the directory",
        size=size,
        age_s=age_s,
    )
