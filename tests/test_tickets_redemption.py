"""Tickets redeemed from a real server: what it is that is taken, and what becomes of what is not."""

import threading
from dataclasses import replace
from types import SimpleNamespace

import pytest

from nodes import WAIT_S, wait_until
from snapstore.directory import SnapshotDir
from snapstore.errors import SnapshotTemporarilyUnavailable
from snapstore.meta import SnapshotMeta
from snapstore.raft import RetryPolicy
from snapstore.raft.pysyncobj import Ticket
from snapstore.raft.pysyncobj.redemption import Redeemer
from snapstore.raft.workers import SendThreads
from snapstore.transport.http import SnapshotClient, SnapshotServer

RETRY = RetryPolicy(delay_s_first=0.01, delay_s_max=0.05)


class Closed:
    """What is to be closed, and whether it was; a ticket that is prepared, too."""

    def __init__(self):
        self.closed = threading.Event()

    def close(self):
        self.closed.set()

    discard = close


@pytest.fixture
def leader(tmp_path, nothing_lost):
    """A leader with a snapshot of entry 7, of term 3; `ticket` is for it."""
    with SnapshotDir(tmp_path / "leader") as directory, SnapshotServer(directory, "127.0.0.1:0") as server:
        saved = directory.save_from(b"content", SnapshotMeta(7, 3))
        yield SimpleNamespace(directory=directory, ticket=Ticket.for_saved(saved, server.url))


@pytest.fixture
def follower(tmp_path, leader):
    """A follower's directory and redeemer, with what it made: KVs and tickets."""
    made = SimpleNamespace(kvs=[], tickets=[])

    def make(things):
        things.append(Closed())
        return things[-1]

    with SnapshotDir(tmp_path / "follower") as directory:
        redeemer = Redeemer(
            directory,
            lambda _saved: made.open_kv(),
            SnapshotClient(),
            lambda _saved: make(made.tickets),
            retry=RETRY,
            workers=SendThreads(),
        )
        made.open_kv = lambda: make(made.kvs)
        made.directory, made.redeemer = directory, redeemer
        yield made
        redeemer.close()


def redeemed(follower, ticket):
    """Ask for it as raft does, until it is there."""
    found = []

    def is_there():
        try:
            found.append(follower.redeemer.redeem(ticket))
        except SnapshotTemporarilyUnavailable:
            return False
        return True

    wait_until(is_there, WAIT_S)
    return found[0]


def refused(follower, ticket, caplog, words):
    with pytest.raises(SnapshotTemporarilyUnavailable):
        follower.redeemer.redeem(ticket)
    wait_until(lambda: caplog.text.count(words) > 1, WAIT_S)
    assert follower.kvs == []


def test_a_ticket_is_redeemed_once_and_what_it_gave_is_the_callers(leader, follower):
    got = redeemed(follower, leader.ticket)
    assert got.saved.index == 7
    assert got.kv is follower.kvs[0]
    follower.redeemer.close()
    assert not got.kv.closed.is_set()
    assert len(follower.kvs) == len(follower.tickets) == 1


def test_another_snapshot_of_the_same_index_is_not_taken(leader, follower, caplog):
    refused(follower, replace(leader.ticket, digest="crc32c:00000000"), caplog, "has another snapshot 7")
    assert list(follower.directory.list()) == []


def test_one_of_another_term_that_is_here_is_not_taken(leader, follower, caplog):
    follower.directory.save_from(b"other content", SnapshotMeta(7, 2))
    refused(follower, leader.ticket, caplog, "is of term 2, the leader's of term 3")


def test_a_kv_that_cannot_be_opened_leaves_no_ticket_and_is_tried_again(leader, follower):
    failures = [OSError("no room"), OSError("no room")]
    make = follower.open_kv

    def open_kv():
        if failures:
            raise failures.pop()
        return make()

    follower.open_kv = open_kv
    got = redeemed(follower, leader.ticket)
    assert [ticket.closed.is_set() for ticket in follower.tickets] == [True, True, False]
    assert got.ticket is follower.tickets[-1]


def test_close_waits_for_what_is_under_way_and_closes_it(leader, follower):
    reached, go_on, make = threading.Event(), threading.Event(), follower.open_kv

    def open_kv():
        reached.set()
        assert go_on.wait(WAIT_S)
        return make()

    follower.open_kv = open_kv
    with pytest.raises(SnapshotTemporarilyUnavailable):
        follower.redeemer.redeem(leader.ticket)
    assert reached.wait(WAIT_S)
    current = follower.redeemer._current
    threading.Thread(target=lambda: current.over.wait(WAIT_S) and go_on.set()).start()
    follower.redeemer.close()
    assert follower.kvs[0].closed.is_set()
    assert follower.tickets[0].closed.is_set()
