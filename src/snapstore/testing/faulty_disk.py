"""A disk that loses what was not synced: every moment of a recorded run, as a power cut could leave it.

No root, no FUSE, no special file system: the run is traced (tracer.py), its file operations are kept
(disk_recorder.py), and each state that they may leave (disk_model.py) is written out as a directory
and handed to the tester's check. Knows nothing of snapshots.

Names overtake bytes where another file's fsync commits the journal, so no second thread is needed to
find a rename before an fsync. What a real file system does beyond its promises only a real one shows:
snapstore.testing.power_cut.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from snapstore.testing.disk_model import POLICIES, RANDOM, Contents, Mark, crash
from snapstore.testing.disk_recorder import DiskRecorder
from snapstore.testing.problems import told, told_by
from snapstore.testing.tracer import TIMEOUT_S, Subject, trace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from collections.abc import Set as AbstractSet

    from snapstore.testing.disk_model import Operation
    from snapstore.testing.problems import Found

    #: What is wrong with a state: (path, indexes begun, indexes reported as saved) -> texts.
    Check = Callable[[Path, AbstractSet[int], AbstractSet[int]], Found]

#: Random states after each operation, unless the tester wants another number.
RANDOM_STATES = 10

#: After so many violations the save is known to be broken.
VIOLATIONS_MAX = 20

_BEGIN, _OK, _GONE = "begin", "ok", "gone"


class WorkloadMarks:
    """What the workload promises, said by itself at the place among its operations where it holds."""

    def __init__(self, subject: Subject) -> None:
        self._subject = subject

    def begin(self, index: int) -> None:
        """A save of `index` begins: from now on it may be there."""
        self._subject.mark(f"{_BEGIN} {index}")

    def ok(self, index: int) -> None:
        """It was reported as saved: from now on it must be there."""
        self._subject.mark(f"{_OK} {index}")

    def gone(self, index: int) -> None:
        """It will be removed: from now on it need not be there."""
        self._subject.mark(f"{_GONE} {index}")


@dataclass(frozen=True)
class CrashState:
    """What is found when the power went behind the first `operation` operations.

    The three numbers and names make it: `FaultyDisk.state` gives it again.
    """

    operation: int
    policy: str
    seed: int
    contents: Contents
    begun: AbstractSet[int]
    reported: AbstractSet[int]

    def write_to(self, path: Path) -> None:
        """Make it real below the empty directory `path`; modes are 0600 and 0700."""
        written: dict[int, Path] = {}
        for name, node in self.contents.tree().items():
            target = path / name
            if node in self.contents.directories:
                target.mkdir(mode=0o700)
            elif node in written:
                os.link(written[node], target)
            else:
                with open(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                    file.write(self.contents.content(node))
                written[node] = target

    def fingerprint(self) -> bytes:
        """The same for two states between which no check can tell a difference."""
        digest = hashlib.sha256(repr((sorted(self.begun), sorted(self.reported))).encode())
        for name, node in self.contents.tree().items():
            digest.update(f"\n{name!r} {node} {node in self.contents.directories} ".encode())
            digest.update(hashlib.sha256(self.contents.content(node)).digest())
        return digest.digest()

    def __str__(self) -> str:
        return f"operation {self.operation}, policy {self.policy}, seed {self.seed}"


@dataclass
class Losses:
    """What came of the states: how many there were of each policy, and which the check did not like."""

    seed: int
    #: States that were checked, each different from all others.
    states: Counter[str] = field(default_factory=Counter)
    violations: list[tuple[CrashState, str]] = field(default_factory=list)

    def __str__(self) -> str:
        policies = ", ".join(f"{count} {policy}" for policy, count in self.states.items())
        found = "".join(f"\n{state}: {text}" for state, text in self.violations)
        return (
            f"{self.states.total()} distinct states ({policies}), seed {self.seed},"
            f" {len(self.violations)} violations{found}"
        )


class FaultyDisk:
    """One recorded run of a workload, and every state in which a power cut may leave its directory.

        def workload(path, mark):
            mark.begin(7)
            my_save(path, 7, b"content")
            mark.ok(7)

        disk = FaultyDisk(workload, scratch=tmp_path)
        losses = disk.lose(check)
        assert not losses.violations, str(losses)

    A recorded run that has several threads differs from the next in the order of their operations:
    a state's three numbers mean this recording.
    """

    def __init__(
        self,
        workload: Callable[[Path, WorkloadMarks], object],
        *,
        scratch: Path,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        """Run `workload(path, mark)` once, in a forked process, in an empty directory below `scratch`.

        Raises RuntimeError where it fails, where it takes longer than `timeout_s` seconds, and where
        other threads run in this process; NotImplementedError where it changes files in a way that
        cannot be seen by system calls (a shared mapping) or is not understood.
        """
        self._scratch = scratch
        path = Path(tempfile.mkdtemp(dir=scratch))
        recorder = DiskRecorder(path)

        def act(subject: Subject) -> None:
            subject.begin()
            workload(path, WorkloadMarks(subject))

        try:
            ended = trace(act, recorder.on_call, recorder.on_return, timeout_s=timeout_s)
        finally:
            shutil.rmtree(path)
        if not ended.returned:
            raise RuntimeError(f"the workload failed: {ended.raised or ended}")
        #: What was done, in order; `str` of each says it.
        self.operations: Sequence[Operation] = tuple(recorder.operations)
        self._directories = frozenset(recorder.directories)

    def state(self, operation: int, policy: str, seed: int = 0) -> CrashState:
        """The state behind the first `operation` operations; `seed` matters to the policy "random" only."""
        if policy not in (*POLICIES, RANDOM) or not 0 <= operation <= len(self.operations):
            raise ValueError(f"there is no state {policy!r} after operation {operation}")
        done = self.operations[:operation]
        marks = [mark for mark in done if isinstance(mark, Mark)]
        reported: set[int] = set()
        for mark in marks:
            if mark.verb == _OK:
                reported.add(mark.index)
            elif mark.verb == _GONE:
                reported.discard(mark.index)
        return CrashState(
            operation,
            policy,
            seed,
            crash(done, self._directories, policy, f"{operation} {seed}"),
            frozenset(mark.index for mark in marks if mark.verb == _BEGIN),
            frozenset(reported),
        )

    def states(self, *, random_states: int = RANDOM_STATES, seed: int = 0) -> Iterator[CrashState]:
        """Each different state behind each operation: of every policy one, of "random" `random_states`.

        The random ones have the seeds from `seed` on.
        """
        seen = set()
        for operation in range(len(self.operations) + 1):
            choices = [(policy, seed) for policy in POLICIES]
            choices += [(RANDOM, seed + number) for number in range(random_states)]
            for policy, own_seed in choices:
                state = self.state(operation, policy, own_seed)
                fingerprint = state.fingerprint()
                if fingerprint not in seen:
                    seen.add(fingerprint)
                    yield state

    def lose(self, check: Check, *, random_states: int = RANDOM_STATES, seed: int = 0) -> Losses:
        """Have every state checked; what came of it.

        `check(path, begun, reported)` returns what is wrong, or raises it, with the sets of the marked
        indexes. It may change the directory, which is its own.
        """
        losses = Losses(seed)
        for state in self.states(random_states=random_states, seed=seed):
            losses.states[state.policy] += 1
            with tempfile.TemporaryDirectory(dir=self._scratch) as path:
                state.write_to(Path(path))
                try:
                    found = told(check(Path(path), state.begun, state.reported))
                except Exception as error:  # noqa: BLE001 - whatever it raises is a violation.
                    found = told_by(error)
            losses.violations += [(state, text) for text in found]
            if len(losses.violations) >= VIOLATIONS_MAX:
                break
        return losses
