"""What a purge may take: nothing good before something newer was read back from the disk."""

from __future__ import annotations

import errno
import fcntl

import pytest

from nodes import CONTENT, UNIT
from residue import nothing_left
from rotten import fail, rot
from snapstore import _fastpipe
from snapstore.directory import SnapshotDir
from snapstore.errors import SnapshotNotFound
from snapstore.retention import READ_BACK_MAX


@pytest.fixture
def path(tmp_path):
    return tmp_path / "snap"


def filled(path, *indexes, rotten=()):
    """A directory with snapshots that another object has saved, so that this one has read none back."""
    with SnapshotDir(path, chunk_size=UNIT) as saver:
        for index in indexes:
            saved = saver.save_from(CONTENT, index)
            if index in rotten:
                rot(saved.path, 8 * UNIT)
    return SnapshotDir(path, chunk_size=UNIT)


def indexes(directory):
    return [saved.index for saved in directory.list()]


def bytes_read(directory, keep):
    """How many bytes a purge reads."""
    progress = _fastpipe.Progress()
    directory.purge(keep=keep, progress=progress)
    return progress.bytes


def test_the_newest_is_read_back_before_an_older_one_goes_and_only_once(path):
    with filled(path, 1, 2, 3) as directory:
        assert bytes_read(directory, keep=3) == 0  # Nothing is to go.
        assert bytes_read(directory, keep=2) == len(CONTENT)
        assert bytes_read(directory, keep=1) == 0
        assert indexes(directory) == [3]


def test_what_was_opened_or_verified_need_not_be_read_again(path):
    with filled(path, 1, 2, 3, 4) as directory:
        directory.verify(2)
        assert bytes_read(directory, keep=3) == 0
        directory.open(4).close()
        assert bytes_read(directory, keep=1) == 0
        assert indexes(directory) == [4]


@pytest.mark.parametrize("opening", ["verify=False", "save_from"])
def test_what_was_not_read_back_is_no_proof(opening, path):
    with filled(path, 1, 2) as directory:
        if opening == "save_from":
            directory.save_from(CONTENT, 3)
        directory.open_newest(verify=False).close()
        assert bytes_read(directory, keep=1) == len(CONTENT)


def test_one_that_was_written_to_since_is_read_again(path):
    with filled(path, 1, 2, 3) as directory:
        rot(directory.verify(3).path)
        assert directory.purge(keep=1) == [1]
        assert indexes(directory) == [2]
        assert [aside.index for aside in directory.broken()] == [3]


@pytest.mark.parametrize(
    ("rotten", "keep", "removed", "left"),
    [
        ({4}, 1, [1, 2], [3]),
        ({4}, 2, [1], [2, 3]),
        ({4}, 3, [], [1, 2, 3]),
        ({3, 4}, 1, [1], [2]),
        ({3, 4}, 2, [], [1, 2]),
        ({2, 3, 4}, 1, [], [1]),
        ({1, 2, 3, 4}, 1, [], [1]),  # The last one is not even read: nothing is to go.
        ({1, 2}, 1, [1, 2, 3], [4]),
    ],
)
def test_broken_ones_do_not_count_as_kept(rotten, keep, removed, left, path):
    with filled(path, 1, 2, 3, 4, rotten=rotten) as directory:
        assert directory.purge(keep=keep) == removed
        assert indexes(directory) == left


def test_a_disk_that_cannot_be_read_now_loses_nothing(path, monkeypatch):
    with filled(path, 1, 2) as directory:
        with monkeypatch.context() as patch, nothing_left(path):
            patch.setattr(_fastpipe, "digest", lambda *given, **options: fail(errno.EIO))
            with pytest.raises(OSError, match="Input/output error") as raised:
                directory.purge(keep=1)
            assert raised.value.filename == str(directory.get_snap_file_path(2))
        assert directory.purge(keep=1) == [1]


class Reading(SnapshotDir):
    """Calls `then` after each snapshot it has read, while nothing may be locked."""

    def __init__(self, path, then):
        super().__init__(path)
        self.then = then

    def verify(self, index, *, progress=None):
        saved = super().verify(index, progress=progress)
        self.then(self, index)
        return saved


def test_savers_go_on_while_a_purge_reads_and_what_they_save_counts(path):
    filled(path, 1, 2, 3).close()
    with Reading(path, lambda own, index: own.save_from(CONTENT, index + 10)) as directory:
        # Two newer ones are there by now, and neither was read back: the one that was stays as well.
        assert directory.purge(keep=1) == [1, 2]
        assert indexes(directory) == [3, 13]


def test_where_the_proof_is_gone_when_the_lock_is_held_nothing_goes(path):
    filled(path, 1, 2, 3).close()
    with Reading(path, lambda own, index: own.get_snap_file_path(index).unlink()) as directory:
        assert directory.purge(keep=1) == []
        assert indexes(directory) == [1, 2]


def test_another_purge_meanwhile_loses_nothing_more(path):
    filled(path, 1, 2, 3).close()

    def purge_too(own, index):
        with SnapshotDir(path) as other:
            assert other.purge(keep=1) == [1, 2]

    with Reading(path, purge_too) as directory:
        assert directory.purge(keep=1) == []
        assert indexes(directory) == [3]


def test_one_that_is_just_being_taken_away_does_not_count(path, monkeypatch):
    with filled(path, 1, 2, 3) as directory:

        def verify(index, *, progress=None):
            if index == 3:
                raise SnapshotNotFound("a purge holds its lock")
            return SnapshotDir.verify(directory, index, progress=progress)

        monkeypatch.setattr(directory, "verify", verify)
        assert directory.purge(keep=1) == [1]


def test_a_progress_that_is_cancelled_ends_the_purge_and_nothing_goes(path):
    with filled(path, 1, 2) as directory, nothing_left(path):
        progress = _fastpipe.Progress()
        progress.cancel()
        with pytest.raises(Exception, match="cancelled"):
            directory.purge(keep=1, progress=progress)


def test_a_reader_whose_snapshot_is_purged_before_its_lease_finds_none(path, monkeypatch):
    with filled(path, 1, 2) as directory, SnapshotDir(path) as other:
        lock = fcntl.flock

        def purge_then_lock(fd, how):
            monkeypatch.setattr(fcntl, "flock", lock)
            assert other.purge(keep=1) == [1]
            lock(fd, how)

        monkeypatch.setattr(fcntl, "flock", purge_then_lock)
        with pytest.raises(SnapshotNotFound):
            directory.open(1)
        assert directory.broken() == []


def test_only_so_many_are_remembered(path):
    with filled(path, *range(1, READ_BACK_MAX + 3)) as directory:
        for saved in directory.list():
            directory.verify(saved.index)
        assert [directory._retention.was_read_back(saved) for saved in directory.list()[:3]] == [
            False, False, True,
        ]  # fmt: skip
