"""Which disks a power cut may leave behind: what was flushed, and any part of what was not.

Records in, writes out; everything is drawn from a seed. No devices, no files.

A state is named by its cut, how many records came before the power went, by a seed that draws what
became of the writes since the last flush, and by the size of an atom: seed 0 keeps all of them; any
other keeps a random part, and may tear one, of which random atoms arrive. Disks promise no order among
writes between two flushes, and that no atom arrives in part.
"""

from __future__ import annotations

import bisect
import itertools
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

from snapstore.testing.power_cut.log import Flush, Mark, Record, Write

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

#: What becomes of the writes since the last flush: the seed with which all of them arrive.
ALL_ARRIVE = 0

#: How often all arrive: a disk that is cut off after a write and not within many is the usual case.
ALL_ARRIVE_SHARE = 0.3

#: How often a cut is drawn by the number of writes that no flush covers there.
AT_STAKE_SHARE = 0.5

#: How much of them arrives otherwise: almost nothing, half, almost everything.
ARRIVING_SHARES = (0.1, 0.5, 0.9)

#: How often one of them is torn.
TORN_SHARE = 0.3

SEED_MAX = 2**32 - 1


@dataclass(frozen=True, slots=True, order=True)
class CrashState:
    """The disk after the first `cut` records, with what `seed` draws of the writes since the last flush.

    `atom_size`, in bytes, is what it writes as a whole or not at all.
    """

    cut: int
    seed: int
    atom_size: int

    def __str__(self) -> str:
        return f"{self.cut}:{self.seed}:{self.atom_size}"

    @classmethod
    def from_text(cls, text: str) -> CrashState:
        """Read what `str` gives; ValueError for anything else."""
        cut, seed, atom_size = map(int, text.split(":"))
        return cls(cut, seed, atom_size)


class Timeline:
    """A log, looked at from any cut: what was flushed by then, what was not, and what had been said."""

    def __init__(self, records: Sequence[Record]) -> None:
        self.records = records
        self._flushed = [0]  # For each cut, where the records begin that no flush covers.
        for position, record in enumerate(records):
            covers = isinstance(record, Flush)
            self._flushed.append(position + 1 if covers else self._flushed[-1])

    @property
    def cuts(self) -> int:
        """The last cut: after all records."""
        return len(self.records)

    def flushed(self, cut: int) -> int:
        """Return how many records the last flush before `cut` covers, itself included."""
        return self._flushed[cut]

    def unflushed(self, cut: int) -> list[Write]:
        """Return the writes before `cut` that no flush covers."""
        return self.writes(self._flushed[cut], cut)

    def writes(self, start: int, end: int) -> list[Write]:
        """Return the writes among the records from `start` to before `end`."""
        return [record for record in self.records[start:end] if isinstance(record, Write)]

    def said(self, cut: int) -> tuple[frozenset[int], frozenset[int]]:
        """Return the indexes that were begun before `cut`, and those that must be there after it."""
        begun: set[int] = set()
        reported: set[int] = set()
        for record in self.records[:cut]:
            if isinstance(record, Mark):
                if record.verb == "begin":
                    begun.add(record.index)
                elif record.verb == "ok":
                    reported.add(record.index)
                else:
                    reported.discard(record.index)
        return frozenset(begun), frozenset(reported)

    def draw(self, source: random.Random, atom_size: int) -> Iterator[CrashState]:
        """Yield states without end: of any cut, and as often of one where much is at stake."""
        stakes = list(itertools.accumulate(len(self.unflushed(cut)) for cut in range(self.cuts + 1)))
        while True:
            cut = source.randrange(self.cuts + 1)
            if stakes[-1] and source.random() < AT_STAKE_SHARE:
                cut = bisect.bisect_right(stakes, source.randrange(stakes[-1]))
            all_arrive = source.random() < ALL_ARRIVE_SHARE
            yield CrashState(cut, ALL_ARRIVE if all_arrive else source.randint(1, SEED_MAX), atom_size)

    def arrived(self, state: CrashState) -> list[Write]:
        """Return the writes since the last flush that `state` has on the disk, in their order."""
        writes = self.unflushed(state.cut)
        if state.seed == ALL_ARRIVE or not writes:
            return writes
        source = random.Random(f"{state.cut}:{state.seed}")
        share = source.choice(ARRIVING_SHARES)
        torn = source.randrange(len(writes)) if source.random() < TORN_SHARE else -1
        arrived: list[Write] = []
        for number, write in enumerate(writes):
            if number == torn:
                arrived += _atoms(write, state.atom_size, source)
            elif source.random() < share:
                arrived.append(write)
        return arrived


def _atoms(write: Write, atom_size: int, source: random.Random) -> Iterator[Write]:
    """Yield a random half of the atoms of a write; they lie at multiples of their size on the disk."""
    at, end = write.offset, write.offset + len(write.data)
    while at < end:
        after = min(end, (at // atom_size + 1) * atom_size)
        if source.random() < 0.5:
            yield Write(at, write.data[at - write.offset : after - write.offset])
        at = after
