"""What `snapstore doctor --fix` does: it opens the directory as a node does, and says what that swept.

So nothing is removed that a node would not remove: never what a living saver holds, never a snapshot.
Where an fsync had failed, all snapshots are read back, and those found broken are set aside.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from snapstore.directory import SnapshotDir
from snapstore.doctor.finding import Finding, Level
from snapstore.errors import SnapstoreError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


@dataclass(frozen=True, slots=True)
class Treatment:
    """What was done: names that were `removed`, and that were `set_aside` while all was read back.

    `refused` says why nothing, or not all, could be done; None where all was.
    """

    removed: tuple[str, ...] = ()
    set_aside: tuple[str, ...] = ()
    refused: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return it for machines."""
        return asdict(self)


class _Opening(SnapshotDir):
    """A SnapshotDir that remembers what its opening swept."""

    swept: Sequence[str] = ()

    def remove_orphans(self) -> Sequence[str]:
        self.swept = super().remove_orphans()
        return self.swept


def treat(path: str | os.PathLike[str]) -> Treatment:
    """Sweep the existing directory at `path`; takes as long as reading it all where an fsync had failed.

    Raises nothing that a SnapshotDir's opening raises: why it was refused is part of what is returned.
    OSError where there is no directory, or it cannot be listed.
    """
    before = set(os.listdir(path))
    try:
        with _Opening(path) as directory:
            broken = [found.path.name for found in directory.broken()]
            return Treatment(tuple(directory.swept), tuple(name for name in broken if name not in before))
    except (OSError, SnapstoreError) as error:
        return Treatment(refused=str(error))


def judge_treatment(treatment: Treatment) -> Iterator[Finding]:
    """Yield what was done, name by name."""
    for name in treatment.removed:
        yield Finding("removed", name, Level.OK, "removed")
    if treatment.refused is not None:
        yield Finding(
            "refused",
            "--fix",
            Level.PROBLEM,
            treatment.refused,
            "the directory cannot be opened, here and by a node",
            "see the other findings; run it as the user of the node",
        )
    elif not treatment.removed:
        yield Finding("removed", "--fix", Level.OK, "nothing to remove")
