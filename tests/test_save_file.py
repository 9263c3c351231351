"""The save of one file: all of it under its name, or nothing, and never over another's."""

from __future__ import annotations

import errno
import gc
import io
import os

import pytest

from residue import nothing_left
from snapstore import _fastpipe
from snapstore.errors import ForkedProcess, SnapshotTooLarge

TEMP = b".tmp-1"
MANIFEST_TEMP = b".tmp-2"
NAME = b"0000000000000001.db"
MANIFEST_NAME = b"0000000000000001.json"
DATA = os.urandom(10_000)


@pytest.fixture
def directory(tmp_path):
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


@pytest.fixture(params=[True, False], ids=["nameless", "named"])
def make(request, directory):
    """Makes the file to save, nameless or under a temporary name."""
    return lambda: _fastpipe.SaveFile(directory, TEMP, nameless=request.param)


def publish(file, name=NAME, sync=None):
    return file.publish(
        name,
        manifest=b"{}",
        manifest_name=MANIFEST_NAME,
        manifest_temp_name=MANIFEST_TEMP,
        sync=sync or _fastpipe.DirectorySync(),
    )


def open_descriptors():
    return len(os.listdir("/proc/self/fd"))


def names(tmp_path):
    return sorted(path.name for path in tmp_path.iterdir())


def test_a_published_file_is_there_with_its_manifest_and_nothing_else(make, tmp_path):
    held = open_descriptors()
    with make() as file:
        copied = file.fill(DATA)
        assert copied[:2] == (len(DATA), _fastpipe.crc32c(DATA))
        assert os.pread(file.fd, 10, 5) == DATA[5:15]
        assert file.nameless == (names(tmp_path) == [])
        stage, code, sync_s = publish(file)
        assert file.fd == -1
    assert (stage, code) == ("done", 0)
    assert sync_s >= 0
    assert names(tmp_path) == sorted([NAME.decode(), MANIFEST_NAME.decode()])
    assert (tmp_path / NAME.decode()).read_bytes() == DATA
    assert (tmp_path / MANIFEST_NAME.decode()).read_bytes() == b"{}"
    assert (tmp_path / NAME.decode()).stat().st_mode & 0o777 == 0o600
    assert open_descriptors() == held


@pytest.mark.parametrize("kind", ["file", "directory", "symlink", "dangling", "fifo"])
def test_nothing_is_ever_replaced(make, tmp_path, kind):
    taken = tmp_path / NAME.decode()
    if kind == "file":
        taken.write_bytes(b"kept")
    elif kind == "directory":
        taken.mkdir()
    elif kind == "fifo":
        os.mkfifo(taken)
    else:
        taken.symlink_to("/dev/null" if kind == "symlink" else "nowhere")
    (tmp_path / MANIFEST_NAME.decode()).write_bytes(b"kept")
    before = os.lstat(taken)
    with make() as file:
        file.fill(DATA)
        assert publish(file)[:2] == ("name", errno.EEXIST)
    after = os.lstat(taken)
    assert (after.st_ino, after.st_mode, after.st_size) == (before.st_ino, before.st_mode, before.st_size)
    assert (tmp_path / MANIFEST_NAME.decode()).read_bytes() == b"kept"
    assert names(tmp_path) == sorted([NAME.decode(), MANIFEST_NAME.decode()])


def test_of_two_savers_the_first_to_publish_is_kept(directory, tmp_path):
    with (
        _fastpipe.SaveFile(directory, TEMP, nameless=False) as first,
        _fastpipe.SaveFile(directory, b".tmp-3") as second,
    ):
        first.fill(b"first")
        second.fill(b"second")
        assert publish(second)[0] == "done"
        assert publish(first)[:2] == ("name", errno.EEXIST)
    assert (tmp_path / NAME.decode()).read_bytes() == b"second"
    assert names(tmp_path) == sorted([NAME.decode(), MANIFEST_NAME.decode()])


def test_an_fsync_of_the_directory_that_failed_for_anybody_fails_for_all(make):
    sync = _fastpipe.DirectorySync()
    with sync as turn:
        turn.fail(errno.EIO)
        turn.fail(errno.ENOSPC)  # Who comes later hears of the first.
    file = make()
    file.fill(DATA)
    assert publish(file, sync=sync)[:2] == ("sync_directory", errno.EIO)
    assert sync.failed == errno.EIO


@pytest.mark.parametrize("leave", ["discard", "with", "drop", "error"])
def test_what_is_not_published_leaves_nothing(make, tmp_path, leave):
    with nothing_left(tmp_path):
        file = make()
        if leave == "error":
            with pytest.raises(SnapshotTooLarge), file:
                file.fill(DATA, size_max=5)
        else:
            file.fill(DATA)
        if leave == "with":
            with file:
                pass
        elif leave == "discard":
            file.discard()
            file.discard()
        del file
    assert names(tmp_path) == []


def test_a_file_that_is_done_is_refused(make):
    file = make()
    file.discard()
    assert file.fd == -1
    for call in (lambda: file.fill(DATA), lambda: publish(file)):
        with pytest.raises(ValueError, match="published or discarded"):
            call()


def test_a_temporary_name_that_is_taken_is_an_oserror_and_is_kept(directory, tmp_path):
    (tmp_path / TEMP.decode()).write_bytes(b"somebody's")
    with pytest.raises(FileExistsError):
        _fastpipe.SaveFile(directory, TEMP, nameless=False)
    assert (tmp_path / TEMP.decode()).read_bytes() == b"somebody's"


def test_a_manifest_that_cannot_be_written_stops_it_before_any_name(directory, tmp_path):
    (tmp_path / MANIFEST_TEMP.decode()).write_bytes(b"somebody's")
    with _fastpipe.SaveFile(directory, TEMP, nameless=False) as file:
        file.fill(DATA)
        assert publish(file)[:2] == ("manifest", errno.EEXIST)
    assert names(tmp_path) == [MANIFEST_TEMP.decode()]


def test_a_manifest_that_a_dead_saver_left_is_replaced(make, tmp_path):
    (tmp_path / MANIFEST_NAME.decode()).write_bytes(b"a dead saver's")
    with make() as file:
        file.fill(DATA)
        assert publish(file)[0] == "done"
    assert (tmp_path / MANIFEST_NAME.decode()).read_bytes() == b"{}"
    assert names(tmp_path) == sorted([NAME.decode(), MANIFEST_NAME.decode()])


def test_a_manifest_name_that_is_a_directory_stops_it_at_the_name(make, tmp_path):
    (tmp_path / MANIFEST_NAME.decode()).mkdir()
    with make() as file:
        file.fill(DATA)
        assert publish(file)[:2] == ("name", errno.EISDIR)
    assert names(tmp_path) == [MANIFEST_NAME.decode()]


def test_a_directory_removed_meanwhile_is_an_error(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    fd = os.open(folder, os.O_RDONLY)
    try:
        with _fastpipe.SaveFile(fd, TEMP) as file:
            file.fill(DATA)
            folder.rmdir()
            assert publish(file)[:2] == ("manifest", errno.ENOENT)
        for nameless in (True, False):
            with pytest.raises(FileNotFoundError):
                _fastpipe.SaveFile(fd, TEMP, nameless=nameless)
    finally:
        os.close(fd)


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_child_that_drops_it_leaves_the_parents_file(make, tmp_path):
    file = make()
    file.fill(DATA)
    before = names(tmp_path)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            publish(file)
        except ForkedProcess:
            del file
            gc.collect()
            status = 0 if names(tmp_path) == before else 2
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    assert publish(file)[0] == "done"
    assert (tmp_path / NAME.decode()).read_bytes() == DATA


def test_the_lock_of_a_directory_is_free_again_when_closed(directory):
    for _ in range(2):
        with _fastpipe.DirectoryLock(directory):
            pass


def mappings_kept_from_children():
    with open("/proc/self/smaps") as smaps:
        return sum("dc" in line.split() for line in smaps if line.startswith("VmFlags:"))


def test_a_child_does_not_share_what_a_save_writes_from(tmp_path):
    """Shared pages fall apart when they are written to, and with them what makes direct I/O fast."""
    counts = []

    class Reader:
        left = 4 * 1024 * 1024

        def read(self, size):
            counts.append(mappings_kept_from_children())
            size = min(size, self.left)
            self.left -= size
            return bytes(size)

    before = mappings_kept_from_children()
    with open(tmp_path / "target", "wb") as target:
        _fastpipe.save(Reader(), target.fileno(), size=Reader.left)
    assert counts[0] == before + 1
    assert mappings_kept_from_children() == before


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")  # The core's thread.
@pytest.mark.parametrize("reads", [1, 3])
def test_a_reader_that_forks_costs_the_parent_nothing_and_its_child_hears_of_it(tmp_path, reads):
    """Before there is a thread that writes, and when there is one, which the child has not."""
    content = os.urandom(12 * 1024 * 1024)
    parent = os.getpid()
    children = []

    class Reader(io.BytesIO):
        def read(self, size):
            children.append(os.fork() if len(children) + 1 == reads and os.getpid() == parent else None)
            return super().read(size)

    with open(tmp_path / "target", "w+b") as target:
        try:
            _fastpipe.save(Reader(content), target.fileno(), size=len(content))
        except ForkedProcess:
            os._exit(0)
        finally:
            if os.getpid() != parent:
                os._exit(1)
        assert target.read() == content
    _, status = os.waitpid(children[reads - 1], 0)
    assert os.waitstatus_to_exitcode(status) == 0
