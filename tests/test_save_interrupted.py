"""The end of the interpreter, and forks, in the middle of a save: whole or nothing, and nobody crashes.

What SIGKILL leaves is test_kill.py's, and what Ctrl-C does test_signals.py's.
"""

from __future__ import annotations

import signal
import textwrap

import pytest

from processes import Process
from residue import names
from snapstore.directory import SnapshotDir

#: Where a fault of the core's own would be told; and a fork beside threads, which is the very case here.
ENVIRONMENT = {"PYTHONFAULTHANDLER": "1", "PYTHONWARNINGS": "ignore:This process:DeprecationWarning"}

#: Saves on a thread what comes from this end of a pipe, or from a reader in Python; `begun` when it reads.
SAVER = """
import threading, time
path, mode, kind, thread, way = sys.argv[1:6]
directory = SnapshotDir(path, nameless=mode == "nameless", chunk_size=4096)
read_fd, write_fd = os.pipe()
os.write(write_fd, b"x" * 10_000)
begun = threading.Event()

class Reader:
    def read(self, size):
        data = os.read(read_fd, size)
        begun.set()
        return data

class Counted:
    '''What the core has read of the pipe, seen from outside of it.'''
    def wait(self):
        from fcntl import ioctl
        from struct import unpack
        from termios import FIONREAD
        while unpack("i", ioctl(read_fd, FIONREAD, bytes(4)))[0]:
            os.sched_yield()

if kind == "descriptor":
    source, begun = read_fd, Counted()
else:
    source = Reader()
saver = threading.Thread(target=directory.save_from, args=(source, 1), daemon=thread == "daemon")
saver.start()
begun.wait()
"""

#: How the interpreter ends; the status that its parent sees, and whether it waits for its threads.
WAYS = {
    "its last line": ("", 0, True),
    "sys.exit": ("sys.exit(3)", 3, True),
    "an exception": ("sys.stderr.close(); raise RuntimeError", 1, True),
    "os._exit": ("os._exit(4)", 4, False),
    "a signal": ("os.kill(os.getpid(), 15)", -signal.SIGTERM, False),
    # The interpreter may hear of it a little later, where another thread takes the GIL at that moment.
    "Ctrl-C": (
        "sys.stderr.close(); os.kill(os.getpid(), 2)\nwhile True: time.sleep(0.01)",
        -signal.SIGINT,
        True,
    ),
}

#: A process for each, of which there are many.
pytestmark = pytest.mark.slow

modes = pytest.mark.parametrize("mode", ["nameless", "named"])
kinds = pytest.mark.parametrize("kind", ["descriptor", "reader"])


def assert_reopened(path, indexes, content):
    """Opened anew it has these snapshots, whole, and no other name."""
    with SnapshotDir(path) as directory:
        assert [saved.index for saved in directory.list()] == indexes
        for index in indexes:
            assert directory.verify(index).path.read_bytes() == content
    assert len(names(path)) == 2 * len(indexes)


@modes
@kinds
@pytest.mark.parametrize("thread", ["daemon", "joined"])
@pytest.mark.parametrize("way", WAYS)
def test_the_interpreter_ends_in_the_middle_of_a_save(tmp_path, mode, kind, thread, way):
    """A thread that is not waited for leaves nothing; one that is comes to its end, and all is there."""
    end, status, waits = WAYS[way]
    waits = waits and thread == "joined"
    # Who waits for the saver has to see the end of its source: the pipe's other end goes first.
    script = SAVER + ("os.close(write_fd)\n" if waits else "") + end + "\n"
    with Process(script, tmp_path, mode, kind, thread, way, environment=ENVIRONMENT) as process:
        said, _ = process.communicate(timeout=60)
        assert (said, process.returncode) == ("", status)
    assert_reopened(tmp_path, [1] if waits else [], b"x" * 10_000)


@modes
@pytest.mark.parametrize("end", ["pass", "sys.exit(0)", "os._exit(0)"])
def test_the_interpreter_ends_among_many_saves(tmp_path, mode, end):
    """The end falls on fsyncs and names, too: each snapshot that was told of is there, and no other half."""
    script = """
    import threading
    directory = SnapshotDir(sys.argv[1], nameless=sys.argv[2] == "nameless", chunk_size=4096)
    content, told = b"x" * 10_000, []

    def run(indexes):
        for index in indexes:
            directory.save_from(content, index)
            told.append(index)

    for first in range(3):
        threading.Thread(target=run, args=(range(first, 10**6, 3),), daemon=True).start()
    while len(told) < 20:
        os.sched_yield()
    say(*told)
    """
    with Process(script + end + "\n", tmp_path, mode, environment=ENVIRONMENT) as process:
        (line,) = process.finish()
    told = {int(word) for word in line.split()}
    with SnapshotDir(tmp_path) as directory:
        found = [saved.index for saved in directory.list()]
        assert told <= set(found)
        for index in found:
            assert directory.verify(index).path.read_bytes() == b"x" * 10_000
    assert len(names(tmp_path)) == 2 * len(found)


#: Which descriptors an interpreter has that was started in the place of a child.
WHAT_IS_OPEN = """
import os, sys
opened = [int(fd) for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}")]
sys.exit(7 if sorted(opened) == [0, 1, 2] else 8)
"""

#: What a child does that another thread forked in the middle of a save, and the status it ends with.
CHILDREN = {
    "os._exit": ("os._exit(7)", 7),
    # The child's main thread is the one that forked: its end is that of the interpreter.
    "sys.exit": ("sys.exit(7)", 0),
    "its last line": ("pass", 0),
    "a signal": ("os.kill(os.getpid(), 9)", -signal.SIGKILL),
    "exec": (f"os.execv(sys.executable, [sys.executable, '-I', '-c', {WHAT_IS_OPEN!r}])", 7),
    "its own directory": (
        """
        with SnapshotDir(path, nameless=mode == "nameless") as own:
            own.remove_orphans()
            own.save_from(b"x" * 10_005, 2)
        os._exit(7)
        """,
        7,
    ),
    "collecting all": (
        """
        import gc
        for name in ("directory", "saver", "source"):
            del globals()[name]
        gc.collect()
        os._exit(7)
        """,
        7,
    ),
}

FORKER = """
def be_a_child():
    os.close(write_fd)
{does}

def fork():
    child = os.fork()
    if child == 0:
        return be_a_child()
    say(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

forker = threading.Thread(target=fork)
forker.start()
forker.join()
if os.getpid() == parent:
    os.write(write_fd, b"x" * 5)
    os.close(write_fd)
    saver.join()
    say(directory.verify(1).size)
"""


@modes
@kinds
@pytest.mark.parametrize("child", CHILDREN)
def test_a_fork_in_the_middle_of_a_save_harms_neither(tmp_path, mode, kind, child):
    """Another thread forks while the saver is in the core, or in its reader; the saver goes on."""
    does, status = CHILDREN[child]
    does = textwrap.indent(textwrap.dedent(does), "    ")
    script = SAVER + "parent = os.getpid()\n" + FORKER.format(does=does)
    with Process(script, tmp_path, mode, kind, "joined", child, environment=ENVIRONMENT) as process:
        assert process.finish() == [str(status), "10005"]
    assert_reopened(tmp_path, [1, 2] if child == "its own directory" else [1], b"x" * 10_005)


@modes
def test_forks_that_come_all_the_time_do_not_disturb_saves(tmp_path, mode):
    """Each child opens the directory, sweeps, saves something of its own and ends in its own way."""
    script = """
    import threading
    path, mode = sys.argv[1:]
    directory = SnapshotDir(path, nameless=mode == "nameless", chunk_size=4096)
    content = b"x" * 50_000
    done = threading.Event()

    def save(first):
        for index in range(first, first + 20):
            directory.save_from(content, index)

    def fork():
        number = 0
        while not done.is_set():
            number += 1
            child = os.fork()
            if child == 0:
                with SnapshotDir(path, nameless=mode == "nameless") as own:
                    own.save_from(content, 1000 + number)
                os._exit(0)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        say(number)

    forker = threading.Thread(target=fork)
    savers = [threading.Thread(target=save, args=(first,)) for first in (100, 200)]
    for thread in (forker, *savers):
        thread.start()
    for saver in savers:
        saver.join()
    done.set()
    forker.join()
    """
    with Process(script, tmp_path, mode, environment=ENVIRONMENT) as process:
        (forks,) = map(int, process.finish())
    indexes = [*range(100, 120), *range(200, 220), *range(1001, 1001 + forks)]
    assert_reopened(tmp_path, indexes, b"x" * 50_000)


@modes
def test_a_saver_that_dies_while_its_forked_child_lives_leaves_what_the_next_sweep_takes(tmp_path, mode):
    """The child has the descriptors, and with them the lock, until it ends; nothing is ever half named."""
    script = (
        SAVER
        + """
child = os.fork()
if child == 0:
    say("child")
    sys.stdin.read()
    os._exit(0)
os.kill(os.getpid(), 9)
"""
    )
    with Process(script, tmp_path, mode, "descriptor", "joined", "", environment=ENVIRONMENT) as process:
        assert process.hear() == "child"
        process.wait(60)
        with SnapshotDir(tmp_path) as directory:
            assert directory.list() == []
            assert directory.save_from(b"y", 1).size == 1
        process.stdin.close()
        assert process.stdout.read() == ""  # The child's end, too, is gone.
    assert_reopened(tmp_path, [1], b"y")
