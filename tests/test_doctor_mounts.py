"""Real file systems of each kind under a directory, and other users: what the doctor says. They need root."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
from pathlib import Path

import pytest

from command_line import snapstore
from processes import Process
from residue import names
from small_disks import SmallDisk, run
from snapstore.cli import ExitCode
from snapstore.directory import SnapshotDir
from snapstore.doctor import Level, examine
from snapstore.doctor.probes import PROBE_SIZE

pytestmark = pytest.mark.root

#: Nobody.
USER = 65534

MIB = 2**20


@pytest.fixture
def make_disk(tmp_path):
    made = []

    def make(kind, options="", **more):
        made.append(SmallDisk(tmp_path / "disk", kind, tmp_path / "image", **more))
        return made[-1].mount(options)

    yield make
    for small in made:
        small.unmount()


@contextlib.contextmanager
def mounted(path, *command):
    path.mkdir(exist_ok=True)
    run("mount", *command, path)
    try:
        path.chmod(0o700)
        yield path
    finally:
        subprocess.run(["umount", path], check=True)


def levels(examination, *subjects):
    return {found.kind: found.level for found in examination.findings if found.subject in subjects}


def all_calls(examination):
    return {probe.name for probe in examination.probes if probe.failure}


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs"])
def test_on_a_journaling_disk_all_is_well(make_disk, kind):
    disk = make_disk(kind, size_mib=400)
    with SnapshotDir(disk.path) as directory:
        directory.save_from(bytes(100_000), 1)
    examination = examine(disk.path, read=True)
    assert (examination.mount.kind, examination.mount.point) == (kind, str(disk.path))
    assert examination.mount.source.startswith("/dev/loop")
    assert (examination.problems, all_calls(examination)) == ((), set())
    assert examination.pace.written == PROBE_SIZE
    fixed = examine(disk.path, fix=True)
    assert (fixed.problems, all_calls(fixed)) == ((), set())
    assert snapstore("doctor", disk.path, "--fix", "--read")[0] == ExitCode.DONE
    assert len([name for name in names(disk.path) if name != "lost+found"]) == 2


@pytest.mark.parametrize(
    ("kind", "option", "level"),
    [("ext4", "nobarrier", Level.PROBLEM), ("btrfs", "nobarrier", Level.PROBLEM),
     ("ext4", "data=writeback", Level.HINT), ("ext4", "data=journal", Level.HINT),
     ("ext4", "sync", Level.HINT), ("ext4", "dirsync", Level.HINT), ("xfs", "ro,norecovery", Level.PROBLEM)],
)  # fmt: skip
def test_options_are_seen_as_the_kernel_shows_them(make_disk, kind, option, level):
    examination = examine(make_disk(kind, option).path)
    assert levels(examination, "file system") == {
        "mount-kind": Level.OK, f"mount-{option.partition(',')[0]}": level,
    }  # fmt: skip


def test_memory_is_a_problem(make_disk):
    disk = make_disk("tmpfs", "size=512m")
    assert levels(examine(disk.path), "file system") == {"mount-kind": Level.PROBLEM}


def test_a_file_system_that_lacks_calls_is_told_which(tmp_path):
    """ramfs knows no way past the page cache, since it is one, and does not say how much room there is."""
    with mounted(tmp_path / "ram", "-t", "ramfs", "none") as path:
        examination = examine(path)
        assert all_calls(examination) == {"O_DIRECT"}
        assert levels(examination, "O_DIRECT", "room") == {
            "call-O_DIRECT": Level.HINT, "room-unknown": Level.HINT,
        }  # fmt: skip
        assert examination.pace is None


def test_a_containers_layer_is_a_problem_and_so_is_one_that_syncs_nothing(make_disk, tmp_path):
    disk = make_disk("ext4")
    lower, upper, work = (disk.path / name for name in ("lower", "upper", "work"))
    for place in (lower, upper, work):
        place.mkdir()
    options = f"lowerdir={lower},upperdir={upper},workdir={work},volatile"
    with mounted(tmp_path / "merged", "-t", "overlay", "overlay", "-o", options) as path:
        found = levels(examine(path), "file system")
        assert found.pop("mount-kind") is Level.PROBLEM
        assert found in ({"mount-volatile": Level.PROBLEM}, {"mount-fsync=volatile": Level.PROBLEM})


def test_a_disk_that_turned_read_only_is_a_problem_and_read_all_the_same(make_disk):
    disk = make_disk("ext4")
    with SnapshotDir(disk.path) as directory:
        directory.save_from(bytes(100_000), 1)
    assert disk.remount("ro")
    examination = examine(disk.path, read=True, fix=True)
    assert [found.read_back for found in examination.contents.stored] == [True]
    assert levels(examination, "file system") == {"mount-kind": Level.OK, "mount-ro": Level.PROBLEM}
    assert levels(examination, "access") == {"unwritable": Level.PROBLEM}
    assert {probe.untried is None for probe in examination.probes} == {False, True}
    assert all_calls(examination) == set()


def test_a_disk_that_is_gone_is_a_problem(make_disk):
    disk = make_disk("ext4")
    disk.break_off()
    assert "fsync of the directory" in {found.subject for found in examine(disk.path).problems}


def test_a_full_disk_is_told_and_not_filled_further(make_disk):
    disk = make_disk("ext4", size_mib=200)
    with SnapshotDir(disk.path) as directory:
        directory.save_from(os.urandom(10 * MIB), 1)
    with disk.filled(free=5 * MIB):
        free = os.statvfs(disk.path).f_bavail
        examination = examine(disk.path)
        assert os.statvfs(disk.path).f_bavail == free
    assert [found.subject for found in examination.problems] == ["room"]
    assert examination.pace is None


def test_a_disk_without_inodes_is_told(make_disk):
    disk = make_disk("ext4", more=("-N", "16"))
    assert [found.subject for found in examine(disk.path).problems] == ["inodes"]


def test_a_quota_is_felt_though_there_is_room(make_disk):
    disk = make_disk("btrfs", size_mib=1024)
    run("btrfs", "quota", "enable", disk.path)
    run("btrfs", "subvolume", "create", disk.path / "limited")
    run("btrfs", "qgroup", "limit", "32M", disk.path / "limited")
    (disk.path / "limited").chmod(0o700)
    examination = examine(disk.path / "limited")
    assert examination.room.free > PROBE_SIZE
    assert levels(examination, "fallocate") == {"refused-room": Level.PROBLEM}
    assert examination.mount.kind == "btrfs"
    assert examination.pace is None


@pytest.mark.parametrize(
    ("owner", "mode", "kind"),
    [(1, 0o755, "owner"), (USER, 0o500, "unwritable"), (0, 0o755, "unwritable"), (USER, 0o700, "access")],
)
def test_another_user_is_told_what_keeps_the_node_out(owner, mode, kind):
    script = """
    from snapstore.doctor import examine
    os.setgid(int(sys.argv[2]))
    os.setuid(int(sys.argv[2]))
    examination = examine(sys.argv[1], fix=True)
    say(*[found.kind for found in examination.findings if found.subject == "access"])
    say(examination.treatment.refused or "done")
    """
    if os.geteuid() != 0:
        pytest.skip("becoming another user needs root")
    with tempfile.TemporaryDirectory() as scratch:
        Path(scratch).chmod(0o755)
        path = Path(scratch) / "snap"
        path.mkdir()
        path.chmod(mode)
        os.chown(path, owner, owner)
        with Process(script, path, USER) as other:
            kinds, outcome = other.finish()
    assert kinds == kind
    assert (outcome != "done") == (kind == "owner")
