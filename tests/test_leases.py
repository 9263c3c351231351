"""Leases of stored snapshots: who holds what since when, what comes of a forgotten one, and who says so."""

from __future__ import annotations

import fcntl
import inspect
import json
import math
import os
import threading

import pytest

from nodes import CONTENT, META, RawPeer, wait_until
from processes import Process
from residue import descriptors, nothing_left
from snapstore.directory import SnapshotDir
from snapstore.errors import SnapshotCorrupt
from snapstore.lease import STORED_TTL_S, Kind, Lease
from snapstore.stream import SnapshotStream
from snapstore.testing import FakeClock

WAIT_S = 20.0


@pytest.fixture
def clock():
    return FakeClock(100.0)


@pytest.fixture
def directory(tmp_path, clock, nothing_lost):
    with SnapshotDir(tmp_path / "snap", monotonic=clock.monotonic) as directory:
        for index in (1, 2, 3):
            directory.save_from(CONTENT, index)
        directory.verify(3)
        yield directory


def stored(directory):
    return [saved.index for saved in directory.list()]


def overdue_lines(caplog):
    return [record.getMessage() for record in caplog.records if "forgotten?" in record.getMessage()]


def here():
    """The line of the caller."""
    return inspect.currentframe().f_back.f_lineno


# What is told of a lease.


def test_a_lease_tells_who_holds_what_and_where_it_was_taken(directory, clock):
    assert directory.leases() == []
    with directory.open(2, owner="applier", ttl_s=60.0) as second:
        line = here() - 1
        clock.advance(12.5)
        with directory.open(1) as first:
            assert directory.leases() == [second.lease, first.lease]
            assert second.lease.to_json() == {
                "kind": "stored",
                "index": 2,
                "owner": "applier",
                "taken_at": f"{__file__}:{line} in {inspect.currentframe().f_code.co_name}",
                "age_s": 12.5,
                "left_s": 47.5,
                "overdue": False,
                "bytes_held": len(CONTENT),
            }
            assert (first.lease.owner, first.lease.left_s) == ("MainThread", STORED_TTL_S)
        assert directory.leases() == [second.lease]
        second.close()
        assert directory.leases() == []
    assert str(second.lease).startswith("snapshot 2 (stored) held for 12 s, at a cost of")


def test_the_newest_is_leased_to_its_owner_too(directory):
    with directory.open_newest(owner="restore", ttl_s=5) as newest:
        assert (newest.lease.owner, newest.lease.ttl_s, newest.lease.index) == ("restore", 5, 3)


def test_what_a_thread_takes_is_told_by_its_name_and_its_code(directory):
    taken = []
    thread = threading.Thread(target=lambda: taken.append(directory.open(1)), name="apply-7")
    thread.start()
    thread.join(WAIT_S)
    with taken[0] as snapshot:
        assert snapshot.lease.owner == "apply-7"
        assert snapshot.lease.taken_at.startswith(__file__)


def test_what_nobody_elses_code_has_taken_is_told_by_ours(directory, background):
    with background(directory.open, 1).result(WAIT_S) as snapshot:
        assert "/snapstore/shelf.py:" in snapshot.lease.taken_at


@pytest.mark.parametrize("ttl_s", [0, -1.0, math.nan])
def test_a_time_that_is_none_is_refused_and_leaves_nothing(directory, ttl_s):
    before = descriptors()
    with pytest.raises(ValueError, match="ttl_s"):
        directory.open(1, ttl_s=ttl_s)
    assert descriptors() == before
    assert directory.leases() == []


def test_a_lease_without_end_is_never_overdue(directory, clock):
    with directory.open(1, ttl_s=math.inf) as snapshot:
        clock.advance(1e12)
        assert not snapshot.lease.overdue
        assert json.loads(json.dumps(snapshot.lease.to_json(), allow_nan=False))["left_s"] is None


def test_a_broken_snapshot_leaves_no_lease(directory):
    path = directory.get_snap_file_path(2)
    path.write_bytes(bytes(len(CONTENT)))
    with pytest.raises(SnapshotCorrupt):
        directory.open(2)
    assert directory.leases() == []


# The end of its time.


def test_until_its_time_is_up_no_purge_takes_it_then_one_may_and_readers_read_on(directory, clock, caplog):
    with directory.open(1, owner="applier", ttl_s=60) as snapshot:
        line = here() - 1
        clock.advance(59.9)
        assert directory.purge(keep=1) == [2]
        assert overdue_lines(caplog) == []
        clock.advance(0.1)
        assert directory.purge(keep=1) == [1]
        (told,) = overdue_lines(caplog)
        assert f"by 'applier', taken at {__file__}:{line} in" in told
        assert "snapshot 1 (stored) held for 60 s" in told
        snapshot.verify()  # The bytes are there as long as somebody reads them.
        assert [lease.overdue for lease in directory.leases()] == [True]
    assert directory.leases() == []


@pytest.mark.parametrize("look", ["open", "leases", "purge"])
def test_it_is_reported_once_by_whoever_looks_first(directory, clock, caplog, look):
    looks = {
        "open": lambda: directory.open(3).close(),
        "leases": directory.leases,
        "purge": lambda: directory.purge(keep=3),
    }
    with directory.open(1, ttl_s=1):
        clock.advance(1)
        looks[look]()
        assert len(overdue_lines(caplog)) == 1
        for again in looks.values():
            again()
        assert len(overdue_lines(caplog)) == 1
        assert overdue_lines(caplog)[0].endswith("a purge may take the file; its reader can read on")


def test_one_that_is_given_back_in_time_is_not_reported(directory, clock, caplog):
    directory.open(1, ttl_s=1).close()
    clock.advance(2)
    assert directory.purge(keep=1) == [1, 2]
    assert overdue_lines(caplog) == []


def test_the_end_of_one_lease_leaves_the_other_of_the_same_file(directory, clock):
    with directory.open(1, ttl_s=1), directory.open(1, ttl_s=100):
        clock.advance(1)
        assert directory.purge(keep=1) == [2]
        clock.advance(99)
        assert directory.purge(keep=1) == [1]


def test_another_process_cannot_take_it_before_and_can_after(directory, clock):
    script = """
    with SnapshotDir(sys.argv[1]) as directory:
        for line in sys.stdin:
            say(*directory.purge(keep=1), "gone")
    """
    with Process(script, directory.path) as other, directory.open(1, ttl_s=60) as snapshot:
        other.say("purge")
        assert other.hear() == "2 gone"
        clock.advance(60)
        assert len(directory.leases()) == 1
        other.say("purge")
        assert other.hear() == "1 gone"
        snapshot.verify()
        other.finish()


def test_a_lease_dies_with_its_process(directory):
    script = """
    stored = SnapshotDir(sys.argv[1]).open(1)
    say("held")
    sys.stdin.read()
    """
    with Process(script, directory.path) as other:
        assert other.hear() == "held"
        assert directory.purge(keep=1) == [2]
        other.kill()
        other.wait(WAIT_S)
        assert directory.purge(keep=1) == [1]


# The forgotten.


def test_a_dropped_snapshot_names_its_holder_and_is_closed(directory):
    before = descriptors()
    snapshot = directory.open(1, owner="applier")
    line = here() - 1
    with pytest.warns(ResourceWarning, match=f"unclosed .* held by 'applier', taken at .*:{line} in "):
        del snapshot
    assert (descriptors(), directory.leases()) == (before, [])


def test_a_dropped_stream_of_a_stored_snapshot_names_its_holder(directory):
    stream = SnapshotStream(META, directory.open(1, owner="sender"))
    with pytest.warns(ResourceWarning, match="unclosed <SnapshotStream .* held by 'sender', taken at"):
        del stream
    assert directory.leases() == []


def test_who_closes_the_image_alone_holds_nothing_and_leaves_nothing(directory):
    before = descriptors()
    snapshot = directory.open(1)
    snapshot.image().close()
    assert directory.purge(keep=1) == [1, 2]
    del snapshot
    assert (descriptors(), directory.leases()) == (before, [])


def test_a_lease_that_ends_in_the_middle_of_a_look_is_let_go_once(directory, clock):
    """A finalizer may close what is just being looked at; then the number may be another file's."""
    with directory.open(1, ttl_s=1) as snapshot:
        clock.advance(1)
        report = snapshot.lease.report

        def closing(consequence):
            report(consequence)
            snapshot.close()
            reopened.append(os.open(directory.path / "lock", os.O_RDWR | os.O_CREAT))
            fcntl.flock(reopened[0], fcntl.LOCK_EX)

        reopened = []
        snapshot.lease.report = closing
        directory.leases()
        with open(directory.path / "lock", "rb") as other, pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(reopened[0])
    os.unlink(directory.path / "lock")


def test_many_threads_take_and_give_back_while_all_is_overdue_and_nothing_is_lost(directory, clock):
    def take_and_give_back():
        for turn in range(60):
            with directory.open(1 + turn % 2, verify=False, ttl_s=1):
                clock.advance(1)
                directory.leases()

    threads = [threading.Thread(target=take_and_give_back) for _ in range(4)]
    with nothing_left(directory.path), directory.open(3):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT_S)
        assert not any(thread.is_alive() for thread in threads)
        with open(directory.get_snap_file_path(3), "rb") as other, pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert directory.leases() == []


def test_what_a_lease_costs_may_be_unknown():
    lease = Lease(Kind.PIN, 7, owner="x", ttl_s=1, monotonic=lambda: 0.0, cost=lambda: None)
    assert str(lease).startswith("snapshot 7 (pin) held for 0 s by 'x', taken at ")
    assert lease.to_json()["bytes_held"] is None


# What a server tells.


def test_a_server_tells_which_peer_it_holds_a_snapshot_for(follower):
    follower.directory.save_from(bytes(1 << 25), 9)
    with RawPeer(follower.url) as slow:
        slow.say(b"GET /v1/snapshots/9 HTTP/1.1\r\nHost: x\r\n\r\n")
        host, port = slow.socket.getsockname()
        wait_until(follower.directory.leases)
        with RawPeer(follower.url) as asking:
            asking.say(b"GET /v1/leases HTTP/1.1\r\nHost: x\r\n\r\n")
            (told,) = json.loads(asking.hear("GET")[2])["leases"]
        assert (told["kind"], told["index"], told["owner"]) == ("stored", 9, f"{host}:{port}")
        assert "/snapstore/transport/" in told["taken_at"]
    wait_until(lambda: not follower.directory.leases())
