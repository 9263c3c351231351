"""A directory whose fsync failed: who opens it next believes nothing until all was read back."""

from __future__ import annotations

import errno
import logging
import os
import subprocess

import pytest

from nodes import CONTENT, UNIT
from processes import Process
from residue import descriptors, names
from rotten import fail, rot
from snapstore import disk, poison
from snapstore.directory import SnapshotDir
from snapstore.errors import DirectoryPoisoned, SnapshotCorrupt, SnapshotNotDurable
from snapstore.stored import StoredSnapshot


@pytest.fixture
def path(tmp_path):
    return tmp_path / "snap"


def opened(path):
    return SnapshotDir(path, chunk_size=UNIT)


def markers(path):
    return [name for name in names(path) if name.startswith(".poisoned-")]


def blind(directory):
    """Make the kernel refuse every fsync of this object's directory, and nothing else that a save does."""
    fd = os.open(directory.path, os.O_PATH)
    os.dup2(fd, directory._fd, inheritable=False)
    os.close(fd)


def poisoned(path, *indexes):
    """A directory with snapshots, and the marker of an object whose last fsync failed."""
    with opened(path) as directory:
        for index in indexes:
            directory.save_from(CONTENT, index)
        blind(directory)
        with pytest.raises(SnapshotNotDurable):
            directory.save_from(CONTENT, indexes[-1])
    assert len(markers(path)) == 1


def test_a_failed_fsync_of_the_directory_leaves_one_marker_and_refuses_everything_that_changes(path):
    with opened(path) as directory:
        directory.save_from(CONTENT, 1)
        blind(directory)
        with pytest.raises(SnapshotNotDurable) as raised:
            directory.save_from(CONTENT, 2)
        assert raised.value.__cause__.errno == errno.EBADF
        assert len(markers(path)) == 1
        (marker,) = markers(path)
        assert (path / marker).read_text() == "an fsync failed: Bad file descriptor\n"
        assert (path / marker).stat().st_mode & 0o777 == 0o600
        before = names(path)
        for change in (
            lambda: directory.save_from(CONTENT, 3),
            lambda: directory.confirm(1),
            lambda: directory.purge(keep=1),
            lambda: directory.set_aside(1, "a good one is offered"),
            directory.remove_orphans,
        ):
            with pytest.raises(DirectoryPoisoned, match="open a new SnapshotDir"):
                change()
        assert directory.verify(2).size == len(CONTENT)
        rot(path / disk.snapshot_name(1))
        with pytest.raises(SnapshotCorrupt, match=r"could not be set aside: fsync of .* failed earlier"):
            directory.verify(1)
        assert names(path) == before


@pytest.mark.parametrize("change", ["purge", "remove_orphans", "verify"])
def test_every_change_whose_fsync_fails_leaves_a_marker(change, path, monkeypatch):
    with opened(path) as directory:
        for index in (1, 2):
            directory.save_from(CONTENT, index)
        (path / disk.temp_name(3)).touch()
        if change == "verify":
            rot(path / disk.snapshot_name(1))
        monkeypatch.setattr(disk, "sync_directory", lambda fd: fail(errno.EIO))
        calls = {
            "purge": lambda: directory.purge(keep=1),
            "remove_orphans": directory.remove_orphans,
            "verify": lambda: directory.verify(1),
        }
        with pytest.raises((OSError, SnapshotCorrupt), match="Input/output error"):
            calls[change]()
        assert len(markers(path)) == 1
        with pytest.raises(DirectoryPoisoned):
            directory.save_from(CONTENT, 4)


def test_the_next_opening_reads_all_back_and_sets_aside_what_is_broken(path, caplog):
    poisoned(path, 1, 2, 3)
    rot(path / disk.snapshot_name(2), 8 * UNIT)
    rot(path / disk.manifest_name(3), 8)
    (path / f"{9:016x}.db").mkdir()
    with caplog.at_level(logging.WARNING), opened(path) as directory:
        assert [saved.index for saved in directory.list()] == [1]
        assert [aside.index for aside in directory.broken()] == [2, 3]
        assert markers(path) == []
        assert directory.save_from(CONTENT, 2).size == len(CONTENT)
    first, *others = [record.getMessage() for record in caplog.records]
    assert first == f"an fsync of {path} failed earlier; reading back all it has"
    assert "digest of chunk 1" in others[0]
    assert f"set aside as {path}/{2:016x}.broken-1" in others[0]
    assert len(others) == 2


def test_all_is_synced_then_all_is_read_and_the_marker_goes_last(path, monkeypatch):
    poisoned(path, 1, 2)
    (marker,) = markers(path)
    did = []

    def noted(name, call, subject=lambda given: given[0]):
        def wrapped(*given, **options):
            did.append((name, subject(given)))
            return call(*given, **options)

        return wrapped

    monkeypatch.setattr(os, "fsync", noted("sync", os.fsync, lambda given: _name_of(given[0])))
    monkeypatch.setattr(disk, "drop_cache", noted("drop", disk.drop_cache, lambda given: _name_of(given[0])))
    monkeypatch.setattr(StoredSnapshot, "verify", noted("read", StoredSnapshot.verify, _snapshot_name_of))
    monkeypatch.setattr(os, "unlink", noted("remove", os.unlink))
    opened(path).close()
    snapshots = [(disk.snapshot_name(index), disk.manifest_name(index)) for index in (1, 2)]
    assert did == [
        ("sync", path.name),  # Every opening does this.
        *(("sync", name) for names in snapshots for name in names),
        ("sync", path.name),
        *(
            step
            for name, manifest in snapshots
            for step in (("drop", name), ("drop", manifest), ("read", name))
        ),
        ("sync", path.name),
        ("remove", marker),
        ("sync", path.name),
    ]


def _name_of(fd):
    return os.path.basename(os.readlink(f"/proc/self/fd/{fd}"))


def _snapshot_name_of(given):
    return given[0].path.name


@pytest.mark.parametrize("failing", [disk.snapshot_name(2), disk.manifest_name(1), "snap"])
def test_where_an_fsync_fails_again_the_directory_is_not_opened_and_the_marker_stays(
    failing, path, monkeypatch
):
    poisoned(path, 1, 2)
    sync, before, left = os.fsync, descriptors(), names(path)
    calls = []

    def fsync(fd):
        calls.append(_name_of(fd))
        # The directory's own first fsync is every opening's.
        if calls[-1] == failing and (failing != "snap" or calls.count("snap") == 2):
            fail(errno.EIO)
        sync(fd)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        with pytest.raises(OSError, match="Input/output error"):
            opened(path)
    assert names(path) == left
    assert descriptors() == before
    with opened(path) as directory:
        assert [directory.verify(index).index for index in (1, 2)] == [1, 2]
    assert markers(path) == []


def test_where_something_cannot_be_read_the_marker_stays(path, monkeypatch):
    poisoned(path, 1)
    left = names(path)
    with monkeypatch.context() as patch:
        patch.setattr(disk, "read_small", lambda *given, **options: fail(errno.EIO))
        with pytest.raises(OSError, match="Input/output error"):
            opened(path)
    assert names(path) == left


def test_a_marker_that_is_left_while_another_opening_reads_stays_for_the_next(path, monkeypatch):
    poisoned(path, 1)
    (seen,) = markers(path)
    open_stored = poison.open_stored

    def open_and_poison(directory, *given, **options):
        poison.leave_marker(directory, "again")
        return open_stored(directory, *given, **options)

    with monkeypatch.context() as patch:
        patch.setattr(poison, "open_stored", open_and_poison)
        opened(path).close()
    (later,) = markers(path)
    assert later != seen
    opened(path).close()
    assert markers(path) == []


def test_two_processes_that_open_at_once_both_come_through(path):
    script = """
    for line in sys.stdin:
        with SnapshotDir(sys.argv[1]) as directory:
            say(*[saved.index for saved in directory.list()])
    """
    with opened(path) as directory:
        for index in (1, 2, 3):
            directory.save_from(CONTENT, index)
    fd = os.open(path, os.O_RDONLY)
    with Process(script, path) as first, Process(script, path) as second:
        for _ in range(10):
            poison.leave_marker(fd, OSError(errno.EIO, "broken"))
            first.say()
            second.say()
            assert [first.hear(), second.hear()] == ["1 2 3", "1 2 3"]
            assert markers(path) == []
    os.close(fd)


def test_a_directory_that_takes_no_marker_is_poisoned_all_the_same(path, monkeypatch):
    with opened(path) as directory:
        path.rmdir()
        monkeypatch.setattr(disk, "sync_directory", lambda fd: fail(errno.EIO))
        monkeypatch.setattr(disk, "sweep", lambda fd: ["something"])
        with pytest.raises(OSError, match="Input/output error"):
            directory.remove_orphans()
        with pytest.raises(DirectoryPoisoned):
            directory.purge(keep=1)


def test_a_reading_after_the_cache_is_dropped_asks_the_disk(path):
    """By a read that may not wait for the disk: it gets what the page cache has, or nothing."""
    with opened(path) as directory:
        saved = directory.save_from(CONTENT, 1)
    kind = subprocess.run(["stat", "-f", "-c", "%T", path], check=True, capture_output=True, text=True).stdout
    if kind.strip() in ("tmpfs", "ramfs"):
        pytest.skip("NO CACHE TO DROP: the temporary directory is in memory")
    with open(saved.path, "rb") as file:
        file.read()
        assert os.preadv(file.fileno(), [bytearray(1)], 0, os.RWF_NOWAIT) == 1
        disk.drop_cache(file.fileno())
        with pytest.raises(BlockingIOError):
            os.preadv(file.fileno(), [bytearray(1)], 0, os.RWF_NOWAIT)
