"""The threads of a listener: each accepts a connection and serves it itself, while another one waits.

So no connection is handed from thread to thread, and none waits for a thread to start: two switches between
threads are as long as a small snapshot takes on the wire. Knows no protocol.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger("snapstore.transport")

#: So many wait where nothing comes; those that a storm brought besides end. One will serve, one may be at the
#: end of what came before, and one waits in their place.
WAITING = 3

#: Where accept fails at once each time, as without descriptors, it must not eat a core.
_PAUSE_S = 0.05


class Crew:
    """Serves what comes to `listener`, from its start until it is cut off.

    `serve(connection)` has the connection to its end, on a thread of its own, and raises nothing; beyond
    `connections_max` of them, or where there is no thread to wait in its place, `turn_away(connection)`
    must be quick.
    """

    def __init__(
        self,
        listener: socket.socket,
        *,
        serve: Callable[[socket.socket], None],
        turn_away: Callable[[socket.socket], None],
        connections_max: int,
    ) -> None:
        self._listener = listener
        self._serve = serve
        self._turn_away = turn_away
        self._connections_max = connections_max
        self._lock = threading.Lock()
        self._closing = False
        self._waiting = 0
        self._threads: set[threading.Thread] = set()
        #: What is being served.
        self.connections: set[socket.socket] = set()

    def start(self) -> None:
        """Accept from now on."""
        with self._lock:
            for _ in range(WAITING):
                self._add()

    @property
    def closing(self) -> bool:
        """Whether it was cut off."""
        return self._closing

    def cut_off(self) -> bool:
        """Stop accepting, and cut the connections; whether this call was the first."""
        with self._lock:
            first, self._closing = not self._closing, True
            for connection in self.connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # Wakes all who accept.
        return first

    def join(self) -> None:
        """Wait for the threads, but for the one that calls; then close the listener."""
        with self._lock:
            threads = self._threads - {threading.current_thread()}
        for thread in threads:
            thread.join()
        self._listener.close()

    def _add(self) -> None:
        """Have one more thread wait; the lock is held. Raises RuntimeError where the system has none."""
        thread = threading.Thread(target=self._work, name="snapstore-connection", daemon=True)
        thread.start()
        self._threads.add(thread)
        self._waiting += 1

    def _work(self) -> None:
        try:
            while (connection := self._accept()) is not None:
                if not self._admit(connection):
                    self._turn_away(connection)
                    continue
                try:
                    self._serve(connection)
                finally:
                    with self._lock:
                        self.connections.discard(connection)
                if not self._stays():
                    return
        finally:
            with self._lock:
                self._threads.discard(threading.current_thread())

    def _accept(self) -> socket.socket | None:
        while True:
            try:
                return self._listener.accept()[0]
            except OSError as error:
                if self._closing:
                    return None
                # Too many descriptors, or a peer that left in the queue: others may still come.
                logger.warning("accept failed: %s", error)
                threading.Event().wait(_PAUSE_S)

    def _admit(self, connection: socket.socket) -> bool:
        """Whether to serve it; somebody else waits for the next one then."""
        with self._lock:
            if self._closing or len(self.connections) >= self._connections_max:
                return False
            if self._waiting == 1:
                try:
                    self._add()
                except RuntimeError as error:  # The system has no thread left for us.
                    logger.warning("no thread: %s", error)
                    return False
            self._waiting -= 1
            self.connections.add(connection)
            return True

    def _stays(self) -> bool:
        """Whether who has served is to wait for another connection."""
        with self._lock:
            stays = self._waiting < WAITING
            self._waiting += stays
            return stays
