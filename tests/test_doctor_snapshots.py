"""The snapshots that a doctor finds: sound, broken, set aside, not readable now; and what it says of each."""

from __future__ import annotations

import errno
import os

import pytest

from looked_at import assert_told, fingerprint, found_in, looked, two_saved
from nodes import UNIT
from residue import names
from rotten import rot
from snapstore import disk
from snapstore.broken import broken_manifest_name, broken_name
from snapstore.directory import SnapshotDir
from snapstore.doctor import Level, examine, treat
from snapstore.errors import SnapshotCorrupt
from snapstore.poison import leave_marker
from snapstore.stored import StoredSnapshot

pytestmark = pytest.mark.usefixtures("quick_doctor")


@pytest.fixture
def path(tmp_path):
    return two_saved(tmp_path / "snap")


def test_without_reading_nothing_is_said_to_be_read(path):
    rot(path / disk.snapshot_name(8), bit=80)
    examination = examine(path)
    assert [found.read_back for found in examination.contents.stored] == [False, False]
    assert found_in(examination, disk.snapshot_name(8)) == [("snapshot", Level.OK)]


def test_rot_is_found_by_reading_and_stays_where_it_is(path):
    rot(path / disk.snapshot_name(8), bit=8 * UNIT)
    before = fingerprint(path)
    examination = examine(path, read=True)
    assert fingerprint(path) == before
    assert_told(examination, disk.snapshot_name(8), "snapshot-broken", Level.PROBLEM)
    (found,) = [found for found in examination.problems if found.kind == "snapshot-broken"]
    assert "digest of chunk 1" in found.seen
    assert str(path) not in found.seen
    assert examination.contents.newest_sound.saved.index == 7


def test_a_manifest_that_is_missing_or_says_another_size_is_a_problem(path):
    (path / disk.manifest_name(7)).unlink()
    os.truncate(path / disk.snapshot_name(8), 10)
    examination = examine(path)
    for index in (7, 8):
        assert_told(examination, disk.snapshot_name(index), "snapshot-broken", Level.PROBLEM)
    assert_told(examination, "snapshots", "none-sound", Level.PROBLEM)


def test_what_others_can_read_is_a_hint(path):
    (path / disk.snapshot_name(8)).chmod(0o644)
    assert_told(examine(path), disk.snapshot_name(8), "snapshot-mode", Level.HINT)


def test_what_was_set_aside_is_a_problem_until_somebody_has_removed_it(path):
    rot(path / disk.snapshot_name(8))
    with SnapshotDir(path) as directory, pytest.raises(SnapshotCorrupt):
        directory.verify(8)
    examination = examine(path)
    assert_told(examination, broken_name(8, 1), "set-aside", Level.PROBLEM)
    assert examination.contents.strangers == ()
    (path / broken_name(8, 1)).unlink()
    assert looked(path).strangers == (broken_manifest_name(8, 1),)


def test_fixing_tells_only_of_what_it_set_aside_itself(path):
    rot(path / disk.snapshot_name(8))
    with SnapshotDir(path) as directory, pytest.raises(SnapshotCorrupt):
        directory.verify(8)
    assert treat(path).set_aside == ()


@pytest.mark.parametrize("name", [disk.snapshot_name(8), disk.manifest_name(8)])
def test_what_this_user_cannot_read_is_not_told_to_be_broken(path, name, monkeypatch):
    if name == disk.manifest_name(8):  # Else all of it is known but its bytes.
        rot(path / name)
    open_regular = disk.open_regular

    def refuse(directory, asked):
        if asked == name:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), asked)
        return open_regular(directory, asked)

    monkeypatch.setattr(disk, "open_regular", refuse)
    examination = examine(path)
    assert_told(examination, disk.snapshot_name(8), "snapshot-unreadable", Level.PROBLEM)
    assert [found.readable for found in examination.contents.stored] == [True, False]
    assert examination.contents.newest_sound.saved.index == 7


def test_a_disk_that_cannot_be_read_now_is_not_told_to_have_broken_snapshots(path, monkeypatch):
    def fail(*arguments, **options):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(StoredSnapshot, "verify", fail)
    examination = examine(path, read=True)
    told = {found.kind for found in examination.findings if found.level is Level.PROBLEM}
    assert "snapshot-unreadable" in told
    assert not told & {"snapshot-broken", "none-sound"}


def test_what_is_set_aside_while_all_is_read_is_no_stranger(path, monkeypatch):
    verify = StoredSnapshot.verify
    rot(path / disk.snapshot_name(7))

    def verify_and_be_overtaken(stored, progress=None):
        if stored.saved.index == 8:  # A node has found 7 broken, and its operator removed what was set aside.
            for name in names(path):
                if name.startswith(f"{7:016x}.broken-"):
                    (path / name).unlink()
        verify(stored, progress)

    with SnapshotDir(path) as node, pytest.raises(SnapshotCorrupt):
        node.verify(7)
    monkeypatch.setattr(StoredSnapshot, "verify", verify_and_be_overtaken)
    assert looked(path, read=True).strangers == ()


def test_a_marker_is_a_problem_and_fixing_reads_all_of_it_back(path):
    fd = os.open(path, os.O_RDONLY)
    leave_marker(fd, "Input/output error")
    os.close(fd)
    rot(path / disk.snapshot_name(8))
    (marker,) = [name for name in names(path) if name.startswith(".poisoned-")]
    before = fingerprint(path)
    examination = examine(path)
    assert fingerprint(path) == before
    assert_told(examination, marker, "fsync-failed", Level.PROBLEM)
    assert examination.contents.markers == ((marker, "an fsync failed: Input/output error"),)
    examination = examine(path, fix=True)
    assert examination.treatment.set_aside == (broken_name(8, 1),)
    assert examination.contents.markers == ()
    assert names(path) == sorted(
        [disk.snapshot_name(7), disk.manifest_name(7), broken_name(8, 1), broken_manifest_name(8, 1)]
    )
