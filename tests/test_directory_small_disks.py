"""Saves on real file systems of each kind that run out of room, inodes or quota, or break off in the middle.

After each: an error with its errno and its path, no name, no room and no descriptor lost, and a save
that works as soon as there is room. What tmpfs can show is test_directory_full_disk.py's.
"""

from __future__ import annotations

import errno
import io
import os

import pytest

from residue import names, nothing_left
from small_disks import SmallDisk, run
from snapstore import disk
from snapstore.directory import SnapshotDir
from snapstore.errors import SnapstoreError

pytestmark = pytest.mark.root

UNIT = 4096

#: Some chunks, so that room can end at each of them.
CONTENT = os.urandom(6 * UNIT + 100)

#: All that a file system says when it has no room for something.
NO_ROOM = {errno.ENOSPC, errno.EDQUOT}

#: Free bytes when a save begins: from none over less than each stage needs to more than enough.
STEPS = [*range(0, 16 * 1024, 2 * 1024), *range(16 * 1024, 64 * 1024, 2 * UNIT), 256 * 1024, 2 * 1024 * 1024]


@pytest.fixture
def make_disk(tmp_path):
    """Makes a file system of a kind, mounted at `tmp_path / "disk"`."""
    made = []

    def make(kind, options="", **more):
        made.append(SmallDisk(tmp_path / "disk", kind, tmp_path / "image", **more))
        return made[-1].mount(options)

    yield make
    for small in made:
        small.unmount()


@pytest.fixture(params=[True, False], ids=["nameless", "named"])
def nameless(request):
    return request.param


class Unsized:
    """A source that does not say how long it is: its room is asked for chunk by chunk."""

    def __init__(self, content):
        self.read = io.BytesIO(content).read


kinds = pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs"])
sources = pytest.mark.parametrize("source", [bytes, Unsized], ids=["known", "unknown"])


def failure(call, *arguments):
    """The OSError that `call` raised; None where it raised none."""
    try:
        call(*arguments)
    except OSError as error:
        return error
    return None


def assert_refused(directory, index, source, codes=NO_ROOM):
    """A save is refused with one of `codes` and the snapshot's path, and nothing is left of it."""
    with nothing_left(directory.path):
        error = failure(directory.save_from, source, index)
    assert error is not None
    assert error.errno in codes
    assert error.filename == str(directory.path / disk.snapshot_name(index))


def remove(directory, index):
    """Take away what was saved."""
    for name in (disk.snapshot_name(index), disk.manifest_name(index)):
        (directory.path / name).unlink()


def is_saved(directory, source, index):
    """Save, and tell whether it did: whole and taken away again, or refused with nothing left."""
    with nothing_left(directory.path):
        error = failure(directory.save_from, source(CONTENT), index)
        if error is None:
            assert directory.verify(index).path.read_bytes() == CONTENT
            remove(directory, index)
        else:
            assert error.errno in NO_ROOM
            assert error.filename == str(directory.path / disk.snapshot_name(index))
    return error is None


@kinds
@sources
def test_room_that_ends_at_any_stage_leaves_the_whole_or_nothing(make_disk, kind, source, nameless):
    """At the first byte, at each chunk, at the manifest: each step leaves a little more room."""
    small = make_disk(kind)
    outcomes = []
    with SnapshotDir(small.path / "stored", nameless=nameless, chunk_size=UNIT, reserve=0) as directory:
        for free in STEPS:
            with small.filled(free):
                outcomes.append(is_saved(directory, source, free))
        assert outcomes[0] is False
        assert outcomes[-1] is True
        assert directory.save_from(CONTENT, 1).size == len(CONTENT)
    print(f"{kind}: {outcomes.count(False)} full disks of {len(outcomes)}")


def test_a_directory_that_cannot_grow_takes_no_name_and_nothing_stays(make_disk, nameless):
    """On ext4 with blocks of 1 KiB a few long names fill one, and the next name needs another."""
    small = make_disk("ext4", more=["-O", "^dir_index,inline_data"])
    refused = 0
    with SnapshotDir(small.path / "stored", nameless=nameless, chunk_size=UNIT, reserve=0) as directory:
        for strangers in range(40):
            (directory.path / f"stranger-{strangers:0{40 + 7 * (strangers % 5)}}").touch()
            with small.filled(), nothing_left(directory.path):
                # Short enough to stand in their inodes: names are all that needs room.
                error = failure(directory.save_from, b"", strangers)
                if error is None:
                    remove(directory, strangers)
                else:
                    assert error.errno == errno.ENOSPC
                    refused += 1
        assert refused
        assert directory.save_from(CONTENT, 100).size == len(CONTENT)


def test_a_disk_without_inodes_is_refused_at_the_file_and_at_the_manifest(make_disk, nameless):
    small = make_disk("ext4", more=["-N", "16"])
    with SnapshotDir(small.path / "stored", nameless=nameless, reserve=0) as directory:
        while os.statvfs(small.path).f_ffree:
            (small.path / f"stranger-{os.statvfs(small.path).f_ffree}").touch()
        strangers = [name for name in names(small.path) if name.startswith("stranger")]
        for stranger in strangers[:2]:
            assert_refused(directory, 1, CONTENT, {errno.ENOSPC})
            (small.path / stranger).unlink()
        assert directory.save_from(CONTENT, 1).size == len(CONTENT)


@sources
def test_a_quota_is_a_full_disk(make_disk, source, nameless):
    """EDQUOT, and a real one: a limit on what the subvolume may take."""
    small = make_disk("btrfs")
    path = small.path / "limited"
    run("btrfs", "-q", "subvolume", "create", path)
    run("btrfs", "quota", "enable", small.path)
    run("btrfs", "-q", "quota", "rescan", "-w", small.path)
    path.chmod(0o700)
    with SnapshotDir(path, nameless=nameless, chunk_size=UNIT, reserve=0) as directory:
        directory.save_from(CONTENT, 1)
        os.sync()
        run("btrfs", "qgroup", "limit", "4M", path)
        assert_refused(directory, 2, source(bytes(5 * 1024 * 1024)), {errno.EDQUOT})
        os.sync()
        assert directory.verify(1).size == len(CONTENT)
        run("btrfs", "qgroup", "limit", "none", path)
        assert directory.save_from(CONTENT, 2).size == len(CONTENT)


@kinds
def test_a_disk_mounted_read_only_is_read_and_not_written(make_disk, kind):
    small = make_disk(kind)
    with SnapshotDir(small.path / "stored", reserve=0) as directory:
        directory.save_from(CONTENT, 1)
    small.unmount()
    small.mount("ro")
    with SnapshotDir(small.path / "stored", reserve=0) as directory:
        assert directory.verify(1).size == len(CONTENT)
        assert_refused(directory, 2, CONTENT, {errno.EROFS})


class Halting:
    """A source that calls `halt` between its two halves."""

    def __init__(self, halt):
        self._content, self._halt = io.BytesIO(CONTENT), halt

    def read(self, size):
        if self._content.tell() >= len(CONTENT) // 2:
            self._halt()
            self._halt = lambda: None
        return self._content.read(size)


@kinds
def test_a_disk_that_is_made_read_only_in_the_middle_waits_for_the_save(make_disk, kind, nameless):
    """The kernel does not take away what is open for writing; behind the save it does."""
    small = make_disk(kind)
    agreed = []
    with SnapshotDir(small.path / "stored", nameless=nameless, chunk_size=UNIT, reserve=0) as directory:
        halting = Halting(lambda: agreed.append(small.remount("ro")))
        assert directory.save_from(halting, 1).path.read_bytes() == CONTENT
        assert agreed == [False]
        assert small.remount("ro")
        assert_refused(directory, 2, CONTENT, {errno.EROFS})
        assert small.remount("rw")
        assert directory.save_from(CONTENT, 2).size == len(CONTENT)


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_a_disk_that_breaks_off_in_the_middle_leaves_the_whole_or_nothing(make_disk, kind, nameless):
    """What it says then is an error with a path; mounted again, what was saved before is there."""
    small = make_disk(kind)
    with SnapshotDir(small.path / "stored", nameless=nameless, chunk_size=UNIT, reserve=0) as directory:
        directory.save_from(CONTENT, 1)
        with pytest.raises((OSError, SnapstoreError)) as raised:
            directory.save_from(Halting(small.break_off), 2)
        if isinstance(raised.value, OSError):
            assert raised.value.errno in {errno.EIO, errno.EROFS}
            assert raised.value.filename == str(directory.path / disk.snapshot_name(2))
    small.unmount()
    small.mount()
    with SnapshotDir(small.path / "stored", reserve=0) as directory:
        assert [saved.index for saved in directory.list()] == [1]
        assert directory.verify(1).path.read_bytes() == CONTENT
        assert len(names(directory.path)) == 2
        assert directory.save_from(CONTENT, 2).size == len(CONTENT)
