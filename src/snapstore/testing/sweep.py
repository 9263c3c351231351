"""Every system call of a save, one after the other: killed before it, and failed in every way it can.

The save is the tester's own, whatever it is made of; what must hold afterwards is the tester's too.
Knows nothing of snapshots.

Plan: a point is the n-th call of a name and a fault there. A clean run tells which points there are;
each gets a run of its own in a new directory, and after it the tester's check. Runs that are killed
are clean ones up to the kill, so they tell too: where threads make calls in an order of their own,
points are added until no run shows a new one. Only clean runs add points: a call that is made because
another failed would be a second fault.
"""

from __future__ import annotations

import errno
import shutil
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snapstore.testing.call import Fail
from snapstore.testing.faults import PASSING, SIGKILL, faults_of, verdict_of
from snapstore.testing.problems import told
from snapstore.testing.tracer import TIMEOUT_S, Subject, trace

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from snapstore.testing.call import Call, Verdict
    from snapstore.testing.problems import Found
    from snapstore.testing.raised import Raised

#: How often a point is tried that the run did not come to; threads wait on each other more or less often.
ATTEMPTS_MAX = 5

#: After so many violations the save is known to be broken.
VIOLATIONS_MAX = 20

#: Python's allocator maps a MiB (`ARENA_SIZE` in its obmalloc.c) when it has no room left: in one run and not
#: in the next, by what lies around in the tester's process. Twice that, in blocks as large as it takes.
ROOM_BLOCKS, ROOM_BLOCK_SIZE = 4096, 512

_SYNCS = {"fsync", "fdatasync"}


@dataclass(frozen=True)
class Point:
    """The `nth` call, counted from 1, of the kernel's name `call`, and what happens there."""

    call: str
    nth: int
    fault: str

    def __str__(self) -> str:
        return f"{self.fault} at {self.call} {self.nth}"


@dataclass
class SweptRun:
    """How one save went, as the check is told."""

    #: What happened to it; None for the run without any fault.
    point: Point | None
    #: The save had returned: what it promised must hold.
    returned: bool = False
    raised: Raised | None = None
    #: Paths that it left open, though it had come to its end.
    descriptors_left: list[str] = field(default_factory=list)
    #: An fsync that had failed was called again on the same file: a success then means nothing.
    synced_again: bool = False

    @property
    def killed(self) -> bool:
        """It was killed; else it came to its end, good or bad."""
        return self.point is not None and self.point.fault == SIGKILL


@dataclass(frozen=True)
class Violation:
    """A point at which the check failed, or the save did not end. `syscall_sweep(only=[point])` again."""

    point: Point | None
    text: str

    def __str__(self) -> str:
        return f"{self.point or 'without any fault'}: {self.text}"


@dataclass
class Sweep:
    """What a sweep did: how many points of each call and fault, and where the check failed."""

    points: Counter[tuple[str, str]] = field(default_factory=Counter)
    violations: list[Violation] = field(default_factory=list)
    #: Points that no run came to again, in `ATTEMPTS_MAX` attempts; only threads' waiting may be here.
    missed: list[Point] = field(default_factory=list)

    def by_fault(self) -> Counter[str]:
        """How many points there were of each fault."""
        return self._summed(1)

    def by_call(self) -> Counter[str]:
        """How many points there were at each call."""
        return self._summed(0)

    def _summed(self, position: int) -> Counter[str]:
        counts: Counter[str] = Counter()
        for key, count in self.points.items():
            counts[key[position]] += count
        return counts

    def __str__(self) -> str:
        faults = ", ".join(f"{count} {fault}" for fault, count in self.by_fault().most_common())
        return (
            f"{self.points.total()} points ({faults}), {len(self.missed)} missed,"
            f" {len(self.violations)} violations"
        )


def syscall_sweep(
    save: Callable[[Any], object],
    check: Callable[[Path, SweptRun], Found],
    *,
    scratch: Path,
    prepare: Callable[[Path], Any] = Path,
    refused: Callable[[Call], int] | None = None,
    lasting: bool = False,
    only: Sequence[Point] | None = None,
    timeout_s: float = TIMEOUT_S,
) -> Sweep:
    """Kill `save` before each of its system calls, and fail each in every way it can; check after each.

    `save(path)` runs in a forked process, with a new empty directory below `scratch`; where `prepare`
    is given, `save(prepare(path))`, and the calls of `prepare` are not swept. `check(path, run)` returns
    what is wrong, or raises it; it has a process of its own, too, so that every run begins alike and
    makes the same calls. `refused` says with which errno a call is refused throughout, 0 for those that
    are not: a file system that lacks something. With `lasting`, what failed once fails from then on, at
    each call that can, as on a disk that dies or stays full. `only` is for points that are to be seen
    again. A save that takes longer than `timeout_s` seconds hangs, which is a violation.

    Each run takes some 10 ms. Raises RuntimeError where the save fails by itself, and where other threads
    run: it forks.
    """
    return _Sweeping(save, check, scratch, prepare, refused, lasting, timeout_s).run(only)


class _Sweeping:
    def __init__(
        self,
        save: Callable[[Any], object],
        check: Callable[[Path, SweptRun], Found],
        scratch: Path,
        prepare: Callable[[Path], Any],
        refused: Callable[[Call], int] | None,
        lasting: bool,
        timeout_s: float,
    ) -> None:
        self._save, self._check, self._prepare, self._refused = save, check, prepare, refused
        self._path = scratch / "swept"
        self._lasting, self._timeout_s = lasting, timeout_s
        #: The faults of each call seen, in the order in which they were.
        self._seen: dict[tuple[str, int], tuple[str, ...]] = {}
        self._sweep = Sweep()

    def run(self, only: Sequence[Point] | None) -> Sweep:
        if only is not None:
            for point in only:
                self._visit(point)
            return self._sweep
        self._visit(None)
        killed = 0 if not self._lasting else len(self._seen)
        while killed < len(self._seen):  # It may grow meanwhile.
            self._visit(Point(*list(self._seen)[killed], SIGKILL))
            killed += 1
        for (call, nth), faults in list(self._seen.items()):
            for fault in faults:
                if not (self._lasting and fault in PASSING):
                    self._visit(Point(call, nth, fault))
        return self._sweep

    def _visit(self, point: Point | None) -> None:
        if len(self._sweep.violations) >= VIOLATIONS_MAX:
            return
        for _ in range(ATTEMPTS_MAX):
            if _Attempt(self, point).make():
                if point is not None:
                    self._sweep.points[point.call, point.fault] += 1
                return
        assert point is not None
        self._sweep.missed.append(point)

    def attempt(self, attempt: _Attempt) -> None:
        """Run the save once under `attempt`, and have it checked."""
        self._path.mkdir()
        try:
            ended = trace(self._act, attempt.on_call, attempt.on_return, timeout_s=self._timeout_s)
            run = attempt.run
            run.returned, run.raised = ended.returned, ended.raised
            run.descriptors_left = ended.descriptors_left
            if ended.hung:
                self._violated(run.point, f"the save did not end within {self._timeout_s} s")
            elif ended.died:
                self._violated(run.point, "the save's process died of itself")
            elif run.point is None and run.raised:
                raise RuntimeError(f"nothing was made to fail, and the save raised {run.raised}")
            else:
                self._check_run(run)
        finally:
            shutil.rmtree(self._path)

    def _check_run(self, run: SweptRun) -> None:
        ended = trace(lambda _: self._assert_checked(run), timeout_s=self._timeout_s)
        if not ended.returned:
            self._violated(run.point, f"{ended.raised or ended}\nafter {run.raised or 'no exception'}")

    def _assert_checked(self, run: SweptRun) -> None:
        if problems := told(self._check(self._path, run)):
            raise AssertionError("; ".join(problems))

    def _violated(self, point: Point | None, text: str) -> None:
        self._sweep.violations.append(Violation(point, text))

    def _act(self, subject: Subject) -> None:
        self._prepared = self._prepare(self._path)  # Kept: to drop it is not the save's.
        self._block = _room_for_objects()
        subject.begin()
        self._save(self._prepared)

    def refusal_of(self, call: Call) -> Verdict:
        """What a call meets that no fault was meant for."""
        code = 0 if self._refused is None else self._refused(call)
        return Fail(code) if code else None

    def lasts(self, point: Point, call: Call) -> bool:
        """Whether `call` fails because one before it did."""
        return self._lasting and point.fault in faults_of(call)

    def saw(self, call: Call, nth: int) -> None:
        """A run in which nothing has failed came to this call."""
        if (call.name, nth) not in self._seen:
            self._seen[call.name, nth] = faults_of(call)


class _Attempt:
    """One run with its counts, asked call by call."""

    def __init__(self, sweeping: _Sweeping, point: Point | None) -> None:
        self.run = SweptRun(point)
        self._sweeping = sweeping
        self._counts: Counter[str] = Counter()
        self._struck = False
        self._failed_syncs: set[tuple[int, int]] = set()
        self._syncing: dict[int, tuple[int, int] | None] = {}

    def make(self) -> bool:
        """Whether the run came to its point."""
        self._sweeping.attempt(self)
        return self._struck or self.run.point is None

    def on_call(self, call: Call) -> Verdict:
        point = self.run.point
        self._counts[call.name] += 1
        if call.name in _SYNCS:
            self._syncing[call.tid] = call.identity(0)
            self.run.synced_again |= call.identity(0) in self._failed_syncs
        if point is None or (point.fault == SIGKILL and not self._struck):
            self._sweeping.saw(call, self._counts[call.name])
        if point is None:
            return self._sweeping.refusal_of(call)
        if (call.name, self._counts[call.name]) == (point.call, point.nth):
            self._struck = point.fault == SIGKILL or point.fault in faults_of(call)
            if self._struck:
                return verdict_of(point.fault, call)
        elif self._struck and self._sweeping.lasts(point, call):
            return verdict_of(point.fault, call)
        return self._sweeping.refusal_of(call)

    def on_return(self, call: Call, result: int) -> None:
        # An fsync that was interrupted has not failed: nothing was given up.
        if call.name in _SYNCS and result < 0 and result != -errno.EINTR:
            self._failed_syncs |= {found for found in [self._syncing.get(call.tid)] if found}


def _room_for_objects() -> bytes:
    """Have almost a MiB free for Python's small objects, as long as what is returned is there."""
    empty_size = sys.getsizeof(b"")
    blocks = [bytes(ROOM_BLOCK_SIZE - empty_size) for _ in range(ROOM_BLOCKS)]
    return blocks[-1]  # In the MiB that was mapped last; those that are all free are given back.
