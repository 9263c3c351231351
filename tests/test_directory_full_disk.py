"""File systems that are full, out of inodes, or read-only: real ones, mounted for the test."""

from __future__ import annotations

import contextlib
import errno
import os

import pytest

from residue import names, nothing_left
from rotten import rot
from small_disks import SmallDisk, run
from snapstore import disk, poison
from snapstore.directory import SnapshotDir
from snapstore.errors import DirectoryPoisoned, SnapshotCorrupt, SnapshotNotDurable

pytestmark = pytest.mark.root

DISK_SIZE = 4 * 1024 * 1024
PAGE = 4096

#: Fits the disk, and does not fit it twice.
CONTENT = os.urandom(3 * 1024 * 1024 - 1)


class UnreadSource:
    """A source that must not be touched."""

    def read(self, size):
        pytest.fail("the source was read")


class Endless:
    """A source that does not say how long it is, and is too long."""

    def read(self, size):
        return bytes(size)


@pytest.fixture
def mount(tmp_path):
    """Mounts a tmpfs with some options at `tmp_path / "disk"`; returns its path."""
    small = SmallDisk(tmp_path / "disk", "tmpfs")
    yield lambda options: small.mount(options).path
    small.unmount()


@pytest.fixture(params=[True, False], ids=["nameless", "named"])
def nameless(request):
    return request.param


@contextlib.contextmanager
def room_kept(path):
    """Whatever happens inside: as many blocks and inodes are free afterwards, and nothing is left."""
    before = os.statvfs(path)
    with nothing_left(path):
        yield
    after = os.statvfs(path)
    assert (after.f_bfree, after.f_ffree) == (before.f_bfree, before.f_ffree)


@contextlib.contextmanager
def refused_for(code, directory, index):
    with room_kept(directory.path):
        with pytest.raises(OSError, match=os.strerror(code)) as raised:
            yield
        assert raised.value.errno == code
        assert raised.value.filename == str(directory.path / disk.snapshot_name(index))


def test_a_disk_without_room_is_known_before_a_byte_is_read(mount, nameless):
    with SnapshotDir(mount(f"size={DISK_SIZE}"), nameless=nameless, reserve=0) as directory:
        directory.save_from(CONTENT, 1)
        with refused_for(errno.ENOSPC, directory, 2):
            directory.save_from(UnreadSource(), 2, size=len(CONTENT))
        assert directory.verify(1).size == len(CONTENT)


def test_a_disk_that_runs_full_keeps_what_it_has_and_nothing_else(mount, nameless):
    with SnapshotDir(mount(f"size={DISK_SIZE}"), nameless=nameless, reserve=0) as directory:
        directory.save_from(CONTENT, 1)
        for source in (Endless(), CONTENT):
            with refused_for(errno.ENOSPC, directory, 2):
                directory.save_from(source, 2)
        assert directory.verify(1).size == len(CONTENT)
        directory.get_snap_file_path(1).unlink()
        assert directory.save_from(CONTENT, 2).size == len(CONTENT)


def test_room_that_ends_anywhere_leaves_the_whole_or_nothing(mount, nameless):
    """Page by page: no room for the bytes, then for the bytes alone, then for the manifest, too."""
    path = mount(f"size={DISK_SIZE}")
    content = CONTENT[: 3 * PAGE]
    outcomes = []
    with SnapshotDir(path, nameless=nameless, chunk_size=PAGE, reserve=0) as directory:
        for free in range(8):
            with open(path / "ballast", "wb") as ballast:
                os.posix_fallocate(ballast.fileno(), 0, (os.statvfs(path).f_bfree - free) * PAGE)
            with nothing_left(path), contextlib.suppress(OSError):
                saved = directory.save_from(content, free).path
                assert directory.verify(free).path == saved
                saved.unlink()
                saved.with_suffix(".json").unlink()
                outcomes.append(free)
            (path / "ballast").unlink()
    assert outcomes == [4, 5, 6, 7]


def test_a_disk_without_inodes_is_refused_and_nothing_left(mount, nameless):
    path = mount("size=4m,nr_inodes=8")
    with SnapshotDir(path, nameless=nameless, reserve=0) as directory:
        while os.statvfs(path).f_ffree:
            (path / f"stranger-{os.statvfs(path).f_ffree}").touch()
        strangers = names(path)
        for stranger in strangers[:2]:
            with refused_for(errno.ENOSPC, directory, 1):
                directory.save_from(CONTENT, 1)
            (path / stranger).unlink()
        assert directory.save_from(CONTENT, 1).size == len(CONTENT)


def test_a_disk_that_turned_read_only_can_still_be_read(mount, nameless):
    path = mount("size=8m")
    with SnapshotDir(path, nameless=nameless, reserve=0) as directory:
        for index in (1, 2):
            directory.save_from(CONTENT, index)
        stale = path / disk.temp_name(3)
        stale.touch()
        run("mount", "-o", "remount,ro", path)
        with refused_for(errno.EROFS, directory, 3):
            directory.save_from(CONTENT, 3)
        with SnapshotDir(path, reserve=0) as again:
            assert [saved.index for saved in again.list()] == [1, 2]
            assert again.verify(2).size == len(CONTENT)
            assert again.remove_orphans() == []
            with pytest.raises(OSError, match=os.strerror(errno.EROFS)):
                again.purge(keep=1)
            with again.open_newest() as stored:
                assert stored.meta.index == 2
    with pytest.raises(OSError, match=os.strerror(errno.EROFS)):
        SnapshotDir(path / "below", reserve=0)
    assert stale.name in names(path)


def test_a_broken_snapshot_on_a_disk_that_turned_read_only_stays_and_is_not_offered(mount):
    """Nor does a marker of a failed fsync keep readers out, when nothing can be done about it."""
    path = mount("size=8m")
    with SnapshotDir(path, reserve=0) as directory:
        for index in (1, 2):
            rot(directory.save_from(CONTENT, index).path, 8 * (index - 1) * len(CONTENT) // 2)
        directory.save_from(CONTENT[:100], 0)
        poison.leave_marker(directory._fd, "again")
    run("mount", "-o", "remount,ro", path)
    with nothing_left(path), SnapshotDir(path, reserve=0) as again:
        with pytest.raises(SnapshotCorrupt, match=f"could not be set aside: .*{os.strerror(errno.EROFS)}"):
            again.verify(2)
        with again.open_newest() as stored:
            assert stored.meta.index == 0
    run("mount", "-o", "remount,rw", path)
    with SnapshotDir(path, reserve=0) as directory:
        assert [saved.index for saved in directory.list()] == [0]
        assert len(names(path)) == 2 + 2 * len(directory.broken()) == 6


def test_a_directory_under_another_mount_saves_as_ever(mount, nameless):
    path = mount("size=4m")
    with SnapshotDir(path / "a" / "b", nameless=nameless, reserve=0) as directory:
        assert directory.save_from(CONTENT, 1).path.read_bytes() == CONTENT


@pytest.fixture
def ext4(tmp_path):
    small = SmallDisk(tmp_path / "disk", "ext4", tmp_path / "image", size_mib=32)
    yield small.mount()
    small.unmount()


def test_what_an_aborted_journal_may_lose_is_never_called_stored(ext4):
    """Its directory's fsync says EROFS, as nothing that was mounted read-only does."""
    with SnapshotDir(ext4.path, reserve=0) as directory:
        directory.save_from(CONTENT, 1)
        assert ext4.remount("abort")
        with pytest.raises(SnapshotNotDurable):
            directory.save_from(UnreadSource(), 1)
        with pytest.raises(DirectoryPoisoned):
            directory.confirm(1)
    with pytest.raises(OSError, match=os.strerror(errno.EROFS)):
        SnapshotDir(ext4.path, reserve=0)
