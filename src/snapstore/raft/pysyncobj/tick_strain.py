"""How strained a node is, by how late its ticks come: a tick that stands still lets an election begin.

Times in, a figure out. It must not know what the node does, nor what is done about it.

Plan: PySyncObj does all of its raft on one thread. Where that waits for a disk that a transfer keeps busy, or
for the GIL, a leader sends no heartbeats and a follower reads none. So the time between two ticks, less
the one that a tick waits for messages, is what is lost of the time that a follower waits for a leader. The
turn that goes on counts as far as it went: whoever asks must not hear of it only when it is over.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


class TickStrain:
    """A `Pacer`'s strain, of one node: 0 where its ticks are in time, 1 where one let an election begin.

    Of PySyncObj's `conf`: a leader is heard of every `appendEntriesPeriod`, and followers wait for
    `raftMinTimeout` at least. What lies between, in seconds, is how late a tick may be.
    """

    def __init__(self, conf: Any, monotonic: Callable[[], float]) -> None:
        self._period_s: float = conf.autoTickPeriod
        self._late_s_max: float = conf.raftMinTimeout - conf.appendEntriesPeriod
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._last_s: float | None = None
        self._worst_s = 0.0

    def tick(self) -> None:
        """Note that a tick has come. For PySyncObj's thread."""
        now_s = self._monotonic()
        with self._lock:
            self._worst_s = max(self._worst_s, self._late_s(now_s))
            self._last_s = now_s

    def take(self) -> float:
        """Return the worst since the last `take`, and of the turn that goes on. For any thread."""
        now_s = self._monotonic()
        with self._lock:
            worst_s, self._worst_s = max(self._worst_s, self._late_s(now_s)), 0.0
        return worst_s / self._late_s_max

    def _late_s(self, now_s: float) -> float:
        """How late the turn that goes on is; a node that has not ticked yet is not late."""
        return 0.0 if self._last_s is None else max(0.0, now_s - self._last_s - self._period_s)
