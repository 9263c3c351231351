"""Room for a save whose size nobody knows: it asks for it step by step, up to the reserve and not into it."""

from __future__ import annotations

import contextlib
import os

import pytest

from fake_disks import GIB, MIB, FakeDisk, Whole, offered, refusal
from nodes import UNIT
from residue import nothing_left
from snapstore import room
from snapstore._fastpipe import Progress, digest
from snapstore.errors import NoRoom, PipeClosed, SnapshotTooLarge
from snapstore.manifest import Manifest
from snapstore.meta import SnapshotMeta
from snapstore.room import STEP_SIZE_MAX

pytestmark = pytest.mark.usefixtures("nothing_lost")


class Growing:
    """A source of endless chunks; calls `meanwhile` after so many."""

    def __init__(self, chunks, meanwhile):
        self._left, self._meanwhile = chunks, meanwhile

    def read(self, size):
        self._left -= 1
        if self._left == 0:
            self._meanwhile()
        return bytes(min(size, UNIT))


def test_an_unknown_size_grows_up_to_the_reserve_and_not_into_it(tmp_path):
    with FakeDisk(4 * MIB).open(tmp_path / "stored", reserve=MIB, chunk_size=UNIT) as directory:
        assert directory.save_from(Whole(3 * MIB), 1).size == 3 * MIB
        with nothing_left(directory.path), pytest.raises(NoRoom) as raised:
            directory.save_from(Whole(3 * MIB + 1), 2)
        assert (raised.value.needed, raised.value.reserve) == (3 * MIB + 1, MIB)
        with pytest.raises(SnapshotTooLarge):
            directory.save_from(Whole(2 * MIB + 9 * UNIT), 3, size_max=2 * MIB + 8 * UNIT)


@pytest.mark.parametrize(("free", "step"), [(8 * GIB, STEP_SIZE_MAX), (64 * MIB, 8 * MIB)])
def test_an_unknown_size_holds_its_next_step_and_lets_go_of_it(tmp_path, free, step):
    """So who is promised room meanwhile has it; and it is a part of what is left: others have some."""
    with FakeDisk(free).open(tmp_path / "stored", reserve=0, chunk_size=UNIT) as directory:

        def offer():
            # The byte that it asks for, and the step behind it.
            assert step - 9 * UNIT <= directory._room.measure().reserved <= step + 1
            refusal(offered(directory, 2, free - step + UNIT))
            with offered(directory, 3, free - step - 9 * UNIT):
                raise Stop

        with pytest.raises(Stop):
            directory.save_from(Growing(3, offer), 1)
        assert directory._room.measure().reserved == 0


def test_what_has_come_to_its_end_holds_no_step_any_more(tmp_path):
    """Its fsync may take long, and others want the room meanwhile."""
    with FakeDisk(64 * MIB).open(tmp_path / "stored", reserve=0, chunk_size=UNIT) as directory:

        def meta_of(_image):
            reserved.append(directory._room.measure().reserved)
            return SnapshotMeta(1)

        reserved = []
        directory.save_from(Whole(MIB), meta_of)
    assert reserved == [0]


def test_a_disk_that_tells_late_what_it_has_is_not_asked_for_each_chunk(tmp_path, monkeypatch):
    """As one that compresses, or counts at its next commit: each question waits for the GIL."""
    monkeypatch.setattr(room, "_allocated_size", lambda file: 0)
    disk = FakeDisk(64 * MIB)
    with disk.open(tmp_path / "stored", reserve=0, chunk_size=UNIT) as directory:
        directory.save_from(Whole(20 * MIB), 1)
    assert disk.asked < 20  # For its 1,280 chunks.


class Stop(Exception):
    """The end of a test's source."""


@pytest.mark.parametrize("more", [0, 1])
def test_what_was_kept_of_an_unknown_size_counts_as_room_that_it_has(tmp_path, more):
    """It had 6 MiB of 8; the other 2 it may have, and no more."""
    disk = FakeDisk(8 * MIB)
    with disk.open(tmp_path / "stored", reserve=0, chunk_size=UNIT) as directory:
        with contextlib.suppress(PipeClosed), offered(directory, 1, None) as begun:
            os.pwrite(begun._file.fd, bytes(6 * MIB), 0)
            raise PipeClosed
        manifest = manifest_of(bytes(8 * MIB + more))
        with (
            pytest.raises(NoRoom) if more else contextlib.nullcontext(),
            offered(directory, 1, None) as begun,
        ):
            assert begun.kept == 6 * MIB
            begun.save(Whole(2 * MIB + more), SnapshotMeta(1), expected=manifest)
        assert [saved.size for saved in directory.list()] == [8 * MIB] * (1 - more)
    assert disk.asked < 100  # For its 512 chunks.


def manifest_of(content):
    """What a sender says of `content`, index 1."""
    copied = digest(content, chunk_size=UNIT)
    return Manifest(SnapshotMeta(1), copied.size, copied.digest, UNIT, copied.chunk_digests)


def test_an_unknown_size_gives_way_when_others_need_the_room(tmp_path):
    """The raft log grows beside it, say: the save ends, and what it had is free again."""
    disk = FakeDisk(16 * MIB)

    def fill():
        disk.free = 0

    with disk.open(tmp_path / "stored", reserve=MIB, chunk_size=UNIT) as directory:
        with nothing_left(directory.path), pytest.raises(NoRoom) as raised:
            directory.save_from(Growing(3, fill), 1, size_max=GIB)
        assert raised.value.free == 0
        assert directory._room.measure().reserved == 0


def test_a_growing_save_may_come_again_where_others_alone_are_in_its_way(tmp_path):
    """What it has itself comes back with it."""
    with FakeDisk(8 * MIB).open(tmp_path / "stored", reserve=0, chunk_size=UNIT) as directory:
        with offered(directory, 1, 2 * MIB), pytest.raises(NoRoom) as raised:
            directory.save_from(Whole(7 * MIB), 2)
        assert raised.value.for_now
        with pytest.raises(NoRoom) as raised:
            directory.save_from(Whole(9 * MIB), 2)
        assert not raised.value.for_now


def test_who_cancels_a_growing_save_hears_of_that_and_not_of_room(tmp_path):
    progress = Progress()
    with FakeDisk(GIB).open(tmp_path / "stored") as directory, pytest.raises(PipeClosed):
        directory.save_from(Growing(3, progress.cancel), 1, progress=progress)
