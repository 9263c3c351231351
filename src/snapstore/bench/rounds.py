"""Ways timed in turn, so that a machine that drifts treats them alike.

Knows clocks and CPU times, not what is timed.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from snapstore.bench.comparison import Comparison, Sample

if TYPE_CHECKING:
    from snapstore.bench.ways import Way


class Turns:
    """Times some ways, one round after the other; the first one is to warm up, and does not count.

    `size` in bytes is what each way moves that has no size of its own. `before` comes before each run, after
    what the way prepares: each is to find nothing that another has left to be written.
    """

    def __init__(self, ways: Sequence[Way], *, size: int, before: Callable[[], None] = os.sync) -> None:
        if len({way.name for way in ways}) != len(ways):
            raise ValueError(f"two ways have one name: {[way.name for way in ways]}")
        self._ways = ways
        self._size = size
        self._before = before
        self._rounds: list[dict[str, Sample]] = []

    def turn(self) -> None:
        """Time each way once. Raises whatever a way does, and nothing of that round counts then."""
        self._rounds.append({way.name: self._time(way) for way in order(self._ways, len(self._rounds))})

    def _time(self, way: Way) -> Sample:
        way.prepare()
        self._before()
        with way.beside():
            cpu_began_s, began_s = _cpu_s(way.processes), time.perf_counter()
            told_s = way.run()
            wall_s = time.perf_counter() - began_s
            cpu_s = _cpu_s(way.processes) - cpu_began_s
        way.check()
        return Sample(
            wall_s if told_s is None else told_s,
            cpu_s if way.tells_cpu else None,
            self._size if way.size is None else way.size,
        )

    def comparison(self) -> Comparison:
        """Return what was measured behind the first round. Raises ValueError where there was only that."""
        counted = self._rounds[1:]
        return Comparison({way.name: [taken[way.name] for taken in counted] for way in self._ways})


def order(ways: Sequence[Way], number: int) -> list[Way]:
    """Return the ways in the order of the round `number`: there, back, and then from the next one on.

    So nobody is always first, and nobody always comes behind the same one.
    """
    start = number // 2 % len(ways)
    turned = [*ways[start:], *ways[:start]]
    return turned[::-1] if number % 2 else turned


def _cpu_s(processes: Iterable[int]) -> float:
    """CPU seconds until now of this process, of its children that have ended, and of these live ones."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    live_s = sum(time.clock_gettime(_cpu_clock(process)) for process in processes)
    return time.process_time() + ended.ru_utime + ended.ru_stime + live_s


def _cpu_clock(process: int) -> int:
    """The clock of another process's CPU time, as clock_getcpuclockid(3) makes it out of its id."""
    return ~process << 3 | 2
