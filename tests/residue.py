"""What a save that failed must leave: nothing. Names, descriptors and threads are counted."""

from __future__ import annotations

import contextlib
import gc
import os
import time

#: A joined thread leaves /proc a moment after the join, and a server closes a line a moment after its last
#: word; what takes longer stays.
GONE_S_MAX = 10.0


def names(path):
    """All names in a directory, hidden ones too."""
    return sorted(os.listdir(path))


def descriptors():
    """What the open descriptors of this process stand for; the one that looks is not counted."""
    found = []
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            found.append((number, os.readlink(f"/proc/self/fd/{number}")))
    return sorted(found)


def thread_count():
    """How many threads the kernel sees in this process, those of C included."""
    return len(os.listdir("/proc/self/task"))


@contextlib.contextmanager
def nothing_left(path):
    """Whatever happens inside: names in `path`, descriptors and threads are as before."""
    gc.collect()
    names_before, descriptors_before, threads_before = names(path), descriptors(), thread_count()

    def gone():
        return thread_count() <= threads_before and descriptors() == descriptors_before

    try:
        yield
    finally:
        gc.collect()
        deadline = time.monotonic() + GONE_S_MAX
        while not gone() and time.monotonic() < deadline:
            os.sched_yield()
        assert names(path) == names_before
        assert descriptors() == descriptors_before
        assert thread_count() <= threads_before
