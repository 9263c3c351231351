"""How the lines of one call are cut by another thread, since whoever waits on one cannot look up.

Knows sockets as what can be shut down, and nothing of what is said on them.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator


class Severance:
    """Cuts the lines of one call: the one it has, and each that it would still make. Any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._severed = False
        self._lines: set[socket.socket] = set()

    def sever(self) -> None:
        """Cut them, at once and for good: who reads or writes there finds the line broken."""
        # Under the lock, which no line outlives: another's descriptor must not be hit. It never waits.
        with self._lock:
            self._severed = True
            for line in self._lines:
                with contextlib.suppress(OSError):
                    line.shutdown(socket.SHUT_RDWR)

    @contextlib.contextmanager
    def over(self, line: socket.socket) -> Iterator[None]:
        """Let `line` be cut during a `with` block; ConnectionAbortedError where all is cut already."""
        with self._lock:
            if self._severed:
                raise ConnectionAbortedError("the call was cancelled")
            self._lines.add(line)
        try:
            yield
        finally:
            with self._lock:
                self._lines.discard(line)
