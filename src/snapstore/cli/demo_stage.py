"""Where a demo plays, or a benchmark: a directory of its own with room enough, left clean however it ends.

It must not know what is played.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from snapstore.cli.screen import format_size
from snapstore.doctor.mount import mount_of

#: What ends the demo from outside: the stores are removed then, too.
_END_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def check_room(directory: str, size: int) -> None:
    """Raise OSError unless what needs `size` bytes has room in `directory`."""
    status = os.statvfs(directory)
    free = status.f_bavail * status.f_frsize
    if free < size:
        words = f"{format_size(size)} are needed and {format_size(free)} free; give a smaller --size"
        raise OSError(errno.ENOSPC, words, os.path.dirname(directory))


def file_system_of(directory: str) -> str:
    """Return what `directory` lies on, as `ext4 on /dev/vda1`; tmpfs is memory, which proves nothing."""
    mount = mount_of(directory)
    return f"{mount.kind} on {mount.source}" if mount else "unknown"


@contextmanager
def own_directory(parent: str | None, prefix: str = "snapstore-demo-") -> Iterator[str]:
    """Yield a new directory below `parent`, or below $TMPDIR, and remove it at the end."""
    directory = tempfile.mkdtemp(prefix=prefix, dir=parent)
    try:
        yield directory
    finally:
        shutil.rmtree(directory)


@contextmanager
def interruptible() -> Iterator[None]:
    """Let the first signal that would end this process interrupt it, so that it cleans up.

    The ones after it are passed over, since cleaning up takes a moment and people are impatient.
    """
    # What is ignored stays so: nohup, and jobs in the background of a script.
    numbers = [number for number in _END_SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]

    def interrupt(*_signal: object) -> None:
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
