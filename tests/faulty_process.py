"""A process under `fault_shim.c`: what its cases do, and the handle by which they arm the shim.

Run as a program, it runs one case, named on the command line, in a directory of its own. Each of the
many saves of a case is a forked child, so that it may be killed or poisoned without harm to the next.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import signal
import sys
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from residue import descriptors, names
from snapstore.directory import SnapshotDir
from snapstore.errors import DirectoryPoisoned, SnapshotExists, SnapshotNotDurable, SnapstoreError

#: The shim's numbers, in its order.
KINDS = (
    "openat", "flock", "fchmod", "fsync", "write", "pwrite", "fallocate", "ftruncate", "linkat", "renameat",
    "renameat2", "unlinkat", "close",
)  # fmt: skip
ANY, KILL, SHORT, CALL = -1, -1, -2, -3

#: Those that clean up: where they fail, there is nobody to tell, and something stays.
CLEANING = {"unlinkat", "close"}

#: Those that a save can do without, or for which it has another way.
DISPENSABLE = {"fallocate", "linkat"}

#: How a child ends.
PASSED, FAILED, STRUCK = 0, 1, 2

#: One that a single thread writes, and one that takes two, direct I/O, and a cut to length at the end.
CONTENTS = (b"small" * 1000, b"large" * 260_001)
CHUNK_SIZE = 1024 * 1024

#: No save makes more calls than this; a sweep that comes so far counts wrong.
CALLS_MAX = 300


class Shim:
    """The preloaded library of this process."""

    def __init__(self):
        self.library = ctypes.CDLL(os.environ["LD_PRELOAD"])

    def arm(self, kind, nth, what):
        """Strike the `nth` call of `kind` (or "any"), counted from 1, with an errno or another fault."""
        self.library.fault_arm(ANY if kind == "any" else KINDS.index(kind), nth, what)

    def call_before(self, kind, nth, call):
        """Call `call` before the `nth` call of `kind`, on the thread that makes it."""
        self._kept = ctypes.CFUNCTYPE(None)(call)
        self.library.fault_call(self._kept)
        self.arm(kind, nth, CALL)

    def count(self, kind):
        """How many calls of `kind` there were since the arming."""
        return self.library.fault_count(KINDS.index(kind))

    @property
    def struck(self):
        """Whether it has struck since the arming."""
        return self.library.fault_left() <= 0

    def disarm(self):
        """Strike no more; whether it has struck."""
        struck = self.struck
        self.library.fault_arm(ANY, 0, KILL)
        return struck


def forked(run):
    """Call `run` in a child; what it returned, or the signal that killed it, as `-signal`.

    An exception in the child fails this process, too.
    """
    child = os.fork()
    if child == 0:
        try:
            os._exit(run())
        except BaseException:  # noqa: BLE001 - the parent has to hear of it, whatever it was.
            traceback.print_exc()
            os._exit(FAILED)
    _, status = os.waitpid(child, 0)
    ended = os.waitstatus_to_exitcode(status)
    assert ended != FAILED
    return ended


def opened(path, nameless):
    """A SnapshotDir for the contents of this file."""
    return SnapshotDir(path, nameless=nameless, chunk_size=CHUNK_SIZE)


def check_whole_or_nothing(path, content):
    """Open `path` anew: the snapshot is there as a whole, or nothing is; a save works. Empties it again."""
    with SnapshotDir(path) as directory:
        stored = directory.list()
        assert len(names(path)) == 2 * len(stored), names(path)
        if stored:
            assert directory.verify(1).path.read_bytes() == content
        else:
            assert directory.save_from(content, 1).path.read_bytes() == content
    for name in names(path):
        (path / name).unlink()
    return bool(stored)


def outcome(call):
    """What `call` raised of the kinds that a save may raise when the disk fails, or None."""
    try:
        call()
    except (OSError, SnapstoreError) as error:
        return error
    return None


def refused(kind, call):
    """Check that `call` raises `kind`, and return the exception."""
    raised = outcome(call)
    assert isinstance(raised, kind), raised
    return raised


def kills(shim, path, *, nameless, content):
    """Kill the saver before each of its calls, one after the other."""
    seen = []
    for nth in range(1, CALLS_MAX):

        def save(nth=nth):
            with opened(path, nameless) as directory:
                shim.arm("any", nth, KILL)
                directory.save_from(content, 1)
                shim.disarm()
            return PASSED

        died = forked(save) == -signal.SIGKILL
        seen.append(check_whole_or_nothing(path, content))
        if not died:
            break
    assert not died
    # Nothing at first, then the whole, and never anything else in between.
    assert seen == sorted(seen)
    assert seen.count(False) > 5


def errors(shim, path, *, nameless, content, code):
    """Fail each call of each kind, one after the other: an error that says why, and nothing left."""
    for kind in sorted(set(KINDS) - CLEANING):
        for nth in range(1, CALLS_MAX):

            def save(kind=kind, nth=nth):
                directory = opened(path, nameless)
                before = descriptors()
                shim.arm(kind, nth, code)
                raised = outcome(lambda: directory.save_from(content, 1))
                if isinstance(raised, SnapshotNotDurable):
                    assert (kind, raised.__cause__.errno, len(names(path))) == ("fsync", code, 2)
                elif raised:
                    assert (raised.errno, raised.filename) == (code, str(path / f"{1:016x}.db"))
                    assert names(path) == []
                else:
                    assert kind in DISPENSABLE or not shim.struck, f"{kind} {nth} failed, the save did not"
                struck = shim.disarm()
                assert descriptors() == before
                return STRUCK if struck else PASSED

            ended = forked(save)
            check_whole_or_nothing(path, content)
            if ended == PASSED:
                break
        assert ended == PASSED


def interruptions(shim, path, *, nameless, content):
    """A write that is interrupted or cut short is gone on with."""
    with opened(path, nameless) as directory:
        for index, (kind, what) in enumerate(
            [("pwrite", errno.EINTR), ("pwrite", SHORT), ("write", errno.EINTR), ("write", SHORT),
             ("flock", errno.EINTR) if nameless else ("pwrite", errno.EINTR)]
        ):  # fmt: skip
            # The first flock of a nameless save is the manifest's, and does not wait.
            shim.arm(kind, 2 if kind == "flock" else 1, what)
            assert directory.save_from(content, index).path.read_bytes() == content
            assert shim.disarm()
            assert directory.verify(index).size == len(content)
    for name in names(path):
        (path / name).unlink()


def file_fsync(shim, path, *, nameless, content):
    """An fsync of the file that failed ends the save, and is not tried again."""
    with opened(path, nameless) as directory:
        shim.arm("fsync", 1, errno.EIO)
        error = refused(OSError, lambda: directory.save_from(content, 1))
        assert (error.errno, error.filename) == (errno.EIO, str(path / f"{1:016x}.db"))
        assert shim.count("fsync") == 1
        assert names(path) == []
        # A new attempt writes a new file, and may well succeed.
        assert directory.save_from(content, 1).size == len(content)


def directory_fsync(shim, path, *, nameless, content):
    """An fsync of the directory that failed poisons; a new opening looks for itself."""
    directory = opened(path, nameless)
    shim.arm("fsync", 3, errno.EIO)
    error = refused(SnapshotNotDurable, lambda: directory.save_from(content, 1))
    assert error.__cause__.errno == errno.EIO
    assert shim.count("fsync") == 3
    for index in (1, 2):
        refused(DirectoryPoisoned, lambda index=index: directory.save_from(content, index))
    assert shim.count("fsync") == 3
    assert directory.verify(1).size == len(content)
    directory.close()
    with SnapshotDir(path) as again:
        refused(SnapshotExists, lambda: again.save_from(content, 1))
        assert again.save_from(content, 2).size == len(content)


def directory_fsync_of_exists(shim, path, *, nameless, content):
    """That a snapshot exists is no news that lasts, unless the directory can be synced."""
    with opened(path, nameless) as directory:
        directory.save_from(content, 1)
        shim.arm("fsync", 1, errno.EIO)
        error = refused(SnapshotNotDurable, lambda: directory.save_from(content, 1))
        assert error.__cause__.filename == str(path)
        refused(DirectoryPoisoned, lambda: directory.save_from(content, 1))


def directory_fsync_of_purge(shim, path, *, nameless, content):
    """The kernel tells of a failed fsync once, so whoever hears of it poisons for all."""
    with opened(path, nameless) as directory:
        directory.save_from(content, 1)
        directory.save_from(content, 2)
        shim.arm("fsync", 1, errno.EIO)
        assert refused(OSError, lambda: directory.purge(keep=1)).errno == errno.EIO
        refused(DirectoryPoisoned, lambda: directory.save_from(content, 3))


def opening(shim, path, *, nameless, content):
    """A directory whose fsync fails is not opened, and no descriptor stays."""
    before = descriptors()
    shim.arm("fsync", 1, errno.EIO)
    assert refused(OSError, lambda: opened(path, nameless)).errno == errno.EIO
    assert descriptors() == before


def cleaner(shim, path, *, nameless, content):
    """A cleaner that takes a new file before its saver has locked it costs the saver nothing."""
    with opened(path, nameless) as directory, opened(path, nameless) as other:
        removed = []
        shim.call_before("flock", 1, lambda: removed.append(other.remove_orphans()))
        assert directory.save_from(content, 1).size == len(content)
        assert len(removed[0]) == 1
        assert len(names(path)) == 2


def slow_cleaner(shim, path, *, nameless, content):
    """Nor does one that has the lock when the saver wants it, and has not removed the file yet."""
    with opened(path, nameless) as directory, ThreadPoolExecutor(1) as pool:
        removals = [pool.submit(names, path)]  # The thread is there beforehand.
        removals[0].result()

        def lock_and_remove_later():
            (name,) = names(path)
            fd = os.open(path / name, os.O_RDONLY)
            fcntl.flock(fd, fcntl.LOCK_EX)
            # The other thread needs the GIL, which is free when the saver goes on.
            removals.append(pool.submit(lambda: ((path / name).unlink(), os.close(fd))))

        shim.call_before("flock", 1, lock_and_remove_later)
        assert directory.save_from(content, 1).size == len(content)
        removals[-1].result()
        assert len(names(path)) == 2


CASES = {
    "kills": kills,
    "EIO": lambda *given, **options: errors(*given, **options, code=errno.EIO),
    "ENOSPC": lambda *given, **options: errors(*given, **options, code=errno.ENOSPC),
    "interruptions": interruptions,
    "file fsync": file_fsync,
    "directory fsync": directory_fsync,
    "directory fsync of exists": directory_fsync_of_exists,
    "directory fsync of purge": directory_fsync_of_purge,
    "opening": opening,
    "cleaner": cleaner,
    "slow cleaner": slow_cleaner,
}


def main(case, path, mode):
    """Run `case` once for each content, in a new directory each."""
    for number, content in enumerate(CONTENTS):
        own = Path(path) / str(number)
        own.mkdir()
        with contextlib.suppress(SystemExit):
            CASES[case](Shim(), own, nameless=mode == "nameless", content=content)


if __name__ == "__main__":
    main(*sys.argv[1:])
