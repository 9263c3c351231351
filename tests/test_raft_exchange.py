"""The exchange as a whole: two nodes on threads of their own, over real sockets, with real files."""

from __future__ import annotations

import threading

import pytest

from cutting_line import CuttingLine
from nodes import WAIT_S, wait_until
from raft_members import RunningMember
from snapstore.clock import SystemClock
from snapstore.raft import RetryPolicy
from snapstore.store import State


class Cluster:
    """A leader and a follower that has nothing, each on its own thread, over real sockets."""

    def __init__(self, path, *, padding=0, retry=None):
        self.members = {}
        self.clock = SystemClock()
        self.leader = RunningMember(
            1, path / "1", self.members, clock=self.clock, retry=retry, padding=padding, listens=False
        )
        self.follower = RunningMember(2, path / "2", self.members, clock=self.clock)
        self.leader.urls[2] = self.follower.server.url
        del self.members[2]  # Nothing reaches the follower until the log is compacted.
        self.leader.do(lambda member: member.node.campaign())
        for number in range(20):
            self.leader.do(lambda member, number=number: member.node.propose(b"%d" % number))
        self.leader.until(lambda member: member.kv.applied == 21)
        self.leader.ask(lambda member: member.compact(21))
        self.members[2] = self.follower

    def beat(self):
        self.leader.do(lambda member: member.node.tick())

    def lend(self):
        """Have the follower ask, and the snapshot made; the next heartbeat sends it."""
        self.beat()
        wait_until(lambda: self.leader.member.store.state is State.READY)
        self.beat()

    def is_reported(self, finished):
        self.leader.until(lambda member: (2, finished) in member.reports)

    def is_equal(self):
        self.beat()
        last = self.leader.ask(lambda member: member.kv.entries)
        self.follower.until(lambda member: member.kv.entries == last)

    def close(self):
        self.leader.close()
        self.follower.close()
        self.clock.close()


@pytest.fixture
def cluster(nothing_lost, tmp_path):
    clusters = []

    def make(**options):
        clusters.append(Cluster(tmp_path, **options))
        return clusters[-1]

    yield make
    for made in clusters:
        made.close()
        assert made.leader.member.slot._tenure is None


QUICK = RetryPolicy(delay_s_first=0.01, delay_s_max=0.02)


def test_follower_that_has_nothing_catches_up(cluster):
    pair = cluster()
    pair.lend()
    pair.is_reported(True)
    pair.leader.do(lambda member: member.node.propose(b"after"))
    pair.is_equal()
    assert pair.leader.ask(lambda member: member.reports) == [(2, True)]
    assert [saved.index for saved in pair.follower.directory.list()] == [21]
    wait_until(lambda: pair.leader.member.store.state is State.EMPTY)


def test_cut_transfer_goes_on_where_it_was(cluster):
    padding = 24 * 1024 * 1024
    pair = cluster(padding=padding, retry=QUICK)
    with CuttingLine(pair.follower.server.url) as line:
        pair.leader.urls[2] = line.url
        line.cut_after(padding // 2)
        passed = []
        pair.leader.client.send_snapshot = resending(pair.leader.client, line, passed)
        pair.lend()
        pair.is_reported(True)
        pair.is_equal()
    assert len(passed) == 2
    assert 0 < line.passed < padding, "the second attempt sent what was missing alone"
    assert pair.leader.ask(lambda member: member.kv.pins) == 1


def resending(client, line, passed):
    """The client's `send_snapshot`, which has the line whole again after its first attempt."""
    send = client.send_snapshot

    def resend(url, stream, **options):
        try:
            return send(url, stream, **options)
        finally:
            passed.append(line.passed)
            if len(passed) == 1:
                line.cut_after(None)

    return resend


def test_snapshot_that_was_saved_and_not_stepped_is_stepped_when_it_comes_again(cluster):
    pair = cluster(retry=QUICK)
    refusals = [OSError("killed after its last fsync")]
    stored = []
    step = pair.follower.member.rraft.step_snapshot

    def step_second(message, meta):
        stored.append(pair.follower.directory.confirm(meta.index).problem)
        if refusals:
            raise refusals.pop()
        step(message, meta)

    pair.follower.member.step_snapshot = step_second
    pair.lend()
    pair.is_reported(True)
    pair.is_equal()
    assert stored == [None, None], "each time it was there, as a whole, before the engine heard of it"


def test_closing_a_leader_in_the_middle_of_a_transfer(cluster):
    pair = cluster()
    began, go_on = threading.Event(), threading.Event()
    send = pair.leader.client.send_snapshot

    def held(url, stream, **options):
        began.set()
        assert go_on.wait(WAIT_S)
        return send(url, stream, **options)

    pair.leader.client.send_snapshot = held
    pair.lend()
    assert began.wait(WAIT_S)
    reports = pair.leader.member.reports
    pair.leader._ending = True
    pair.leader.wake()
    wait_until(lambda: reports)
    go_on.set()
    pair.leader._thread.join()
    assert reports == [(2, False)]
    assert [saved.index for saved in pair.follower.directory.list()] == []
