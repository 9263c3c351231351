"""Room on real small disks: what is promised, what is allocated, and a reserve that nobody eats."""

from __future__ import annotations

import os
import threading

import pytest

from nodes import UNIT, WAIT_S, wait_until
from residue import nothing_left
from small_disks import SmallDisk
from snapstore.directory import SnapshotDir
from snapstore.errors import NoRoom
from snapstore.meta import SnapshotMeta

pytestmark = pytest.mark.root

MIB = 1024**2

#: The disk, and what must stay free on it.
DISK_SIZE, RESERVE = 400 * MIB, 40 * MIB


@pytest.fixture(params=["tmpfs", "ext4", "xfs", "btrfs"])
def small(request, tmp_path):
    disk = SmallDisk(tmp_path / "disk", request.param, tmp_path / "image", size_mib=DISK_SIZE // MIB)
    disk.mount(f"size={DISK_SIZE}" if request.param == "tmpfs" else "")
    with SnapshotDir(disk.path / "stored", reserve=RESERVE, chunk_size=UNIT) as directory:
        yield directory
    disk.unmount()


def free(directory):
    status = os.statvfs(directory.path)
    return status.f_bavail * status.f_frsize


def offered(directory, index, size):
    return directory.receive(SnapshotMeta(index), size=size, chunk_size=UNIT)


class Slowly:
    """A source of `size` bytes that waits at its half until it is told to go on."""

    def __init__(self, size):
        self.half, self.go_on = threading.Event(), threading.Event()
        self._left, self._half = size, size // 2

    def read(self, size):
        if self._left <= self._half and not self.half.is_set():
            self.half.set()
            assert self.go_on.wait(WAIT_S)
        count = min(size, self._left)
        self._left -= count
        return bytes(count)


def test_of_two_large_offers_the_second_is_refused_before_and_behind_the_allocation(small):
    """60 percent each. What the first has allocated is gone from the disk, and not counted twice."""
    size = free(small) * 6 // 10
    source = Slowly(size)
    with offered(small, 1, size), nothing_left(small.path):
        with pytest.raises(NoRoom) as raised, offered(small, 2, size):
            pass
        assert raised.value.for_now
    saving = threading.Thread(target=small.save_from, args=(source, 3), kwargs={"size": size})
    saving.start()
    try:
        assert source.half.wait(WAIT_S)
        os.sync()  # btrfs tells of an allocation when it is committed.
        with pytest.raises(NoRoom) as raised, offered(small, 2, size):
            pass
        assert raised.value.for_now
        assert raised.value.free - raised.value.reserved - RESERVE < size
        with offered(small, 4, size // 10):
            pass
    finally:
        source.go_on.set()
        saving.join()
    assert small.verify(3).size == size
    with pytest.raises(NoRoom) as raised, offered(small, 2, size):
        pass
    assert not raised.value.for_now  # It is stored now: nobody will give that room back.


class Endless:
    """A source without an end."""

    def read(self, size):
        return bytes(size)


def comes_back(directory):
    """Wait for the room of what is gone: xfs gives it back a moment later."""
    wait_until(lambda: free(directory) > RESERVE + 2 * MIB)


def test_a_source_without_an_end_stops_before_the_reserve(small):
    with nothing_left(small.path), pytest.raises(NoRoom):
        small.save_from(Endless(), 1)
    comes_back(small)
    assert small.save_from(bytes(MIB), 2).size == MIB


def test_sources_without_an_end_beside_each_other_leave_the_disk_usable(small):
    """Each saw all the room at its beginning; the one that is looked at next gives way."""
    outcomes = []

    def save(index):
        try:
            small.save_from(Endless(), index)
        except NoRoom as error:
            outcomes.append(error)

    threads = [threading.Thread(target=save, args=(index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(outcomes) == 3
    comes_back(small)
    assert small.save_from(bytes(MIB), 9).size == MIB
