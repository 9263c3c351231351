"""How long a raft node's tick thread stands still, measured from inside.

Times in, figures out. It must not know what the node does.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Stalls:
    """How long the tick thread stood still, in seconds, over `ticks` turns of its loop."""

    ticks: int
    p50_s: float
    p99_s: float
    max_s: float


class TickWatch:
    """A callback for each tick: notes by how much each turn of the loop took longer than it may.

    PySyncObj calls it once a turn, just before it waits for its sockets, for one period at most. So the
    time between two calls, less one period, is for how long the thread did something else than to wait:
    work of the raft, of the store, of a dump, or waiting for the GIL. A turn whose wait was cut short by
    a message is counted too short by what was left of the period, never too long.
    """

    def __init__(self, period_s: float, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._period_s = period_s
        self._monotonic = monotonic
        self._last_s = monotonic()
        self._noted_s: list[float] = []

    def __call__(self) -> None:
        """Note the turn that ends; on the tick thread."""
        now_s = self._monotonic()
        self._noted_s.append(max(0.0, now_s - self._last_s - self._period_s))
        self._last_s = now_s

    def take(self) -> Stalls:
        """Return the figures since the last `take`, and begin anew. From any one thread."""
        noted_s, self._noted_s = self._noted_s, []
        # The turn that goes on now counts as far as it went: it may be the one that never ends.
        noted_s.append(max(0.0, self._monotonic() - self._last_s - self._period_s))
        return stalls_of(noted_s)


def stalls_of(noted_s: Sequence[float]) -> Stalls:
    """Return the percentiles, by the nearest rank, of at least one measured time."""
    ordered = sorted(noted_s)

    def rank(share: float) -> float:
        return ordered[math.ceil(share * len(ordered)) - 1]

    return Stalls(len(ordered), rank(0.5), rank(0.99), ordered[-1])
