"""Room on a disk: held for who was promised it, refused with the numbers, and a reserve that stays."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import threading
from types import SimpleNamespace

import pytest

from impostors import SHORT_S
from nodes import UNIT, WAIT_S, Follower, RawPeer, put_head, wait_until, written
from residue import descriptors, nothing_left
from snapstore._fastpipe import Progress, digest
from snapstore.cli.exits import ExitCode, exit_code_of, explain
from snapstore.directory import SnapshotDir
from snapstore.errors import NoRoom, PipeClosed, SnapshotTooLarge
from snapstore.manifest import Manifest
from snapstore.meta import SnapshotMeta
from snapstore.retry import RetryPolicy
from snapstore.room import LOOKS_MAX, RESERVE_PARTS, RESERVE_SIZE, STEP_SIZE_MAX
from snapstore.testing import FakeClock
from snapstore.transport.http import SnapshotClient
from snapstore.transport.patience import Deadlines

GIB = 1024**3
MIB = 1024**2

pytestmark = pytest.mark.usefixtures("nothing_lost")


#: A file that an attempt may be kept in, or one without a name.
UNDER_WAY = re.compile(r"\.part-[0-9a-f]{16}\Z|#[0-9]+ \(deleted\)\Z")


class FakeDisk:
    """What `statvfs` says of a disk of `size` bytes: `free`, but for what saves under way have allocated."""

    def __init__(self, free, size=None):
        self.free, self.size = free, size or free
        self.asked = 0

    def statvfs(self, fd):
        self.asked += 1
        path = os.readlink(f"/proc/self/fd/{fd}")
        sizes = {}
        for number, target in descriptors():
            if os.path.dirname(target) == path and UNDER_WAY.match(os.path.basename(target)):
                with contextlib.suppress(OSError):  # Published or removed meanwhile.
                    status = os.stat(f"/proc/self/fd/{number}")
                    sizes[status.st_ino] = status.st_blocks * 512
        free = max(0, self.free - sum(sizes.values()))
        return SimpleNamespace(f_bavail=free // 4096, f_blocks=self.size // 4096, f_frsize=4096)

    def open(self, path, **options):
        return SnapshotDir(path, statvfs=self.statvfs, **options)


def offered(directory, index, size):
    """Begin to receive so much."""
    return directory.receive(SnapshotMeta(index), size=size, chunk_size=UNIT)


def refusal(begun):
    with pytest.raises(NoRoom) as raised, begun:
        pytest.fail("it was accepted")
    return raised.value


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


# A source that does not say how long it is.


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
            assert step - 9 * UNIT <= directory._room.measure().reserved <= step
            refusal(offered(directory, 2, free - step + UNIT))
            with offered(directory, 3, free - step - 9 * UNIT):
                raise Stop

        with pytest.raises(Stop):
            directory.save_from(Growing(3, offer), 1)
        assert directory._room.measure().reserved == 0


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


class Whole:
    """So many bytes that nobody announced."""

    def __init__(self, size):
        self._left = size

    def read(self, size):
        count = min(size, self._left)
        self._left -= count
        return bytes(count)


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
