"""The twin of `clock.SystemClock`: time that stands still until a test moves it.

No threads, no sleeps, and no knowledge of what is timed.
"""

from __future__ import annotations

import heapq
import itertools
import threading
from collections import deque
from typing import TYPE_CHECKING

from snapstore.clock import ScheduledCall, check_delay

if TYPE_CHECKING:
    from collections.abc import Callable


class FakeClock:
    """A `Clock` whose time stands still until the test moves it, and which has no threads.

    `advance` makes the calls that fall due; `run_pending` runs the background tasks. The two are
    apart, so that a test chooses whether a creation ends before or after a timer: `advance` runs no
    task, and `run_pending` moves no time. Both run in the thread that calls them, and what they run
    may raise through them: a test should see it.

        clock = FakeClock()
        store = SnapshotStore(kv, raft, clock=clock)
        with pytest.raises(SnapshotTemporarilyUnavailable):
            store.get_snap()          # asks for a snapshot
        clock.run_pending()           # the snapshot is created here
        clock.advance(5.0)            # and cleared here, unused

    All methods may be called from any thread; `run_soon` also from a finalizer.
    """

    def __init__(self, now_s: float = 0.0) -> None:
        self._now_s = now_s
        self._lock = threading.Lock()
        self._serials = itertools.count()
        self._waiting: list[tuple[float, int, ScheduledCall]] = []
        # A deque's ends are atomic: `run_soon` may interrupt this very thread while it holds the lock.
        self._tasks: deque[Callable[[], None]] = deque()

    def monotonic(self) -> float:
        """Return the seconds that stand on the clock."""
        return self._now_s

    def call_later(self, delay_s: float, call: Callable[[], None]) -> ScheduledCall:
        """Make `call` once, when `advance` has come `delay_s` seconds further."""
        check_delay(delay_s)
        with self._lock:
            scheduled = ScheduledCall(self._now_s + delay_s, call)
            heapq.heappush(self._waiting, (scheduled.due_s, next(self._serials), scheduled))
        return scheduled

    def run_soon(self, task: Callable[[], None]) -> None:
        """Keep `task` for the next `run_pending`."""
        self._tasks.append(task)

    def advance(self, seconds: float) -> None:
        """Move time by `seconds` and make the calls due until then, with time at each one's moment.

        The order is that of their moments, and where these are equal, that of `call_later`. Calls
        that are scheduled meanwhile are made too if they fall due. Background tasks are left alone.
        """
        end_s = self._now_s + check_delay(seconds)
        while (scheduled := self._pop_due(end_s)) is not None:
            scheduled.fire()
        with self._lock:
            self._now_s = max(self._now_s, end_s)

    def run_pending(self) -> int:
        """Run the background tasks, and those that they hand over, until none is left.

        Returns how many were run. A task that raises ends the run; those behind it stay.
        """
        count = 0
        while self._tasks:
            self._tasks.popleft()()
            count += 1
        return count

    @property
    def pending(self) -> int:
        """How many background tasks `run_pending` would begin with."""
        return len(self._tasks)

    def _pop_due(self, end_s: float) -> ScheduledCall | None:
        with self._lock:
            if not self._waiting or self._waiting[0][0] > end_s:
                return None
            due_s, _, scheduled = heapq.heappop(self._waiting)
            self._now_s = max(self._now_s, due_s)
            return scheduled

    def __repr__(self) -> str:
        return f"<FakeClock at {self._now_s} s, {len(self._waiting)} timers, {len(self._tasks)} tasks>"
