"""Threads beside raft's own: one that sends for each attempt, and none in between; the clock's for the rest.

Those that send are daemons and nobody waits for them: one that waits for a follower's last fsync can be told
nothing, and must not keep a node from ending.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from snapstore.protocols import Clock


class Workers(Protocol):
    """Where attempts run. An `Executor` of `concurrent.futures` is one, too."""

    def submit(self, call: Callable[..., object], /, *args: Any) -> object:
        """Have `call(*args)` made on another thread; raises where there is none to be had."""


def run_soon(clock: Clock, task: Callable[[], None]) -> None:
    """Have the clock's background run `task`, which may take time: raft's thread has none."""
    try:
        clock.run_soon(task)
    except Exception:  # noqa: BLE001 - the clock was closed: so is the node, and nobody waits.
        task()


class SendThreads:
    """The ready-made workers. How many there are is bounded by the store's `streams_max`."""

    def submit(self, call: Callable[..., object], /, *args: Any) -> None:
        """Make `call(*args)` on a thread of its own. Raises RuntimeError where the system has none."""
        threading.Thread(target=call, args=args, name="snapstore-send", daemon=True).start()
