"""The raft demo's neighbour, a process of its own: it keeps the disk busy, as others do on a shared one.

`python -m snapstore.cli.raft_demo_neighbour DIRECTORY`. It must not know the nodes. Writes and fsyncs, again
and again over one file, until its parent has gone.
"""

from __future__ import annotations

import os
import sys
from itertools import cycle

from snapstore.cli.demo_child import Parent

#: What is written between two fsyncs, in bytes: a database's commit with some of its pages.
WRITE_SIZE = 4 * 1024 * 1024

#: How large its file gets, in bytes.
FILE_SIZE = 64 * 1024 * 1024


def main(directory: str) -> None:
    """Write until the parent's end, which ends this process."""
    Parent()
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    fd = os.open(os.path.join(directory, "neighbour"), flags, 0o600)
    data = os.urandom(WRITE_SIZE)
    for offset in cycle(range(0, FILE_SIZE, WRITE_SIZE)):
        os.pwrite(fd, data, offset)
        os.fsync(fd)


if __name__ == "__main__":
    main(sys.argv[1])
