"""The last wait on a line that we end while its peer may still send."""

from __future__ import annotations

import contextlib
import socket
import time

#: How long a refused sender is listened to, so that it reads the answer before the line goes dead.
LINGER_S = 2.0


def linger(sock: socket.socket, timeout_s: float) -> None:
    """Throw away what still comes, for a while: an unread byte would turn our answer into a reset."""
    until_s = time.monotonic() + timeout_s
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_WR)
        while (left_s := until_s - time.monotonic()) > 0:
            sock.settimeout(left_s)
            if not sock.recv(64 * 1024):
                return
