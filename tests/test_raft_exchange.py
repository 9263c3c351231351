"""The exchange as a whole: two nodes on threads of their own, over real sockets, with real files."""

from __future__ import annotations

import threading

import pytest

from nodes import WAIT_S, wait_until
from raft_cluster import QUICK, Cluster
from snapstore.store import State


@pytest.fixture
def pair(nothing_lost, tmp_path):
    with Cluster(tmp_path, retry=QUICK) as cluster:
        yield cluster


def test_follower_that_has_nothing_catches_up(pair):
    pair.lend()
    pair.is_reported(True)
    pair.leader.do(lambda member: member.node.propose(b"after"))
    pair.is_equal()
    assert pair.leader.ask(lambda member: member.reports) == [(2, True)]
    assert [saved.index for saved in pair.follower.directory.list()] == [21]
    wait_until(lambda: pair.leader.member.store.state is State.EMPTY)


def test_snapshot_that_was_saved_and_not_stepped_is_stepped_when_it_comes_again(pair):
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


def test_closing_a_leader_in_the_middle_of_a_transfer(pair):
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
