"""Threads that send: one for each attempt, and none in between.

They are daemons and nobody waits for them: one that waits for a follower's last fsync can be told
nothing, and must not keep a node from ending.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable


class Workers(Protocol):
    """Where attempts run. An `Executor` of `concurrent.futures` is one, too."""

    def submit(self, call: Callable[..., object], /, *args: Any) -> object:
        """Have `call(*args)` made on another thread; raises where there is none to be had."""


class SendThreads:
    """The ready-made workers. How many there are is bounded by the store's `streams_max`."""

    def submit(self, call: Callable[..., object], /, *args: Any) -> None:
        """Make `call(*args)` on a thread of its own. Raises RuntimeError where the system has none."""
        threading.Thread(target=call, args=args, name="snapstore-send", daemon=True).start()
