"""One recording looked through: its crash states made, mounted, checked and counted.

Knows nothing of how a recording was taken, nor of what the check looks for.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from snapstore.testing.power_cut import kernel
from snapstore.testing.power_cut.errors import WorkloadFailed
from snapstore.testing.power_cut.image import CrashImages
from snapstore.testing.power_cut.log import Mark
from snapstore.testing.power_cut.states import CrashState, Timeline
from snapstore.testing.problems import told, told_by

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from collections.abc import Set as AbstractSet
    from pathlib import Path
    from typing import TypeAlias

    from typing_extensions import Self

    from snapstore.testing.power_cut.recording import Recording
    from snapstore.testing.problems import Found

#: Looks at the file system at a path: the indexes that may be there, those that must; what is wrong.
Check: TypeAlias = "Callable[[Path, AbstractSet[int], AbstractSet[int]], Found]"

#: So many are drawn at once, to be made in the order of the log: each pass writes it all anew.
_BATCH = 1000

#: What mount answers when it was asked wrongly; the rest is what it thinks of the image.
_NOT_THE_IMAGE = {errno.EPERM, errno.EBUSY, errno.ENODEV, errno.ENOTBLK}

#: A recording that shows nothing new in a whole batch has shown it all.
_NEW_PER_BATCH_MIN = 1


@dataclass(slots=True)
class Findings:
    """What one recording, or all of a run, came to. All of these are counts of states."""

    drawn: int = 0
    distinct: int = 0
    unmountable: int = 0
    violations: list[tuple[CrashState, tuple[str, ...]]] = field(default_factory=list)


class Examiner:
    """Makes crash states of one recording and lets `check` look at each. For `with`; one thread."""

    def __init__(self, recording: Recording, work: Path, check: Check) -> None:
        self._recording = recording
        self._work = work
        self._check = check
        self._timeline = Timeline(recording.records())
        self._exits = contextlib.ExitStack()
        if not any(isinstance(record, Mark) for record in self._timeline.records):
            raise WorkloadFailed("the workload marked nothing, so there is nothing to check")

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as exits:
            descriptors = []
            for path, mode in ((self._recording.origin, "rb"), (self._work / "durable", "x+b"),
                               (self._work / "crashed", "x+b")):  # fmt: skip
                descriptors.append(exits.enter_context(path.open(mode, buffering=0)).fileno())
            self._images = CrashImages(*descriptors)
            os.ftruncate(descriptors[2], self._images.size)
            self._device = exits.enter_context(kernel.attached(self._work / "crashed"))
            self._mountpoint = self._work / "after"
            self._mountpoint.mkdir()
            self._exits = exits.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._exits.close()

    def look(self, states: int, violations_max: int, seed: int, atom_size: int) -> Findings:
        """Check up to `states` distinct states, drawn from `seed`; fewer where there are no more."""
        found = Findings()
        seen: set[tuple[int, object]] = set()
        drawn = self._timeline.draw(random.Random(seed), atom_size)
        while found.distinct < states:
            before = found.distinct
            batch = sorted(itertools.islice(drawn, _BATCH))
            for state in self._made(batch, seen, found):
                self._look_at(state, found)
                if found.distinct >= states or len(found.violations) >= violations_max:
                    return found
            if found.distinct - before < _NEW_PER_BATCH_MIN:
                break
        return found

    def look_at(self, state: CrashState) -> Findings:
        """Check this one."""
        found = Findings()
        for made in self._made([state], set(), found):
            self._look_at(made, found)
        return found

    def _made(
        self, states: Sequence[CrashState], seen: set[tuple[int, object]], found: Findings
    ) -> Iterator[CrashState]:
        """Yield each state, which is then on the device, in the order of the log; those seen are left out."""
        self._images.rewind()
        durable = 0
        for state in states:
            flushed = self._timeline.flushed(state.cut)
            self._images.flush(self._timeline.writes(durable, flushed))
            durable = flushed
            arrived = self._timeline.arrived(state)
            found.drawn += 1
            self._device.forget()
            if self._images.make(arrived, seen, self._timeline.said(state.cut)[1]):
                found.distinct += 1
                yield state

    def _look_at(self, state: CrashState, found: Findings) -> None:
        begun, reported = self._timeline.said(state.cut)
        kind = self._recording.file_system
        with contextlib.ExitStack() as exits:
            try:
                mounted = kernel.mounted(self._device.path, self._mountpoint, kind.name, kind.mount_options)
                path = exits.enter_context(mounted)
            except OSError as error:
                if error.errno in _NOT_THE_IMAGE:
                    raise
                found.unmountable += 1
                return
            try:
                problems = told(self._check(path, begun, reported))
            except Exception as error:  # noqa: BLE001 - what the check cannot stand is what it is there to find
                problems = told_by(error)
        if problems:
            found.violations.append((state, problems))
