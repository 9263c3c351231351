"""Room on a disk: held for who was promised it, refused with the numbers, and a reserve that stays."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import threading
from types import SimpleNamespace

import pytest

from fake_disks import GIB, MIB, FakeDisk, Whole, offered, refusal
from impostors import SHORT_S
from nodes import UNIT, WAIT_S, Follower, RawPeer, put_head, wait_until, written
from residue import nothing_left
from snapstore.cli.exits import ExitCode, exit_code_of, explain
from snapstore.directory import SnapshotDir
from snapstore.errors import NoRoom, PipeClosed, SnapshotTooLarge
from snapstore.meta import SnapshotMeta
from snapstore.retry import RetryPolicy
from snapstore.room import LOOKS_MAX, RESERVE_PARTS, RESERVE_SIZE
from snapstore.testing import FakeClock
from snapstore.transport.http import SnapshotClient
from snapstore.transport.patience import Deadlines

pytestmark = pytest.mark.usefixtures("nothing_lost")


def test_two_offers_that_fit_alone_do_not_fit_together(tmp_path):
    """6 GiB and 6 GiB into 10 GiB: whoever comes second is told why, and comes in when the first has left."""
    with FakeDisk(10 * GIB).open(tmp_path / "stored", reserve=GIB) as directory:
        with offered(directory, 1, 6 * GIB):
            error = refusal(offered(directory, 2, 6 * GIB))
            with offered(directory, 3, 3 * GIB):  # What is left is everybody's.
                pass
        with offered(directory, 2, 6 * GIB):
            pass
    assert (error.needed, error.free, error.reserved, error.reserve) == (6 * GIB, 10 * GIB, 6 * GIB, GIB)
    assert error.for_now
    assert error.errno == errno.ENOSPC
    assert error.filename == str(tmp_path / "stored" / "0000000000000002.db")
    assert exit_code_of(error) == ExitCode.SYSTEM
    assert "6442450944 bytes needed, 10737418240 bytes free" in explain(error)


def test_of_offers_at_the_same_moment_only_those_get_in_that_fit(tmp_path):
    together, leave, outcomes = threading.Barrier(8), threading.Event(), []

    def offer(index):
        together.wait(WAIT_S)
        try:
            with offered(directory, index, 3 * GIB):
                outcomes.append("in")
                assert leave.wait(WAIT_S)
        except NoRoom:
            outcomes.append("out")
        if outcomes.count("out") == 5:
            leave.set()

    with FakeDisk(10 * GIB).open(tmp_path / "stored", reserve=GIB) as directory:
        threads = [threading.Thread(target=offer, args=(index,)) for index in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(outcomes) == ["in"] * 3 + ["out"] * 5


@pytest.mark.parametrize("error", [None, OSError(errno.EIO, "the disk"), KeyboardInterrupt(), PipeClosed()])
def test_room_is_given_back_however_a_save_ends(tmp_path, error):
    with FakeDisk(10 * GIB).open(tmp_path / "stored") as directory:
        for index in range(3):
            with contextlib.suppress(BaseException), offered(directory, index, 6 * GIB):
                if error is not None:
                    raise error
        directory.save_from(b"whole", 9)
        directory.save_from(Whole(UNIT), 10)
        assert directory._room.measure().reserved == 0
        assert repr(directory._room) == "<RoomAccount holds=[]>"


def test_a_save_of_known_size_is_refused_before_a_byte_is_read(tmp_path):
    def read(size):
        pytest.fail("a byte was read")

    with FakeDisk(GIB).open(tmp_path / "stored", reserve=0) as directory, nothing_left(directory.path):
        with pytest.raises(NoRoom) as raised:
            directory.save_from(SimpleNamespace(read=read), 1, size=GIB + 1)
        assert not raised.value.for_now
        with pytest.raises(SnapshotTooLarge, match="more than the limit"):
            directory.save_from(SimpleNamespace(read=read), 1, size=GIB + 1, size_max=GIB)


@pytest.mark.parametrize(
    ("size", "reserve"), [(100 * GIB, RESERVE_SIZE), (GIB, GIB // RESERVE_PARTS // 4096 * 4096)]
)
def test_by_default_a_reserve_stays_that_fits_the_disk(tmp_path, size, reserve):
    disk = FakeDisk(size)
    with disk.open(tmp_path / "stored") as directory:
        room = directory._room.measure()
        assert abs(room.reserve - reserve) < 4096
        refusal(offered(directory, 1, room.left + 1))
        with offered(directory, 1, room.left):
            pass
        disk.free = reserve  # Nothing is left: also not for what does not say how long it is.
        refusal(offered(directory, 1, None))


def test_a_negative_reserve_is_refused(tmp_path):
    with pytest.raises(ValueError, match="reserve"):
        SnapshotDir(tmp_path / "stored", reserve=-1)


def test_what_an_earlier_attempt_has_on_the_disk_is_not_asked_for_again(tmp_path):
    """And a refusal does not take it away: the room that it has is not the room that is missing."""
    size, disk = 64 * UNIT, FakeDisk(GIB)
    with disk.open(tmp_path / "stored", reserve=0) as directory:
        with contextlib.suppress(PipeClosed), offered(directory, 1, size) as begun:
            os.pwrite(begun._file.fd, os.urandom(32 * UNIT), 0)
            raise PipeClosed
        disk.free = 63 * UNIT
        assert refusal(offered(directory, 1, size)).needed == 32 * UNIT
        disk.free = 64 * UNIT
        with offered(directory, 1, size) as begun:
            assert begun.kept == 32 * UNIT


@pytest.mark.parametrize("times", [1, LOOKS_MAX])
def test_what_is_allocated_during_a_look_is_neither_lost_nor_taken_for_stored(tmp_path, times):
    """Counted twice it would refuse what has room; not at all, let in what has none."""

    class Moving(FakeDisk):
        def statvfs(self, fd):
            if moves:
                os.posix_fallocate(first._file.fd, 0, moves.pop())
            return super().statvfs(fd)

    moves = []
    with (
        Moving(10 * MIB).open(tmp_path / "stored", reserve=0) as directory,
        offered(directory, 1, 6 * MIB) as first,
    ):
        moves = [6 * MIB - number * MIB // 2 for number in range(times)]
        # The extents have a block or two besides.
        assert 3 * MIB < directory._room.measure().left <= 4 * MIB
        assert not moves
        moves = [7 * MIB]
        assert refusal(offered(directory, 2, 5 * MIB)).for_now


@pytest.mark.parametrize("blocks", [0, 1])
def test_a_file_system_that_does_not_tell_is_not_a_full_one(tmp_path, blocks):
    """tmpfs without a limit says that it has no blocks at all; a full disk has some, and none free."""
    told = SimpleNamespace(f_bavail=0, f_blocks=blocks, f_frsize=4096)
    with SnapshotDir(tmp_path / "stored", statvfs=lambda fd: told) as directory:
        if blocks:
            refusal(offered(directory, 1, GIB))
        else:
            with offered(directory, 1, GIB):
                assert directory.save_from(Whole(MIB), 2).size == MIB


def test_what_was_closed_holds_nothing(tmp_path):
    """However its saver came to forget it: the next one must not fail for that."""
    disk = FakeDisk(10 * GIB)
    with disk.open(tmp_path / "stored", reserve=0) as directory, offered(directory, 1, 6 * GIB) as first:
        first._file.discard()
        assert directory._room.measure().reserved == 0
        with offered(directory, 2, 6 * GIB):
            pass


def test_a_disk_that_does_not_say_is_an_error_with_the_path(tmp_path):
    def broken(fd):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with SnapshotDir(tmp_path / "stored", statvfs=broken) as directory, nothing_left(directory.path):
        with pytest.raises(OSError, match="Input/output") as raised:
            directory.save_from(b"whole", 1)
        assert raised.value.filename == str(directory.path / "0000000000000001.db")


# The peer.


@pytest.fixture
def small(nothing_lost, tmp_path):
    """A follower with room for 10 MiB."""
    limits = {"statvfs": FakeDisk(10 * MIB).statvfs, "reserve": MIB}
    with Follower(tmp_path / "follower", limits=limits) as follower:
        yield follower


def big(index, size):
    length = size + 20 * (size // UNIT + 1)
    return put_head(index=index, Snapstore_Size=str(size), Content_Length=str(length))


def test_a_second_offer_is_refused_with_the_numbers(small):
    with RawPeer(small.url) as first, RawPeer(small.url) as second, RawPeer(small.url) as third:
        first.say(big(7, 6 * MIB))
        first.hear_continue()
        second.say(big(8, 6 * MIB))
        status, headers, body = second.hear()
        assert (status, headers["Retry-After"]) == (507, "10")
        said = json.loads(body)
        assert "No space left" in said.pop("error")
        # The first one's room is promised, or allocated already.
        assert said.pop("free") - said.pop("reserved") == 4 * MIB
        assert said == {"needed": 6 * MIB, "reserve": MIB}
        third.say(big(9, 20 * MIB))  # Whoever leaves, there will never be room for this one.
        status, headers, _ = third.hear()
        assert (status, headers["Retry-After"]) == (507, None)


def test_a_peer_that_stalls_does_not_keep_its_room(tmp_path):
    """Nor does one that leaves: with whom it was promised it ends."""
    limits = {"statvfs": FakeDisk(10 * MIB).statvfs, "reserve": MIB}
    with Follower(tmp_path / "follower", limits=limits, deadlines=Deadlines(idle_timeout_s=SHORT_S)) as small:
        with RawPeer(small.url) as stalling:
            stalling.say(big(7, 6 * MIB))
            stalling.hear_continue()
            assert stalling.hear()[0] == 408
            wait_until(lambda: small.directory._room.measure().left == 9 * MIB)
        with RawPeer(small.url) as leaving:
            leaving.say(big(8, 6 * MIB))
            leaving.hear_continue()
        wait_until(lambda: small.directory._room.measure().left == 9 * MIB)
        with RawPeer(small.url) as third:
            third.say(big(9, 9 * MIB))
            third.hear_continue()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_what_the_disk_itself_refuses_is_want_of_room_too(tmp_path, code):
    """A quota that no statvfs tells of, say; nobody knows for how long."""

    def refuse(fd):
        raise OSError(code, os.strerror(code))

    with Follower(tmp_path / "follower", limits={"statvfs": refuse}) as full, RawPeer(full.url) as peer:
        peer.say(big(7, MIB))
        status, headers, body = peer.hear()
    assert (status, headers["Retry-After"]) == (507, None)
    assert os.strerror(code) in json.loads(body)["error"]


def test_a_leader_comes_again_when_the_room_may_be_there(small):
    """The others alone stand in its way, and they may have failed meanwhile."""
    clock, waits = FakeClock(), []

    def sleep(seconds):
        if not waits:
            first.close()
            wait_until(lambda: small.directory._room.measure().left == 9 * MIB)
        waits.append(seconds)
        clock.advance(seconds)

    client = SnapshotClient(retry=RetryPolicy(monotonic=clock.monotonic, sleep=sleep))
    with RawPeer(small.url) as first, written(meta=SnapshotMeta(7)) as stream:
        first.say(big(6, 9 * MIB))
        first.hear_continue()
        assert client.send_snapshot(small.url, stream, chunk_size=UNIT).index == 7
    assert 10.0 <= sum(waits) <= 11.0
