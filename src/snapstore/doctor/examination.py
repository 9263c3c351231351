"""An examination: all that is found of one directory, as one value.

Looks in the order in which things depend on each other: what it is mounted on, whose it is, which calls
work, how fast they are, what lies in it. Changes nothing that lasts, unless told to fix.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snapstore.doctor.contents import Contents, judge_contents, look_into
from snapstore.doctor.finding import Finding, Level
from snapstore.doctor.mount import Mount, find_mount, judge_mount
from snapstore.doctor.pace import ROOM_TIMES, Pace, judge_pace, measure_pace
from snapstore.doctor.probes import (
    PROBE_SIZE,
    Probe,
    System,
    judge_probe,
    lacks_room,
    open_nameless,
    try_calls,
    try_names,
)  # fmt: skip
from snapstore.doctor.room import Room, judge_access, judge_room, look_at_room
from snapstore.doctor.treatment import Treatment, judge_treatment, treat

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from snapstore._fastpipe import Progress


@dataclass(frozen=True, slots=True)
class Examination:
    """What a directory has, what it stands on, and what is wrong with either.

    `pace` is None where it could not be measured, `treatment` where nothing was to be fixed.
    """

    path: Path
    contents: Contents
    mount: Mount | None
    room: Room
    probes: tuple[Probe, ...]
    pace: Pace | None
    treatment: Treatment | None
    findings: tuple[Finding, ...]

    @property
    def problems(self) -> tuple[Finding, ...]:
        """The findings for which something has to be changed."""
        return tuple(found for found in self.findings if found.level is Level.PROBLEM)

    def to_json(self) -> dict[str, Any]:
        """Return everything for machines; `findings` without what is well."""
        return {
            "path": str(self.path),
            **self.contents.to_json(),
            "file_system": self.mount.to_json() if self.mount else None,
            "room": self.room.to_json(),
            "calls": [probe.to_json() for probe in self.probes],
            "pace": self.pace.to_json() if self.pace else None,
            "fixed": self.treatment.to_json() if self.treatment else None,
            "findings": [found.to_json() for found in self.findings if found.level is not Level.OK],
        }


def examine(
    path: str | os.PathLike[str],
    *,
    read: bool = False,
    fix: bool = False,
    progress: Progress | None = None,
    system: System | None = None,
    now_s: Callable[[], float] = time.time,
) -> Examination:
    """Examine the existing directory at `path`; a node may be at work in it.

    With `read` every byte of every snapshot is read back from the disk, and `progress` counts them. With
    `fix` it is swept first, as an opening does, and what is left is examined. Without, no byte, no name
    and no time in it changes. `system` has the calls that are tried, `now_s` the seconds of the epoch.

    Takes a few seconds, and up to `PROBE_SIZE` bytes of room for a moment, where there is far more. Raises
    OSError where there is no directory, or it cannot be listed.
    """
    place, system = Path(path), system or System()
    directory = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        treatment = treat(place) if fix else None
        mount, room = find_mount(directory), look_at_room(directory)
        probes, pace = _try(directory, system, room, fix=fix)
        contents = look_into(directory, place, now_s=now_s(), read=read, progress=progress)
        findings = [*(judge_treatment(treatment) if treatment else ()), *judge_contents(contents)]
        findings += [*judge_mount(mount), *judge_access(directory)]
        findings += judge_room(room, contents.newest_sound.saved.size if contents.newest_sound else None)
        findings += [*map(judge_probe, probes), *_judge_speed(pace)]
        return Examination(place, contents, mount, room, probes, pace, treatment, tuple(findings))
    finally:
        os.close(directory)


def _try(directory: int, system: System, room: Room, *, fix: bool) -> tuple[tuple[Probe, ...], Pace | None]:
    """What works, and how fast it is. The descriptor is all that there is of what is written."""
    file, nameless = open_nameless(directory, system)
    try:
        probes = [nameless, *try_calls(directory, file, system, has_room=room.has(PROBE_SIZE))]
        probes += _try_names(directory, system, fix=fix, writable=nameless.untried is None)
        if file is None or not room.has(ROOM_TIMES * PROBE_SIZE) or any(map(lacks_room, probes)):
            return tuple(probes), None
        direct = any(probe.name == "O_DIRECT" and probe.failure is None for probe in probes)
        try:
            return tuple(probes), measure_pace(file, direct=direct)
        except OSError as error:
            return (*probes, Probe("write and fsync", f"{error.strerror}", code=error.errno or 0)), None
    finally:
        if file is not None:
            os.close(file)


def _try_names(directory: int, system: System, *, fix: bool, writable: bool) -> Iterator[Probe]:
    if not writable:
        yield Probe("renameat2", untried="this user cannot write here now")
    elif fix:
        yield try_names(directory, system)
    else:
        yield Probe("renameat2", untried="it takes a name for a moment; --fix tries it")


def _judge_speed(pace: Pace | None) -> Iterator[Finding]:
    if pace is not None:
        yield from judge_pace(pace)
    else:
        yield Finding("speed", "speed", Level.OK, "not measured: it takes a nameless file and some room")
