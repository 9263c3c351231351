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

#: So many wait where nothing comes; those that a storm brought besides end. One of them would do, and another
#: is started where the last one begins to serve: the rest is so that this is rare.
WAITING = 3

#: Where accept fails at once each time, as without descriptors, it must not eat a core.
_PAUSE_S = 0.05


class Crew:
    """Serves what comes to `listener`, from its start until it is cut off.

    `serve(connection)` has the connection to its end, beside others. Beyond `connections_max` of them, or
    where there is no thread to wait in its place, `turn_away(connection)` ends it, and must be quick.
    `connections` are those that are being served, for anybody to look at.
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
        self._pausing = threading.Lock()
        self._closing = False
        self._threads: set[threading.Thread] = set()  # Some may have ended.
        self._waiting: set[threading.Thread] = set()
        self.connections: frozenset[socket.socket] = frozenset()

    def start(self) -> None:
        """Accept from now on, or leave nothing: RuntimeError where the system has not enough threads."""
        try:
            with self._lock:
                for _ in range(WAITING):
                    self._add()
        except BaseException:
            self.cut_off()
            self.join()
            raise

    @property
    def closing(self) -> bool:
        """Whether it was cut off."""
        return self._closing

    def cut_off(self) -> bool:
        """Stop accepting, and cut the connections; whether this call was the first."""
        with self._lock:
            first, self._closing = not self._closing, True
            # Under the lock, which no connection outlives: another's descriptor must not be hit.
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
        """Have one more thread wait; the lock is held, so that `join` knows each that runs."""
        thread = threading.Thread(target=self._work, name="snapstore-connection", daemon=True)
        thread.start()
        self._threads = {thread, *filter(threading.Thread.is_alive, self._threads)}
        self._waiting.add(thread)

    def _work(self) -> None:
        try:
            while (connection := self._accept()) is not None:
                if not self._admit(connection):
                    self._refuse(connection)
                    continue
                try:
                    self._serve(connection)
                finally:
                    stays = self._leave(connection)
                if not stays:
                    return
        finally:
            with self._lock:
                self._waiting.discard(threading.current_thread())

    def _accept(self) -> socket.socket | None:
        while True:
            try:
                return self._listener.accept()[0]
            except OSError as error:
                if self._closing:
                    return None
                # Too many descriptors, or a peer that left in the queue: others may still come.
                logger.warning("accept failed: %s", error)
                with self._pausing:  # One after the other: what keeps one from accepting keeps all.
                    threading.Event().wait(_PAUSE_S)

    def _admit(self, connection: socket.socket) -> bool:
        """Whether to serve it; somebody else waits for the next one then."""
        thread = threading.current_thread()
        with self._lock:
            if self._closing or len(self.connections) >= self._connections_max:
                return False
            if self._waiting == {thread}:
                try:
                    self._add()
                except RuntimeError as error:  # The system has no thread left for us.
                    logger.warning("no thread: %s", error)
                    return False
            self._waiting.discard(thread)
            self.connections |= {connection}
            return True

    def _refuse(self, connection: socket.socket) -> None:
        try:
            self._turn_away(connection)
        except Exception:
            logger.exception("a peer could not be told why it was turned away")

    def _leave(self, connection: socket.socket) -> bool:
        """Count the connection out; whether its thread is to wait for another."""
        with self._lock:
            self.connections -= {connection}
            stays = len(self._waiting) < WAITING
            if stays:
                self._waiting.add(threading.current_thread())
            return stays
