"""What a directory stands on: the file system by its mount, calls that are refused, room, and speed."""

from __future__ import annotations

import errno
import os
import time

import pytest

from residue import descriptors, names
from snapstore.directory import SnapshotDir
from snapstore.doctor import Level, examine
from snapstore.doctor.mount import Mount, judge_mount, mount_of, parse_mount
from snapstore.doctor.pace import RATE_MIN, SYNC_P50_MAX_S, WRITE_S_MAX, Pace, judge_pace, measure_pace
from snapstore.doctor.probes import PROBE_SIZE, System
from snapstore.doctor.room import INODES_FREE_MIN, Room, judge_room, look_at_room
from snapstore.errors import NoRoom

#: Lines as Linux writes them: optional fields or none, a space in a path, options before and behind.
MOUNTINFO = r"""
22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw,nobarrier,data=writeback
31 27 0:30 / /mnt/with\040space\134 ro,nosuid shared:2 master:1 - xfs /dev/vdb rw,attr2
32 27 0:33 /sub /overlay rw - overlay overlay rw,lowerdir=/l,upperdir=/u,volatile
33 27 0:34 / /odd rw -
half a line
"""


@pytest.fixture
def path(tmp_path):
    (tmp_path / "snap").mkdir(mode=0o700)
    return tmp_path / "snap"


class Refusing(System):
    """A system that refuses one call with one errno."""

    def __init__(self, call, code):
        self.call, self.code = call, code

    def __getattribute__(self, name):
        if name == object.__getattribute__(self, "call"):
            return self._refuse
        return object.__getattribute__(self, name)

    def _refuse(self, *arguments):
        raise OSError(self.code, os.strerror(self.code))


def found_of(findings, subject):
    return [(found.kind, found.level) for found in findings if found.subject == subject]


def test_a_mount_is_read_as_linux_writes_it():
    assert parse_mount(MOUNTINFO, 31) == Mount(
        "xfs", "/dev/vdb", "/mnt/with space\\", ("ro", "nosuid", "rw", "attr2")
    )
    assert parse_mount(MOUNTINFO, 27).options == ("rw", "relatime", "nobarrier", "data=writeback")
    odd = "34 27 0:35 / /mnt/a\\012b\x0cc\u2028 rw - btrfs /dev/vdc rw"
    assert parse_mount(f"{MOUNTINFO}\n{odd}\n", 34).point == "/mnt/a\nb\x0cc\u2028"
    assert parse_mount(MOUNTINFO, 33) is parse_mount(MOUNTINFO, 99) is None


def test_the_mount_of_this_directory_is_the_kernels(path):
    mount = mount_of(path)
    assert str(path).startswith(mount.point)
    assert os.stat(mount.point).st_dev == os.stat(path).st_dev


@pytest.mark.parametrize(
    ("kind", "options", "found"),
    [
        ("ext4", ("rw", "relatime"), {"mount-kind": Level.OK}),
        ("xfs", ("ro",), {"mount-kind": Level.OK, "mount-ro": Level.PROBLEM}),
        ("ext4", ("nobarrier",), {"mount-kind": Level.OK, "mount-nobarrier": Level.PROBLEM}),
        ("ext3", ("barrier=0",), {"mount-kind": Level.HINT, "mount-barrier=0": Level.PROBLEM}),
        ("f2fs", ("fsync_mode=nobarrier",), {"mount-kind": Level.HINT,
                                             "mount-fsync_mode=nobarrier": Level.PROBLEM}),
        ("ext4", ("data=writeback",), {"mount-kind": Level.OK, "mount-data=writeback": Level.HINT}),
        ("ext4", ("data=journal",), {"mount-kind": Level.OK, "mount-data=journal": Level.HINT}),
        ("btrfs", ("sync",), {"mount-kind": Level.OK, "mount-sync": Level.HINT}),
        ("ext4", ("dirsync",), {"mount-kind": Level.OK, "mount-dirsync": Level.HINT}),
        ("overlay", ("volatile",), {"mount-kind": Level.PROBLEM, "mount-volatile": Level.PROBLEM}),
        ("overlay", ("fsync=volatile",), {"mount-kind": Level.PROBLEM,
                                          "mount-fsync=volatile": Level.PROBLEM}),
        ("tmpfs", (), {"mount-kind": Level.PROBLEM}),
        ("ramfs", (), {"mount-kind": Level.PROBLEM}),
        ("nfs4", ("soft",), {"mount-kind": Level.PROBLEM}),
        ("cifs", (), {"mount-kind": Level.PROBLEM}),
        ("fuse.sshfs", (), {"mount-kind": Level.PROBLEM}),
        ("vfat", (), {"mount-kind": Level.PROBLEM}),
        ("squashfs", ("ro",), {"mount-kind": Level.PROBLEM, "mount-ro": Level.PROBLEM}),
        ("ext2", (), {"mount-kind": Level.HINT}),
        ("fuse.something", (), {"mount-kind": Level.HINT}),
        ("zfs", (), {"mount-kind": Level.HINT}),
    ],
)  # fmt: skip
def test_each_file_system_and_option_is_judged_with_words(kind, options, found):
    findings = list(judge_mount(Mount(kind, "source", "/point", options)))
    assert {finding.kind: finding.level for finding in findings} == found
    assert all(
        bool(finding.means and finding.advice) == (finding.level is not Level.OK) for finding in findings
    )


def test_a_system_that_does_not_tell_its_mounts_is_a_hint():
    assert [(found.kind, found.level) for found in judge_mount(None)] == [("mount-unknown", Level.HINT)]


@pytest.mark.usefixtures("quick_doctor")
@pytest.mark.parametrize(
    ("call", "subject", "code", "kind", "level"),
    [
        ("open_nameless", "O_TMPFILE", errno.EOPNOTSUPP, "call-O_TMPFILE", Level.HINT),
        ("open_nameless", "O_TMPFILE", errno.EACCES, "call-O_TMPFILE", Level.OK),
        ("open_nameless", "O_TMPFILE", errno.ENOSPC, "refused-room", Level.PROBLEM),
        ("open_nameless", "O_TMPFILE", errno.EIO, "call-O_TMPFILE", Level.PROBLEM),
        ("link", "linkat", errno.EPERM, "call-linkat", Level.PROBLEM),
        ("write_direct", "O_DIRECT", errno.EINVAL, "call-O_DIRECT", Level.HINT),
        ("write_direct", "O_DIRECT", errno.EIO, "call-O_DIRECT", Level.PROBLEM),
        ("reserve", "fallocate", errno.EOPNOTSUPP, "call-fallocate", Level.HINT),
        ("reserve", "fallocate", errno.EDQUOT, "refused-room", Level.PROBLEM),
        ("reserve", "fallocate", errno.ENOSPC, "refused-room", Level.PROBLEM),
        ("sync_directory", "fsync of the directory", errno.EINVAL, "call-fsync", Level.PROBLEM),
        ("sync_directory", "fsync of the directory", errno.EIO, "call-fsync", Level.PROBLEM),
        ("lock", "flock", errno.ENOLCK, "call-flock", Level.PROBLEM),
    ],
)
def test_each_call_that_is_refused_is_judged_with_words(path, call, subject, code, kind, level):
    examination = examine(path, system=Refusing(call, code))
    assert found_of(examination.findings, subject) == [(kind, level)]
    assert (level is Level.PROBLEM) == any(found.subject == subject for found in examination.problems)
    assert names(path) == []


def test_what_works_here_is_tried_for_real_and_leaves_nothing(path):
    before, mtime_ns = descriptors(), os.stat(path).st_mtime_ns
    examination = examine(path)
    assert (descriptors(), names(path), os.stat(path).st_mtime_ns) == (before, [], mtime_ns)
    works = {probe.name: probe.failure is None and probe.untried is None for probe in examination.probes}
    assert works.pop("renameat2") is False  # Not tried.
    assert works["fsync of the directory"]
    assert works["flock"]
    told = {call["name"]: call["works"] for call in examination.to_json()["calls"]}
    assert told.pop("renameat2") is None
    assert told == works


@pytest.mark.usefixtures("quick_doctor")
def test_renaming_is_tried_where_names_may_change_and_leaves_nothing(path):
    (probe,) = [probe for probe in examine(path, fix=True).probes if probe.name == "renameat2"]
    assert (probe.failure, probe.untried, names(path)) == (None, None, [])
    refused = examine(path, fix=True, system=Refusing("rename_new", errno.EINVAL))
    assert found_of(refused.findings, "renameat2") == [("call-renameat2", Level.HINT)]
    assert names(path) == []


@pytest.mark.usefixtures("quick_doctor")
def test_a_lock_that_keeps_nobody_out_is_seen(path, monkeypatch):
    monkeypatch.setattr("snapstore.doctor.probes.fcntl.flock", lambda fd, operation: None)
    (told,) = [found for found in examine(path).findings if found.subject == "flock"]
    assert told.level is Level.PROBLEM
    assert "keeps nobody out" in told.seen


@pytest.mark.usefixtures("quick_doctor")
def test_a_call_that_the_c_library_does_not_have_does_not_work(path, monkeypatch):
    monkeypatch.setattr("snapstore.doctor.probes._libc", object())
    assert found_of(examine(path).findings, "fallocate") == [("call-fallocate", Level.HINT)]


def test_a_write_that_fails_is_a_problem(path, monkeypatch):
    def fail(*arguments, **options):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("snapstore.doctor.examination.measure_pace", fail)
    examination = examine(path)
    assert examination.pace is None
    assert found_of(examination.problems, "write and fsync") == [("call-write", Level.PROBLEM)]


@pytest.mark.parametrize(
    ("room", "wanted", "found"),
    [
        (Room(0, None, None), 50, {"room-unknown": Level.HINT}),
        (Room(100, 50, None), None, {"room": Level.OK}),
        (Room(100, 50, None, reserve=10), 40, {"room": Level.OK}),
        (Room(100, 50, None, reserve=10), 41, {"room": Level.PROBLEM}),
        (Room(100, 50, None, reserve=50), None, {"room": Level.PROBLEM}),
        (Room(100, 50, None), 50, {"room": Level.OK}),
        (Room(100, 50, INODES_FREE_MIN), 51, {"room": Level.PROBLEM}),
        (Room(100, 50, INODES_FREE_MIN - 1), 50, {"room": Level.OK, "inodes": Level.PROBLEM}),
    ],
)
def test_room_is_measured_by_the_newest_snapshot(room, wanted, found):
    assert {finding.kind: finding.level for finding in judge_room(room, wanted)} == found


def test_what_is_told_to_be_too_little_is_what_a_save_is_refused_for(path):
    fd = os.open(path, os.O_RDONLY)
    try:
        room = look_at_room(fd)
    finally:
        os.close(fd)
    status = os.statvfs(path)
    with SnapshotDir(path, statvfs=lambda fd: status) as directory:
        fits = room.free - room.reserve
        assert [found.kind for found in judge_room(room, fits) if found.level is Level.PROBLEM] == []
        assert next(judge_room(room, fits + 1)).level is Level.PROBLEM
        with pytest.raises(NoRoom) as raised:
            directory.save_from(b"", 1, size=status.f_bavail * status.f_frsize - room.reserve + 1)
    assert raised.value.reserve == room.reserve


def test_where_there_is_little_room_none_of_it_is_taken(path, monkeypatch):
    room = Room(10 * PROBE_SIZE, PROBE_SIZE - 1, None)
    monkeypatch.setattr("snapstore.doctor.examination.look_at_room", lambda directory: room)
    examination = examine(path)
    assert examination.pace is None
    assert [probe.untried for probe in examination.probes if probe.name == "fallocate"] == [
        "there is too little room"
    ]
    assert examination.to_json()["pace"] is None


def test_the_pace_is_measured_within_its_time(path):
    examination = examine(path)
    pace = examination.pace
    assert 0 < pace.written <= PROBE_SIZE
    assert 0 < pace.sync_p50_s <= pace.sync_max_s
    assert pace.to_json()["bytes_per_s"] == pace.rate > 0


def test_a_slow_disk_is_written_to_no_longer_than_allowed(tmp_path):
    """A clock on which each look costs half of what a write may take."""
    now_s = 0.0

    def clock():
        nonlocal now_s
        now_s += WRITE_S_MAX / 2
        return now_s

    with open(tmp_path / "file", "wb") as file:
        pace = measure_pace(file.fileno(), direct=False, now_s=clock)
        assert os.fstat(file.fileno()).st_size == pace.written
    assert 0 < pace.written < PROBE_SIZE // 4
    assert pace.sync_p50_s == WRITE_S_MAX / 2


@pytest.mark.parametrize(
    ("pace", "found"),
    [
        (Pace(1000, 1000 / RATE_MIN, True, SYNC_P50_MAX_S, 1.0), {"speed": Level.OK, "small-sync": Level.OK}),
        (Pace(1000, 1001 / RATE_MIN, False, SYNC_P50_MAX_S + 0.01, 1.0),
         {"slow-write": Level.HINT, "slow-sync": Level.HINT}),
    ],
)  # fmt: skip
def test_a_slow_disk_is_a_hint(pace, found):
    assert {finding.kind: finding.level for finding in judge_pace(pace)} == found


@pytest.mark.usefixtures("quick_doctor")
@pytest.mark.parametrize(
    ("mode", "kind", "level"),
    [(0o700, "access", Level.OK), (0o770, "mode-group", Level.HINT), (0o702, "mode", Level.PROBLEM)],
)
def test_who_else_may_write_is_told(path, mode, kind, level):
    path.chmod(mode)
    assert found_of(examine(path).findings, "access") == [(kind, level)]


@pytest.mark.usefixtures("quick_doctor")
def test_an_age_is_that_of_the_given_clock(path):
    (path / ".tmp-0000000000000009-0000000000000000").touch()
    later_s = time.time() + 1000
    (left,) = examine(path, now_s=lambda: later_s).contents.leftovers
    assert 1000 <= left.age_s < 1100
    (left,) = examine(path, now_s=lambda: 0.0).contents.leftovers
    assert left.age_s == 0
