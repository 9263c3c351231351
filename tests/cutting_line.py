"""A line between a leader and a follower that is cut where a test wants it, and counts what passed."""

from __future__ import annotations

import contextlib
import socket
import threading

from nodes import WAIT_S, Listener, reset_at_close

_PIECE_SIZE = 256 * 1024


class CuttingLine(Listener):
    """Passes connections on to `url`, one after the other; `passed` counts the bytes to the follower,
    `returned` those that came back, of all connections together.

    `cut_after(count)` lets so many bytes of the next connection pass to the follower and then cuts
    both ways, by a reset when `reset` is set; None lets all pass.
    """

    def __init__(self, url):
        self._target = url
        self.passed = self.returned = 0
        self._left = None
        self._reset = False
        super().__init__()

    def cut_after(self, count, *, reset=False, url=None):
        self.passed, self._left, self._reset = 0, count, reset
        self._target = url or self._target

    def _run(self):
        while True:
            try:
                leader, _ = self._listener.accept()
            except OSError:
                return
            host, _, port = self._target.removeprefix("http://").rpartition(":")
            with leader, socket.create_connection((host, int(port)), WAIT_S) as follower:
                back = threading.Thread(target=self._pass_back, args=(follower, leader))
                back.start()
                self._pass_on(leader, follower)
                back.join()

    def _pass_on(self, leader, follower):
        piece = memoryview(bytearray(_PIECE_SIZE))
        with contextlib.suppress(OSError):
            while self._left is None or self.passed < self._left:
                wanted = _PIECE_SIZE if self._left is None else min(_PIECE_SIZE, self._left - self.passed)
                count = leader.recv_into(piece[:wanted])
                if count == 0:
                    break
                follower.sendall(piece[:count])
                self.passed += count
        with contextlib.suppress(OSError):
            follower.shutdown(socket.SHUT_WR)
        if self._left is not None:
            if self._reset:
                reset_at_close(leader)
            with contextlib.suppress(OSError):
                leader.shutdown(socket.SHUT_RDWR)

    def _pass_back(self, follower, leader):
        with contextlib.suppress(OSError):
            while data := follower.recv(_PIECE_SIZE):
                leader.sendall(data)
                self.returned += len(data)
        with contextlib.suppress(OSError):
            leader.shutdown(socket.SHUT_WR)
