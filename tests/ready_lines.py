"""A transfer whose bytes have all arrived: nobody sends meanwhile, so that each run makes the same calls.

Content of three chunks and a short one, the lines that bring it, and a node that receives from them.
"""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile

from snapstore import _fastpipe
from snapstore.errors import KeptPrefixWrong
from snapstore.meta import SnapshotMeta

UNIT = _fastpipe.CHUNK_SIZE_MIN
CONTENT = os.urandom(3 * UNIT + 13)
SIZE = len(CONTENT)

#: What is kept of a line that breaks in the middle of the third chunk, and what that line has brought.
KEPT = 2 * UNIT
BROKEN_AFTER = KEPT + UNIT // 2


def ready_line(*, kept=0, size=None, broken_after=None):
    """A socket with the frames of CONTENT, or so many bytes of them; and how many there should be.

    Of the first `kept` bytes only the digests come. `size` is None for a sender that does not know it.
    """
    with tempfile.TemporaryFile() as file:
        _fastpipe.send_frames(CONTENT, file.fileno(), size=size, chunk_size=UNIT, kept=kept)
        file.seek(0)
        wire = file.read()
    near, far = socket.socketpair()
    with far:
        far.sendall(wire[:broken_after])
    return near, len(wire)


def receive(directory, index, line_for, *, size=None):
    """Receive CONTENT; `line_for` is told how many bytes are kept, and gives the line."""
    meta = SnapshotMeta(index)
    with directory.receive(meta, size=size, chunk_size=UNIT) as reception:
        near, length = line_for(reception.kept)
        body = _fastpipe.Body(near.fileno(), b"", length)
        reception.save(_fastpipe.Frames(body, chunk_size=UNIT, size=size), meta)


def receive_honestly(directory, index, *, size=None):
    """Receive CONTENT from a peer that comes again if it must; how much was kept, and what of it was wrong.

    The first in bytes, the second the number of a chunk, or None.
    """
    told = []
    with contextlib.ExitStack() as lines:

        def line_for(kept):
            told.append(kept)
            near, length = ready_line(kept=kept, size=size)
            return lines.enter_context(near), length

        wrong = None
        try:
            receive(directory, index, line_for, size=size)
        except KeptPrefixWrong as error:
            wrong = error.chunk
        if wrong is not None:
            receive(directory, index, line_for, size=size)
            assert told[1] == wrong * UNIT, "what was wrong is still kept"
    return told[0], wrong
