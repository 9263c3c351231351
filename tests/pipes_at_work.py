"""What the tests of the pipe share: its sizes, and how to see that somebody waits."""

from __future__ import annotations

import threading

SIZE = 4096
WAIT_S = 20.0
#: How long a call that should block is given to show that it does not.
BLOCKED_S = 0.1


def read_all(reader):
    pieces = []
    while (chunk := reader.read_chunk()) is not None:
        with chunk:
            pieces.append(bytes(chunk))
    return b"".join(pieces)


def blocks(future):
    return not threading.Event().wait(BLOCKED_S) and not future.done()
