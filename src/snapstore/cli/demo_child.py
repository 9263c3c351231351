"""One of the demo's child processes, seen from inside: JSON lines in and out.

A line on standard output is an event, one on standard input a command. The end of standard input
means that the parent has ended, however it did, and then the child does.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from snapstore._fastpipe import Progress

#: Between two reports of progress: as often as the parent draws.
REPORT_INTERVAL_S = 0.1


class Parent:
    """The other end of this process's standard streams. `tell` may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._commands: SimpleQueue[dict[str, Any]] = SimpleQueue()
        self._reported_s = 0.0
        threading.Thread(target=self._listen, name="demo-parent", daemon=True).start()

    def _listen(self) -> None:
        for line in sys.stdin:
            self._commands.put(json.loads(line))
        # At once, whatever the other threads are in the middle of: nobody is left to hear of it.
        os._exit(0)

    def tell(self, event: str, **fields: Any) -> None:
        """Say that something happened."""
        line = json.dumps({"event": event, **fields})
        with self._lock:
            print(line, flush=True)

    def report(self, done: int) -> None:
        """Say how far it is, in bytes; most calls say nothing, so as not to flood the parent."""
        now_s = time.monotonic()
        if now_s - self._reported_s >= REPORT_INTERVAL_S:
            self._reported_s = now_s
            self.tell("progress", bytes=done)

    def await_command(self) -> dict[str, Any]:
        """Wait for the next command."""
        return self._commands.get()


@contextmanager
def reported(progress: Progress, report: Callable[[int], None]) -> Iterator[None]:
    """Report `progress` from a thread of its own while a transfer runs on this one."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(REPORT_INTERVAL_S):
            report(progress.bytes)

    watcher = threading.Thread(target=watch, name="demo-progress", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
