"""What the hardware gives: the disk written to past the page cache, and bytes sent over loopback.

`python -m snapstore.bench.hardware` does it, in a process of its own, since a busy neighbour in ours is none
of the hardware's. Each loop is the shortest there is: a system call for some MiB, and nothing between.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import socket
import tempfile
import time
from contextlib import suppress

from snapstore.bench.child import serve

#: Larger is not faster, and 1 MiB is a fifth slower.
WRITE_SIZE = 4 * 1024 * 1024

#: Larger than the caches of a core is slower, smaller makes more calls.
SEND_SIZE = 512 * 1024

#: What direct I/O is aligned to, on any disk.
_ALIGNMENT = 4096


def refuses_direct(directory: str | os.PathLike[str]) -> bool:
    """Whether the file system refuses direct I/O, as tmpfs did until Linux 6.6."""
    # Not every file system has O_TMPFILE; this one makes a file with a name there.
    with tempfile.TemporaryFile(dir=directory) as file:
        try:
            _set_direct(file.fileno())
        except OSError:
            return True
    return False


def write_disk(path: str, size: int, *, direct: bool) -> float:
    """Write a new file of `size` bytes of noise and sync it; the seconds that it took."""
    private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS  # Shared memory has huge pages only where told so.
    with mmap.mmap(-1, WRITE_SIZE, private) as piece, open(path, "wb", buffering=0) as file:
        # A huge page is one segment of a request where small ones are hundreds: a fifth to two fifths faster.
        # A kernel that has none refuses: then it is slower, and so are others.
        if hasattr(mmap, "MADV_HUGEPAGE"):
            with suppress(OSError):
                piece.madvise(mmap.MADV_HUGEPAGE)
        piece.write(os.urandom(WRITE_SIZE))
        began_s = time.perf_counter()
        if direct:
            _set_direct(file.fileno())
        written = 0
        with memoryview(piece) as whole:
            while written < size:
                # Direct writes are of whole blocks; what is too much at the end is cut off.
                length = min(WRITE_SIZE, -(-(size - written) // _ALIGNMENT) * _ALIGNMENT)
                with whole[:length] as part:
                    written += os.pwrite(file.fileno(), part, written)
        os.ftruncate(file.fileno(), size)
        os.fsync(file.fileno())
        return time.perf_counter() - began_s


def _set_direct(file: int) -> None:
    fcntl.fcntl(file, fcntl.F_SETFL, fcntl.fcntl(file, fcntl.F_GETFL) | os.O_DIRECT)


def send_file(path: str, port: int) -> float:
    """Send a file to a port of this machine; the seconds until the receiver says that it has all."""
    buffer = bytearray(SEND_SIZE)
    with open(path, "rb", buffering=0) as file, memoryview(buffer) as view:
        began_s = time.perf_counter()
        with socket.create_connection(("127.0.0.1", port)) as connection:
            while length := file.readinto(view):
                connection.sendall(view[:length])
            connection.shutdown(socket.SHUT_WR)
            if not connection.recv(1):
                raise ConnectionError("the receiver left before it had all")
        return time.perf_counter() - began_s


if __name__ == "__main__":
    serve({"write_disk": write_disk, "send_file": send_file})
