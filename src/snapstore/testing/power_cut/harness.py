"""Cuts the power: recordings are taken and looked through, several at once, and the results added up.

Decides how many, from which seeds, and what is kept; the work is done by the files below.

Each recording is one process, in a mount namespace of its own with a memory file system of its own:
whatever ends it, the kernel takes mounts, devices and images away.
"""

from __future__ import annotations

import contextlib
import functools
import os
import random
import secrets
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from snapstore.testing.power_cut import kernel
from snapstore.testing.power_cut.children import Child, in_parallel
from snapstore.testing.power_cut.errors import PowerCutUnavailable, needed
from snapstore.testing.power_cut.examination import Examiner, Findings
from snapstore.testing.power_cut.filesystems import FILE_SYSTEMS
from snapstore.testing.power_cut.recording import Recording
from snapstore.testing.power_cut.states import SEED_MAX, CrashState

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence

    from snapstore.testing.power_cut.examination import Check
    from snapstore.testing.power_cut.recording import Workload

#: Enough to meet most moments of a workload of some dozen saves; then a new recording shows more.
STATES_PER_RECORDING = 250

#: One recording with its states takes seconds, on a slow machine minutes.
RECORDING_S_MAX = 3600.0

#: A saver that fails so often needs no more proof.
VIOLATIONS_MAX = 10


@dataclass(frozen=True, slots=True)
class Violation:
    """A crash state that the check found wrong, with what it said.

    `recording` is the directory where its recording is kept, or None: `PowerCut.replay` takes both.
    """

    state: CrashState
    problems: tuple[str, ...]
    recording: Path | None

    def __str__(self) -> str:
        where = f" (recording {self.recording})" if self.recording else ""
        return f"state {self.state}{where}: {'; '.join(self.problems)}"


@dataclass(frozen=True, slots=True)
class PowerCutReport:
    """What a run came to. `distinct` states were mounted and checked, out of `drawn`.

    Those that the file system itself could not mount are counted in `unmountable`, too; they say
    nothing about a saver. `elapsed_s` in seconds.
    """

    filesystem: str
    seed: int
    recordings: int = 0
    drawn: int = 0
    distinct: int = 0
    unmountable: int = 0
    violations: tuple[Violation, ...] = ()
    elapsed_s: float = 0.0

    def __str__(self) -> str:
        rate = self.distinct / self.elapsed_s * 60 if self.elapsed_s else 0.0
        head = (
            f"{self.filesystem}: {self.distinct} distinct states of {self.drawn} drawn"
            f" in {self.recordings} recordings, {self.unmountable} unmountable,"
            f" {len(self.violations)} violations; seed {self.seed}, {rate:.0f} states a minute"
        )
        return "\n".join([head, *map(str, self.violations)])


class PowerCut:
    """Shows what a power cut, at any moment of a workload, leaves on a real file system.

    `filesystem` is "ext4", "xfs" or "btrfs". `atom_size`, in bytes, is what the disk writes whole or
    not at all: 4096, or 512 for disks that promise no more. `log_beside` is the thread that fsyncs a
    log on the same file system all the while. `jobs` recordings are looked through at once; by default
    one for each processor. `keep` is the directory where recordings with violations are kept, to be
    replayed; None keeps none.

    Needs root, /dev/fuse, loop devices, the file system's mkfs, libfuse3, and the extra `powercut`.
    """

    def __init__(
        self,
        filesystem: str = "ext4",
        *,
        atom_size: int = 4096,
        log_beside: bool = True,
        jobs: int | None = None,
        keep: Path | None = None,
    ) -> None:
        if filesystem not in FILE_SYSTEMS:
            raise ValueError(f"{filesystem!r} is none of {', '.join(FILE_SYSTEMS)}")
        if atom_size < 1:
            raise ValueError(f"atom_size must be 1 or more, not {atom_size}")
        self.filesystem = filesystem
        self._atom_size = atom_size
        self._log_beside = log_beside
        self._jobs = jobs or len(os.sched_getaffinity(0))
        self._keep = keep

    def run(
        self,
        workload: Workload,
        check: Check,
        *,
        states: int = 2000,
        seed: int | None = None,
        violations_max: int = VIOLATIONS_MAX,
        progress: Callable[[PowerCutReport], None] | None = None,
    ) -> PowerCutReport:
        """Check `states` distinct crash states, or fewer when `violations_max` were wrong before.

        `workload(path, mark)` writes below `path`, the root of a new file system, and says by `mark`
        what it promises: `mark.begin(index)` before a save, `mark.ok(index)` after it, and
        `mark.gone(index)` before a removal. It runs in a process of its own. `check(path, begun,
        reported)` looks at what a power cut left: indexes in `begun` may be there, those in `reported`
        must; it may write, must close what it opens, and returns what is wrong, or nothing. Both are
        called in forked processes: what they change in this one's memory is lost.

        `seed` draws the states; the moments of a recording are the machine's, so that a violation is
        seen again by `replay` and not by its seed alone. `progress` gets the sum after each recording.

        Raises PowerCutUnavailable where the machine cannot, WorkloadFailed when workload or harness do.
        """
        _check_machine()
        seed = secrets.randbelow(SEED_MAX) if seed is None else seed
        report = PowerCutReport(self.filesystem, seed)
        began_s = time.monotonic()
        looked_at = self._recordings(workload, check, states, violations_max, seed)
        with contextlib.closing(looked_at):  # At once, also when this is left by an exception.
            for findings, kept in looked_at:
                report = _with(report, findings, kept, time.monotonic() - began_s)
                if progress is not None:
                    progress(report)
                if len(report.violations) >= violations_max:
                    break
        return report

    def replay(self, recording: Path, state: CrashState | str, check: Check) -> Sequence[str]:
        """Return what `check` says of one state of a kept recording; nothing if all is well."""
        _check_machine()
        wanted = CrashState.from_text(state) if isinstance(state, str) else state
        with tempfile.TemporaryDirectory(prefix="snapstore-power-cut-") as scratch:

            def look_at() -> Findings:
                with (
                    _own_memory(Path(scratch)) as work,
                    Examiner(Recording.kept(recording), work, check) as examiner,
                ):
                    return examiner.look_at(wanted)

            with Child(look_at) as child:
                findings = child.result(RECORDING_S_MAX)
        if findings.unmountable:
            return ["the file system cannot be mounted"]
        return [problem for _, problems in findings.violations for problem in problems]

    def _recordings(
        self, workload: Workload, check: Check, states: int, violations_max: int, seed: int
    ) -> Generator[tuple[Findings, Path | None], None, None]:
        """Yield what each recording came to, and where it is kept, as they end."""

        def look_at_one(number: int, states: int, seed_of_one: int) -> tuple[Findings, Path | None]:
            with _own_memory(scratch) as work:
                kind = FILE_SYSTEMS[self.filesystem]
                recording = Recording.take(kind, work, workload, log_beside=self._log_beside)
                with Examiner(recording, work, check) as examiner:
                    findings = examiner.look(states, violations_max, seed_of_one, self._atom_size)
                if self._keep is None or not findings.violations:
                    return findings, None
                self._keep.mkdir(parents=True, exist_ok=True)
                kept = Path(tempfile.mkdtemp(prefix=f"{self.filesystem}-{seed}-{number}-", dir=self._keep))
                recording.keep(kept)
                return findings, kept

        source = random.Random(seed)
        calls = (
            functools.partial(
                look_at_one, number, min(STATES_PER_RECORDING, states - first), source.randint(0, SEED_MAX)
            )
            for number, first in enumerate(range(0, states, STATES_PER_RECORDING))
        )
        with tempfile.TemporaryDirectory(prefix="snapstore-power-cut-") as name:
            scratch = Path(name)
            yield from in_parallel(calls, self._jobs, RECORDING_S_MAX)


def _with(report: PowerCutReport, found: Findings, kept: Path | None, elapsed_s: float) -> PowerCutReport:
    violations = tuple(Violation(state, problems, kept) for state, problems in found.violations)
    return replace(
        report,
        recordings=report.recordings + 1,
        drawn=report.drawn + found.drawn,
        distinct=report.distinct + found.distinct,
        unmountable=report.unmountable + found.unmountable,
        violations=report.violations + violations,
        elapsed_s=elapsed_s,
    )


@contextlib.contextmanager
def _own_memory(path: Path) -> Iterator[Path]:
    """A memory file system at `path` that only this process, and those it forks, can see."""
    with contextlib.ExitStack() as exits:
        with needed("a mount namespace of its own"):
            kernel.enter_own_namespace()
            exits.enter_context(kernel.mounted("power-cut", path, "tmpfs", "mode=0700,size=90%"))
        yield path


def _check_machine() -> None:
    if os.geteuid() != 0:
        raise PowerCutUnavailable("mounting needs root")
    for path in ("/dev/fuse", "/dev/loop-control"):
        if not Path(path).exists():
            raise PowerCutUnavailable(f"there is no {path} here")
