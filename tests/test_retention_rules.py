"""Keep N, keep for T, keep M bytes: which snapshots go by each, as tables."""

from __future__ import annotations

import os

import pytest

from nodes import UNIT
from rotten import rot
from snapstore import _fastpipe
from snapstore.directory import SnapshotDir

#: What time it is for the directory, in seconds since the epoch.
NOW_S = 1_000_000.0

HOUR_S = 3600


def filled(path, snapshots, *, rotten=()):
    """A directory with snapshots of these ages in hours and sizes in KiB, by index; no proof of any."""
    with SnapshotDir(path, chunk_size=UNIT) as saver:
        for index, (age_h, size_kib) in snapshots.items():
            saved = saver.save_from(os.urandom(size_kib * 1024), index)
            if index in rotten:
                rot(saved.path)
            written_s = NOW_S - age_h * HOUR_S
            os.utime(saved.path, (written_s, written_s))
    return SnapshotDir(path, chunk_size=UNIT, wall_clock=lambda: NOW_S)


def indexes(directory):
    return [saved.index for saved in directory.list()]


#: One each hour, the newest just now, 10 KiB each.
HOURLY = {index: (5 - index, 10) for index in range(1, 6)}

#: As many bytes as so many of those have.
TEN_KIB = 10 * 1024


@pytest.mark.parametrize(
    ("keep", "age_h", "size_max", "left"),
    [
        # By number alone.
        (1, None, None, [5]),
        (3, None, None, [3, 4, 5]),
        (9, None, None, [1, 2, 3, 4, 5]),
        # By age: older than it goes, as old as it stays, and so do the newest.
        (1, 2, None, [3, 4, 5]),
        (1, 2.5, None, [3, 4, 5]),
        (1, 0, None, [5]),
        (1, 99, None, [1, 2, 3, 4, 5]),
        (2, 0, None, [4, 5]),
        (4, 1, None, [2, 3, 4, 5]),
        # By size: what fits stays, and so do the newest.
        (1, None, 3 * TEN_KIB, [3, 4, 5]),
        (1, None, 3 * TEN_KIB - 1, [4, 5]),
        (1, None, 0, [5]),
        (2, None, 1, [4, 5]),
        (1, None, 2**60, [1, 2, 3, 4, 5]),
        # By both: either is enough to go.
        (1, 2, 2 * TEN_KIB, [4, 5]),
        (1, 1, 4 * TEN_KIB, [4, 5]),
        (3, 0, 0, [3, 4, 5]),
    ],
)
def test_what_stays(tmp_path, keep, age_h, size_max, left):
    with filled(tmp_path / "snap", HOURLY) as directory:
        age_s = None if age_h is None else age_h * HOUR_S
        removed = directory.purge(keep=keep, older_than_s=age_s, size_max=size_max)
        assert indexes(directory) == left
        assert removed == [index for index in HOURLY if index not in left]
        assert directory.purge(keep=keep, older_than_s=age_s, size_max=size_max) == []


@pytest.mark.parametrize(
    ("snapshots", "rule", "left"),
    [
        # The order is the indexes', the age the files': an old index that came late is young.
        ({1: (0, 1), 2: (9, 1), 3: (9, 1)}, {"older_than_s": HOUR_S}, [1, 3]),
        # A file of tomorrow is young.
        ({1: (-24, 1), 2: (0, 1)}, {"older_than_s": 0}, [1, 2]),
        # The first that does not fit takes all older ones along: a hole in the row helps nobody.
        ({1: (3, 1), 2: (2, 50), 3: (1, 1), 4: (0, 1)}, {"size_max": 5 * 1024}, [3, 4]),
        # What goes for its age takes no room.
        ({1: (0, 2), 2: (9, 50), 3: (0, 2)}, {"size_max": 5 * 1024, "older_than_s": HOUR_S}, [1, 3]),
        # The newest is larger than all the room there is.
        ({1: (1, 1), 2: (0, 50)}, {"size_max": 5 * 1024}, [2]),
        # There is but one, ancient and too large.
        ({1: (9999, 50)}, {"size_max": 0, "older_than_s": 0}, [1]),
        ({}, {"size_max": 0, "older_than_s": 0}, []),
    ],
)
def test_uneven_ones(tmp_path, snapshots, rule, left):
    with filled(tmp_path / "snap", snapshots) as directory:
        directory.purge(**rule)
        assert indexes(directory) == left


@pytest.mark.parametrize(
    ("rotten", "rule", "left"),
    [
        ({5}, {"size_max": 0}, [4]),
        ({4, 5}, {"older_than_s": 0}, [3]),
        ({2, 3, 4, 5}, {"older_than_s": 0, "size_max": 0}, [1]),
        ({5}, {"older_than_s": 2 * HOUR_S}, [3, 4]),
        ({5}, {"size_max": 2 * TEN_KIB}, [3, 4]),
    ],
)
def test_a_verified_one_always_stays(tmp_path, rotten, rule, left):
    """What is found broken is set aside, counts neither as one nor as bytes, and the next is read."""
    with filled(tmp_path / "snap", HOURLY, rotten=rotten) as directory:
        directory.purge(**rule)
        assert indexes(directory) == left
        assert directory.verify(left[-1]).problem is None


def test_where_nothing_is_to_go_nothing_is_read(tmp_path):
    with filled(tmp_path / "snap", HOURLY) as directory:
        progress = _fastpipe.Progress()
        assert directory.purge(older_than_s=99 * HOUR_S, size_max=2**40, progress=progress) == []
        assert progress.bytes == 0
        assert directory.purge(older_than_s=2 * HOUR_S, progress=progress) == [1, 2]
        assert progress.bytes == TEN_KIB


def test_leased_ones_stay_by_every_rule_and_go_with_the_next(tmp_path):
    with filled(tmp_path / "snap", HOURLY) as directory:
        with directory.open(1), directory.open(3):
            assert directory.purge(older_than_s=0) == [2, 4]
            assert directory.purge(size_max=0) == []
            assert indexes(directory) == [1, 3, 5]
        assert directory.purge(older_than_s=99 * HOUR_S) == []
        assert directory.purge(size_max=0) == [1, 3]


def test_what_nobody_can_restore_goes_whatever_its_age_and_takes_no_room(tmp_path):
    with filled(tmp_path / "snap", HOURLY) as directory:
        (directory.path / f"{4:016x}.json").unlink()
        assert directory.stat(4).problem
        assert directory.purge(older_than_s=99 * HOUR_S, size_max=4 * TEN_KIB) == [4]


@pytest.mark.parametrize(
    "rule", [{"older_than_s": -1}, {"older_than_s": float("nan")}, {"size_max": -1}, {"keep": 0}]
)
def test_a_rule_that_cannot_be_is_a_value_error(tmp_path, rule):
    with filled(tmp_path / "snap", HOURLY) as directory:
        with pytest.raises(ValueError, match="must be"):
            directory.purge(**rule)
        assert indexes(directory) == [1, 2, 3, 4, 5]


def test_by_itself_a_directory_goes_by_the_clock_on_the_wall(tmp_path):
    with SnapshotDir(tmp_path / "snap") as directory:
        for index in (1, 2):
            directory.save_from(b"content", index)
        assert directory.purge(older_than_s=HOUR_S) == []
        os.utime(directory.get_snap_file_path(1), (1, 1))
        assert directory.purge(older_than_s=HOUR_S) == [1]
