"""Many savers, readers and cleaners of one directory: threads, processes, the killed and the forked."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from processes import Process
from residue import names
from snapstore import disk
from snapstore.directory import SnapshotDir
from snapstore.errors import SnapshotBusy, SnapshotExists, SnapshotNotFound

CONTENT = os.urandom(200_003)

#: A bound for waits that a defect would make endless.
WAIT_S = 30.0

#: Saves what comes on standard input, in the named mode; says when it began and how it ended.
SAVER = """
directory = SnapshotDir(sys.argv[1], nameless=sys.argv[2] == "nameless")

class Reader:
    begun = False

    def read(self, size):
        if not self.begun:
            self.begun = True
            return b"first bytes"
        say("begun")
        sys.stdin.read()
        return b""

saved = directory.save_from(Reader(), 1)
say("saved", saved.size)
"""

MODES = ["nameless", "named"]


@pytest.fixture(params=MODES)
def mode(request):
    return request.param


def lasting(path):
    """The names in `path` but for temporary ones."""
    return [name for name in names(path) if not name.startswith(".tmp-")]


def outcome(save, content, index):
    """What came of one of many saves of an index: "saved", or why not."""
    try:
        save(content, index)
    except (SnapshotExists, SnapshotBusy) as error:
        return type(error).__name__
    return "saved"


@pytest.mark.parametrize("shared", [True, False], ids=["one object", "an object each"])
def test_of_many_threads_that_save_one_index_exactly_one_wins(shared, mode, tmp_path):
    savers, rounds = 4, 12
    contents = [bytes([number]) * (10_000 + number) for number in range(savers)]
    directories = [SnapshotDir(tmp_path, nameless=mode == "nameless") for _ in range(1 if shared else savers)]
    start = threading.Barrier(savers)

    def run(number, index):
        start.wait(WAIT_S)
        directory = directories[number % len(directories)]
        return outcome(directory.save_from, io.BytesIO(contents[number]), index)

    with ThreadPoolExecutor(savers) as pool:
        for index in range(rounds):
            outcomes = list(pool.map(run, range(savers), [index] * savers))
            assert outcomes.count("saved") == 1
            assert set(outcomes) <= {"saved", "SnapshotExists", "SnapshotBusy"}
            winner = contents[outcomes.index("saved")]
            assert directories[0].verify(index).path.read_bytes() == winner
    assert len(names(tmp_path)) == 2 * rounds
    for directory in directories:
        directory.close()


def test_of_many_processes_that_save_one_index_exactly_one_wins(mode, tmp_path):
    script = """
    directory = SnapshotDir(sys.argv[1], nameless=sys.argv[2] == "nameless")
    content = sys.argv[3].encode() * 10_000
    for line in sys.stdin:
        try:
            directory.save_from(content, int(line))
        except SnapshotExists:
            say("exists")
        else:
            say("saved")
    """
    SnapshotDir(tmp_path).close()
    rounds = 12
    with (
        Process(script, tmp_path, mode, "a") as first,
        Process(script, tmp_path, mode, "bb") as second,
        Process(script, tmp_path, mode, "ccc") as third,
        SnapshotDir(tmp_path) as directory,
    ):
        savers = {b"a": first, b"bb": second, b"ccc": third}
        for index in range(rounds):
            for saver in savers.values():
                saver.say(index)
            answers = {content: saver.hear() for content, saver in savers.items()}
            assert sorted(answers.values()) == ["exists", "exists", "saved"]
            (winner,) = (content for content, answer in answers.items() if answer == "saved")
            assert directory.verify(index).path.read_bytes() == winner * 10_000
        for saver in savers.values():
            saver.finish()
    assert len(names(tmp_path)) == 2 * rounds


def test_different_indexes_are_saved_at_once(mode, tmp_path):
    with SnapshotDir(tmp_path, nameless=mode == "nameless") as directory, ThreadPoolExecutor(8) as pool:
        list(pool.map(directory.save_from, [CONTENT] * 16, range(16)))
        assert [saved.size for saved in map(directory.verify, range(16))] == [len(CONTENT)] * 16
    assert len(names(tmp_path)) == 32


@pytest.mark.slow
def test_threads_that_list_at_once_each_see_everything(tmp_path):
    """A lister that misses a name would take a manifest for an orphan, and a number for a free one."""
    for index in range(2000):
        (tmp_path / f"{index:016x}.db").touch()
    directory = os.open(tmp_path, os.O_RDONLY)
    with ThreadPoolExecutor(4) as pool:
        listed = list(pool.map(disk.snapshot_indexes, [directory] * 40))
    os.close(directory)
    assert [len(indexes) for indexes in listed] == [2000] * 40


def test_saves_go_on_among_openings_sweeps_purges_and_readers(mode, tmp_path):
    """Cleaners may take nothing that is under way, and readers see whole snapshots or none."""
    done = threading.Event()
    verified = 0

    def clean():
        while not done.is_set():
            with SnapshotDir(tmp_path) as other:
                other.purge(keep=2)
                other.remove_orphans()

    def read():
        count = 0
        with SnapshotDir(tmp_path) as other:
            while not done.is_set():
                for saved in other.list():
                    # It may be purged between the list and now, or be named but not yet let go.
                    with contextlib.suppress(SnapshotNotFound):
                        count += other.verify(saved.index).size == len(CONTENT)
        return count

    with ThreadPoolExecutor(3) as pool:
        cleaners = [pool.submit(clean), pool.submit(clean)]
        reader = pool.submit(read)
        try:
            with SnapshotDir(tmp_path, nameless=mode == "nameless") as directory:
                for index in range(60):
                    assert directory.save_from(CONTENT, index).path.name == f"{index:016x}.db"
                while not verified:
                    verified += directory.verify(59).size
        finally:
            done.set()
        for cleaner in cleaners:
            cleaner.result(WAIT_S)
        reader.result(WAIT_S)
    with SnapshotDir(tmp_path) as directory:
        directory.purge(keep=2)
        assert [saved.index for saved in directory.list()] == [58, 59]
        assert len(names(tmp_path)) == 4


def test_a_killed_saver_leaves_nothing_that_the_next_opening_does_not_take(mode, tmp_path):
    with Process(SAVER, tmp_path, mode) as saver:
        assert saver.hear() == "begun"
        saver.send_signal(signal.SIGKILL)
        saver.wait(WAIT_S)
    assert lasting(tmp_path) == []
    assert bool(names(tmp_path)) == (mode == "named")
    with SnapshotDir(tmp_path) as directory:
        assert names(tmp_path) == []
        assert directory.save_from(CONTENT, 1).size == len(CONTENT)


def test_a_living_savers_file_stays_while_a_dead_ones_goes(tmp_path):
    with Process(SAVER, tmp_path, "named") as living:
        assert living.hear() == "begun"
        (lives,) = names(tmp_path)
        with Process(SAVER, tmp_path, "named") as dead:
            assert dead.hear() == "begun"
            assert len(names(tmp_path)) == 2
            dead.kill()
            dead.wait(WAIT_S)
        with SnapshotDir(tmp_path) as directory:
            assert names(tmp_path) == [lives]
            assert directory.remove_orphans() == []
            assert living.finish() == ["saved 11"]
            assert directory.verify(1).path.read_bytes() == b"first bytes"


def test_the_end_of_the_interpreter_in_the_middle_of_a_save_shows_nothing(mode, tmp_path):
    script = """
    import threading
    directory = SnapshotDir(sys.argv[1], nameless=sys.argv[2] == "nameless")
    read_fd, write_fd = os.pipe()
    begun = threading.Event()

    class Reader:
        def read(self, size):
            begun.set()
            return os.read(read_fd, size)

    for index, source in enumerate([read_fd, Reader()]):
        threading.Thread(target=directory.save_from, args=(source, index), daemon=True).start()
    begun.wait()
    """
    with Process(script, tmp_path, mode) as process:
        assert process.finish() == []
    assert lasting(tmp_path) == []
    SnapshotDir(tmp_path).close()
    assert names(tmp_path) == []


def test_a_forked_child_can_do_nothing_and_harms_nothing(mode, tmp_path):
    script = """
    import threading
    directory = SnapshotDir(sys.argv[1], nameless=sys.argv[2] == "nameless")
    stored = directory.save_from(b"before", 0) and directory.open(0)
    begun, go_on = threading.Event(), threading.Event()
    before = sorted(os.listdir(sys.argv[1]))

    class Reader:
        answers = [b"first", b"second", b""]

        def read(self, size):
            begun.set()
            go_on.wait()
            return self.answers.pop(0)

    saver = threading.Thread(target=directory.save_from, args=(Reader(), 1))
    saver.start()
    begun.wait()
    under_way = sorted(os.listdir(sys.argv[1]))
    child = os.fork()
    if child == 0:
        calls = [directory.list, directory.remove_orphans, lambda: directory.purge(keep=1),
                 lambda: directory.save_from(b"", 2), lambda: directory.open(0),
                 lambda: directory.verify(0), lambda: directory.get_snap_file_path(0)]
        for call in calls:
            try:
                call()
            except ForkedProcess as error:
                assert "open one in this process" in str(error)
            else:
                os._exit(1)
        with SnapshotDir(sys.argv[1]) as own:
            assert [saved.index for saved in own.list()] == [0]
        directory.close()
        stored.close()
        del directory, stored, saver
        sys.exit(7)
    _, status = os.waitpid(child, 0)
    say("child", os.waitstatus_to_exitcode(status))
    say("same", sorted(os.listdir(sys.argv[1])) == under_way)
    say("temporary", len(under_way) - len(before))
    go_on.set()
    saver.join()
    say(directory.verify(1).path.read_bytes().decode())
    """
    with Process(script, tmp_path, mode) as process:
        said = process.finish()
    assert said == ["child 7", "same True", f"temporary {int(mode == 'named')}", "firstsecond"]
    assert len(names(tmp_path)) == 4


class Halting:
    """A reader that says when it was first asked, and gives its bytes when it may go on."""

    def __init__(self, content):
        self.content = io.BytesIO(content)
        self.begun, self.go_on = threading.Event(), threading.Event()

    def read(self, size):
        self.begun.set()
        assert self.go_on.wait(WAIT_S)
        return self.content.read(size)


def test_a_child_forked_during_a_save_that_lives_on_does_not_keep_the_snapshot_leased(tmp_path):
    script = """
    import threading
    directory = SnapshotDir(sys.argv[1], nameless=False)
    begun, go_on = threading.Event(), threading.Event()

    class Reader:
        def read(self, size):
            begun.set()
            go_on.wait()
            return b""

    saver = threading.Thread(target=directory.save_from, args=(Reader(), 1))
    saver.start()
    begun.wait()
    ours, childs = os.pipe(), os.fork()
    if childs == 0:
        os.close(ours[1])
        os.read(ours[0], 1)
        os._exit(0)
    go_on.set()
    saver.join()
    try:
        say(directory.verify(1).size)
    finally:
        os.close(ours[1])
        os.waitpid(childs, 0)
    """
    with Process(script, tmp_path) as process:
        assert process.finish() == ["0"]


def test_a_save_under_way_ends_well_when_its_directory_is_closed(mode, tmp_path):
    directory = SnapshotDir(tmp_path, nameless=mode == "nameless")
    reader = Halting(CONTENT)
    with ThreadPoolExecutor(1) as pool:
        saving = pool.submit(directory.save_from, reader, 1)
        assert reader.begun.wait(WAIT_S)
        directory.close()
        reader.go_on.set()
        assert saving.result(WAIT_S).path.read_bytes() == CONTENT
    with SnapshotDir(tmp_path) as directory:
        assert directory.verify(1).size == len(CONTENT)


def test_a_purge_during_a_save_takes_the_old_and_leaves_the_new(mode, tmp_path):
    with SnapshotDir(tmp_path, nameless=mode == "nameless") as directory, ThreadPoolExecutor(1) as pool:
        directory.save_from(CONTENT, 1)
        directory.save_from(CONTENT, 2)
        reader = Halting(CONTENT)
        saving = pool.submit(directory.save_from, reader, 3)
        assert reader.begun.wait(WAIT_S)
        assert directory.purge(keep=1) == [1]
        assert directory.remove_orphans() == []
        reader.go_on.set()
        saving.result(WAIT_S)
        assert [saved.index for saved in directory.list()] == [2, 3]
