"""The raft demo's neighbour, a process of its own: it keeps the disk busy, as others do on a shared one.

`python -m snapstore.cli.raft_demo_neighbour DIRECTORY RATE`, in bytes/s. It must not know the nodes.
Writes and fsyncs, again and again over one file, until its parent has gone.
"""

from __future__ import annotations

import os
import sys

from snapstore import _fastpipe
from snapstore._fastpipe import Throttle
from snapstore.cli.demo_child import Parent

#: What is written between two fsyncs, in bytes: a database's commit with some of its pages.
WRITE_SIZE = 4 * 1024 * 1024


def main(directory: str, rate: int) -> None:
    """Write until the parent's end, which ends this process."""
    Parent()
    throttle, data = Throttle(rate), os.urandom(WRITE_SIZE)
    with open(os.path.join(directory, "neighbour"), "xb", buffering=0) as file:
        while True:
            file.seek(0)
            _fastpipe.send(data, file.fileno(), throttle=throttle)
            os.fsync(file.fileno())


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
