"""What other threads want done on the raft thread, in the order in which they asked.

It must not know what is asked for. A raft engine belongs to one thread; everything else in here may be
called from any, and whatever touches the engine goes through this.
"""

from __future__ import annotations

import logging
import threading
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger("snapstore.raft")


class Inbox:
    """Calls that wait for the raft thread. `wake` is called after each; it must not block.

    A `wake` writes to an eventfd, sets an Event, puts into the loop's own queue: whatever ends the
    loop's wait, so that a report does not lie there until the next tick.
    """

    def __init__(self, wake: Callable[[], object] | None = None) -> None:
        self._wake = wake
        self._calls: SimpleQueue[Callable[[], object]] = SimpleQueue()
        self._thread: int | None = None

    @property
    def pending(self) -> bool:
        """Whether something waits for `run`."""
        return not self._calls.empty()

    def post(self, call: Callable[[], object]) -> None:
        """Have `call` made by the raft thread. From any thread; never blocks, and does not raise."""
        self._calls.put(call)
        if self._wake is None:
            return
        try:
            self._wake()
        except Exception:
            logger.exception("waking the raft thread failed; it will look by itself at its next turn")

    def run(self) -> int:
        """Make the calls that wait; returns how many. For the raft thread, once in each turn.

        Those that come in meanwhile wait for the next turn, so that the engine gets its own. A call
        that raises is logged, and the loop goes on. Raises RuntimeError in a second thread.
        """
        thread = threading.get_ident()
        if self._thread is None:
            self._thread = thread
        if self._thread != thread:
            raise RuntimeError("a raft engine belongs to one thread, and this is another one")
        count = self._calls.qsize()
        for _ in range(count):
            try:
                call = self._calls.get_nowait()
            except Empty:  # `run` within `run`: the inner one was quicker.
                break
            try:
                call()
            except Exception:
                logger.exception("a call on the raft thread failed; the loop goes on")
        return count

    def __repr__(self) -> str:
        return f"<Inbox waiting={self._calls.qsize()}>"
