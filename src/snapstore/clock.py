"""Time and background work: one thread for all timers, one for all tasks.

It must not know what it runs: no snapshots, no stores, no raft.

Plan: each thread is fed by a `queue.SimpleQueue`, whose `put` takes no lock that its own thread could
hold already. So a finalizer, which runs at any moment in the middle of anything, may hand work over.
The heap of timers belongs to the timer thread alone and needs no lock either.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import os
import threading
import time
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from snapstore.errors import ForkedProcess

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Self

logger = logging.getLogger("snapstore")

#: The longest single wait of the timer thread. It keeps an infinite delay from being handed to the
#: operating system, which takes none, and costs one wake-up an hour.
WAIT_S_MAX = 3600.0


class ScheduledCall:
    """A call that stands in the future: the `Timer` of both clocks.

    A cancelled one keeps its place until it would have been due, but lets go of what it would have
    called at once.
    """

    __slots__ = ("_call", "due_s")

    def __init__(self, due_s: float, call: Callable[[], None]) -> None:
        #: When it is due, in seconds of its clock's `monotonic()`.
        self.due_s = due_s
        self._call: Callable[[], None] | None = call

    def cancel(self) -> None:
        """Never make the call, unless it has begun. May come twice, from any thread."""
        self._call = None

    def fire(self) -> None:
        """Make the call, unless it was made or cancelled."""
        call, self._call = self._call, None
        if call is not None:
            call()


class SystemClock:
    """The real `Clock`: `time.monotonic`, and two daemon threads that live until `close`.

    All methods may be called from any thread; `run_soon` and `call_later` also from a finalizer.
    After a fork the child has none of the threads, so there both raise `ForkedProcess`; once closed
    they raise RuntimeError. A call or a task that raises is logged and the next one goes on.
    """

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._closed = False
        self._timers: SimpleQueue[ScheduledCall | None] = SimpleQueue()
        self._tasks: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        # Started here, since starting a thread waits for it: later calls may come from raft's loop.
        # The threads know the queues only, so that a clock which nobody holds can go, and end them.
        threading.Thread(
            target=_serve_timers, args=(self._timers,), name="snapstore-timers", daemon=True
        ).start()
        threading.Thread(
            target=_serve_tasks, args=(self._tasks,), name="snapstore-tasks", daemon=True
        ).start()

    def monotonic(self) -> float:
        """Return seconds since some fixed moment."""
        return time.monotonic()

    def call_later(self, delay_s: float, call: Callable[[], None]) -> ScheduledCall:
        """Make `call` once, `delay_s` seconds from now, on the timer thread. Never blocks.

        Calls share one thread, so they must be short. Raises ValueError for a negative delay or NaN.
        """
        self._check_usable()
        scheduled = ScheduledCall(time.monotonic() + check_delay(delay_s), call)
        self._timers.put(scheduled)
        return scheduled

    def run_soon(self, task: Callable[[], None]) -> None:
        """Run `task` on the task thread, after those handed over before. Never blocks."""
        self._check_usable()
        self._tasks.put(task)

    def close(self) -> None:
        """End both threads; does not wait for them.

        Tasks handed over before are still run, calls still in the future are not made. May come
        twice. Does nothing in a forked child.
        """
        if self._closed or self._pid != os.getpid():
            return
        self._closed = True
        self._timers.put(None)
        self._tasks.put(None)

    def _check_usable(self) -> None:
        if self._pid != os.getpid():
            raise ForkedProcess("this SystemClock was made before a fork; make a new one in the child")
        if self._closed:
            raise RuntimeError("this SystemClock was closed")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<SystemClock {'closed' if self._closed else 'running'}>"


def check_delay(delay_s: float) -> float:
    """Return `delay_s`; raises ValueError unless it is a number of seconds, 0 or more."""
    # Said this way round, NaN is refused too: in a heap it would put every other timer out of order.
    if not delay_s >= 0:
        raise ValueError(f"delay_s must be 0 or more seconds, not {delay_s!r}")
    return delay_s


def _serve_timers(queue: SimpleQueue[ScheduledCall | None]) -> None:
    waiting: list[tuple[float, int, ScheduledCall]] = []
    serials = itertools.count()  # Two calls due at the same moment are made in the order they came.
    while True:
        try:
            scheduled = queue.get(timeout=_until_due_s(waiting))
        except Empty:
            pass
        else:
            if scheduled is None:
                return
            heapq.heappush(waiting, (scheduled.due_s, next(serials), scheduled))
        while waiting and waiting[0][0] <= time.monotonic():
            _run(heapq.heappop(waiting)[2].fire)


def _until_due_s(waiting: list[tuple[float, int, ScheduledCall]]) -> float | None:
    if not waiting:
        return None
    return min(max(waiting[0][0] - time.monotonic(), 0.0), WAIT_S_MAX)


def _serve_tasks(queue: SimpleQueue[Callable[[], None] | None]) -> None:
    while (task := queue.get()) is not None:
        _run(task)
        del task  # The thread waits now, and must keep nothing alive.


def _run(call: Callable[[], None]) -> None:
    try:
        call()
    except BaseException:  # Even SystemExit must not end the thread that all share.
        # Nobody waits for the outcome, so this is the only place where the error can be seen.
        logger.exception("a background call of snapstore failed")
