"""Raft's own rules while a ticket is on its way: nothing is applied or counted that was not committed."""

import pickle
import threading

import pytest
from pysyncobj.node import TCPNode

from nodes import WAIT_S
from snapstore.raft.pysyncobj import TicketMalformed
from snapstore.raft.workers import SendThreads
from ticket_nodes import Cluster, Gate

#: PySyncObj leaves the files that it sends from to the collector.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")


@pytest.fixture
def cluster(tmp_path, nothing_lost):
    """Three members: a:1 leads, b:2 and c:3 follow."""
    with Cluster(tmp_path) as cluster:
        cluster.begin()
        cluster.fill(5)
        cluster.settle()
        yield cluster


@pytest.fixture
def deposed(tmp_path, nothing_lost):
    """a:1 led, and was cut off with 20 entries of its own; b:2 leads. `old` may not finish a fetch yet."""
    gate = Gate()
    with Cluster(tmp_path) as cluster:
        for name in cluster.names:
            cluster.start(name, **({"open_kv": gate} if name == "a:1" else {}))
        old = cluster.lead()
        cluster.fill(5)
        cluster.settle()
        cluster.network.cut.add("a:1")
        results, size = [], old.node._getRaftLogSize()
        for _ in range(20):
            old.node.put(b"lost", b"", callback=lambda _result, error: results.append(error))
        cluster.until(lambda: old.node._getRaftLogSize() == size + 20)
        cluster.elect("b:2")
        yield cluster, old, gate, results
        gate.go_on.set()


@pytest.mark.parametrize("writes", [3, 20])
def test_what_a_deposed_leader_could_not_commit_is_never_applied(deposed, writes):
    cluster, old, gate, results = deposed
    cluster.fill(writes)  # Its log ends behind the snapshot that it is shown, or before it.
    cluster.compact(cluster.leader)
    cluster.network.cut.clear()
    cluster.until(gate.reached.is_set)
    cluster.tick_often()
    assert b"lost" not in old.content
    gate.go_on.set()
    cluster.settle()
    assert old.content == cluster.leader.content
    assert 0 not in results, "its clients were told that it was committed"


def test_nor_while_the_leader_makes_a_dump_and_has_nothing_to_send(deposed):
    cluster, old, _gate, results = deposed
    cluster.fill(20)
    leader = cluster.leader
    cluster.compact(leader)
    go_on, second = threading.Event(), leader.ticket.index + 4
    cluster.fill(2)
    leader.dumps._clock.run_soon(lambda: go_on.wait(WAIT_S))
    leader.node.forceLogCompaction()
    cluster.until(lambda: leader.dumps._dump is not None)
    cluster.network.cut.clear()
    cluster.tick_often()
    assert b"lost" not in old.content
    assert 0 not in results
    go_on.set()
    cluster.until(lambda: leader.ticket.index == second)


def test_what_a_node_says_of_its_log_is_not_counted_before_it_has_the_snapshot(deposed):
    cluster, old, gate, _results = deposed
    cluster.fill(3)
    leader = cluster.leader
    cluster.compact(leader)
    assert old.node._SyncObj__raftLog[-1][1] > leader.ticket.index + 1
    cluster.network.cut.clear()
    cluster.until(gate.reached.is_set)
    cluster.network.cut.add("c:3")
    errors = []
    leader.node.put(b"new", b"", callback=lambda _result, error: errors.append(error))
    cluster.tick_often()
    assert errors == [], "committed by one of three"
    gate.go_on.set()
    cluster.until(lambda: errors == [0])
    assert old.applied >= leader.ticket.index


def test_members_that_a_deposed_leader_added_are_none(deposed):
    cluster, old, gate, _results = deposed
    for member in cluster.members.values():
        member.conf.dynamicMembershipChange = True
    old.node.addNodeToCluster(TCPNode("d:4"))
    cluster.until(lambda: TCPNode("d:4") in old.node.otherNodes)
    cluster.fill(20)
    cluster.compact(cluster.leader)
    cluster.network.cut.clear()
    cluster.until(gate.reached.is_set)
    assert old.node.otherNodes == {TCPNode("b:2"), TCPNode("c:3")}
    gate.go_on.set()
    cluster.settle()
    assert old.node.otherNodes == {TCPNode("b:2"), TCPNode("c:3")}


def test_nor_is_anything_else_that_it_says_to_a_leader_without_tickets(deposed):
    _cluster, old, _gate, _results = deposed
    (old.path / "dump").write_bytes(b"\x1f\x8b a pickle, zipped")
    with pytest.raises(TicketMalformed):
        old.dumps.deserialize("unused")
    assert old.node._SyncObj__raftLog[-1][1] == old.node.raftCommitIndex


def show(cluster, follower, data):
    """Have the leader show `follower` a dump."""
    leader = cluster.leader
    message = {"type": "append_entries", "term": leader.node.raftCurrentTerm, "commit_index": leader.applied}
    line = cluster.network.lines[follower.name]
    line.take(leader.name, {**message, "serialized": (data, True, False)})
    line.take(leader.name, {**message, "serialized": (b"", False, True)})


@pytest.mark.parametrize("compacted", [False, True])
def test_a_ticket_that_is_late_sets_nothing_back(cluster, compacted):
    leader, follower = cluster.leader, cluster.members["b:2"]
    cluster.compact(leader)
    late = leader.ticket.to_bytes()
    cluster.fill(3)
    cluster.settle()
    if compacted:
        cluster.compact(follower)
    before = (follower.applied, follower.content, follower.node._getRaftLogSize())
    own = (follower.path / "dump").read_bytes() if compacted else None
    for _ in range(2):
        show(cluster, follower, late)
        assert (follower.path / "dump").exists() == compacted
    assert (follower.applied, follower.content, follower.node._getRaftLogSize()) == before
    if compacted:
        assert (follower.path / "dump").read_bytes() == own
    assert follower.dumps._redeemer._current is None
    cluster.fill(1)
    cluster.settle()
    assert follower.content == leader.content


def test_a_ticket_for_what_is_in_the_log_but_not_applied_is_not_redeemed(cluster):
    leader, follower = cluster.leader, cluster.members["b:2"]
    cluster.compact(leader)
    first = leader.ticket
    assert not follower.dumps._node.needs(first.index, first.term)
    assert follower.dumps._node.needs(first.index + 100, first.term)
    log = follower.node._SyncObj__raftLog
    log.add(b"\1", log[-1][1] + 1, 7)
    assert not follower.dumps._node.needs(log[-1][1], 7)
    assert follower.dumps._node.needs(log[-1][1], 8)
    log.deleteEntriesFrom(len(log) - 1)


def test_without_its_node_nothing_of_a_leader_is_taken(cluster):
    follower = cluster.members["b:2"]
    follower.dumps._node = None
    cluster.compact(cluster.leader)
    (follower.path / "dump").write_bytes(cluster.leader.ticket.to_bytes())
    with pytest.raises(RuntimeError, match="attach them to it"):
        follower.dumps.deserialize("unused")


class Recorded:
    """A KV that tells on which thread it was closed, and whether it still is there."""

    def __init__(self, places, saved, closed):
        self._kv, self._closed = places(saved), closed

    def __getattr__(self, name):
        return getattr(self._kv, name)

    def close(self):
        self._closed.append(threading.current_thread())
        self._kv.close()


@pytest.fixture
def fetched(cluster):
    """b:2 has a leader's snapshot ready as a KV, and has not been asked for it; which threads closed it."""
    closed = []
    cluster.lose("b:2")
    cluster.compact(cluster.leader)
    follower = cluster.start("b:2", open_kv=lambda places, saved: Recorded(places, saved, closed))
    cluster.until(lambda: follower.dumps._redeemer._current is not None)
    current = follower.dumps._redeemer._current
    cluster.network.cut.add("b:2")
    cluster.until(lambda: current._redeemed is not None)
    return follower, current, closed


def test_a_kv_that_nobody_wants_is_not_closed_by_raft(cluster, fetched):
    follower, current, closed = fetched
    cluster.fill(3)
    cluster.compact(cluster.leader)
    cluster.network.cut.clear()
    cluster.settle()
    assert current.ended.wait(WAIT_S)
    assert threading.current_thread() not in closed
    assert closed
    assert follower.content == cluster.leader.content
    cluster.until(lambda: len(list((follower.path / "kv").iterdir())) == 1)


def test_what_is_fetched_is_given_up_when_the_log_was_quicker(cluster, fetched):
    follower, current, closed = fetched
    cluster.elect("c:3")  # Its log goes back to the first entry.
    cluster.network.cut.clear()
    cluster.settle()
    assert current.ended.wait(WAIT_S)
    assert len(closed) == 1
    assert follower.content == cluster.leader.content
    assert not (follower.path / "dump").exists()
    assert [path.name for path in follower.path.glob("dump*")] == []


class Exhausted(SendThreads):
    """The system has no thread left, twice."""

    def __init__(self):
        self.refusals = 2

    def submit(self, call, /, *args):
        if self.refusals:
            self.refusals -= 1
            raise RuntimeError("can't start new thread")
        super().submit(call, *args)


def test_a_fetch_that_had_no_thread_begins_later(cluster):
    cluster.lose("b:2")
    cluster.compact(cluster.leader)
    workers = Exhausted()
    follower = cluster.start("b:2", workers=workers)
    cluster.settle()
    assert workers.refusals == 0
    assert follower.content == cluster.leader.content


def test_the_snapshot_behind_the_dump_file_stays_whatever_is_fetched(cluster):
    leader = cluster.leader
    cluster.stop("b:2")
    follower = cluster.start("b:2", keep=1)
    cluster.settle()
    cluster.compact(follower)
    (first,) = follower.indexes
    for _ in range(2):
        cluster.fill(1)
        cluster.compact(leader)
        follower.dumps._redeemer._client.fetch(leader.server.url, leader.ticket.index, follower.directory)
    follower.dumps._saver.settle(first)
    assert follower.indexes == [first, leader.ticket.index]
    cluster.compact(follower)
    cluster.until(lambda: first not in follower.indexes)


def append(cluster, follower, at, entries):
    """Have the leader send `entries` to `follower`, for behind place `at` of that one's log."""
    leader = cluster.leader
    _command, index, term = follower.node._SyncObj__raftLog[at]
    message = {
        "type": "append_entries",
        "term": leader.node.raftCurrentTerm,
        "commit_index": leader.applied,
        "prevLogIdx": index,
        "prevLogTerm": term,
    }
    cluster.network.lines[follower.name].take(leader.name, {**message, **entries})


@pytest.mark.parametrize("elected", [False, True])
@pytest.mark.parametrize("count", [0, 1, 3])
def test_entries_that_come_twice_delete_nothing(cluster, caplog, elected, count):
    if elected:
        cluster.elect("c:3")  # Nothing is here from this leader yet.
    follower = cluster.members["b:2"]
    log = follower.node._SyncObj__raftLog
    before = log[:]
    append(cluster, follower, -4, {"entries": before[-3:][:count]})
    assert log[:] == before
    new = (b"\1", before[-1][1] + 1, before[-1][2])
    append(cluster, follower, -4, {"entries": [*before[-3:], new]})
    assert log[:] == [*before, new]
    assert not [record for record in caplog.records if record.levelname == "CRITICAL"]
    log.deleteEntriesFrom(len(before))


def test_a_leader_that_has_nothing_where_this_one_goes_on_is_heard(cluster):
    """PySyncObj then names no entry before, and its follower says where it stands."""
    follower = cluster.members["b:2"]
    before = follower.node._SyncObj__raftLog[:]
    append(cluster, follower, -1, {"prevLogIdx": None, "prevLogTerm": None, "entries": []})
    assert follower.node._SyncObj__raftLog[:] == before
    cluster.fill(1)
    cluster.settle()
    assert follower.content == cluster.leader.content


def test_nor_does_a_large_entry_that_comes_twice(cluster):
    leader, follower = cluster.leader, cluster.members["b:2"]
    cluster.call("put", b"large", bytes(2 * leader.conf.appendEntriesBatchSizeBytes))
    cluster.fill(1)
    cluster.settle()
    before, applied = follower.node._SyncObj__raftLog[:], follower.applied
    (at,) = (at for at, entry in enumerate(before) if len(entry[0]) > leader.conf.appendEntriesBatchSizeBytes)
    large = pickle.dumps(before[at])
    for part, data in (("start", large[:9]), ("process", large[9:99]), ("finish", large[99:])):
        append(cluster, follower, at - 1, {"transmission": part, "data": data})
        assert follower.node._SyncObj__raftLog[:] == before
    cluster.fill(1)
    cluster.settle()
    assert follower.applied > applied
    assert follower.content == leader.content


def test_what_a_deposed_leader_has_beyond_the_others_is_deleted_all_the_same(deposed):
    cluster, old, gate, results = deposed
    gate.go_on.set()
    cluster.fill(2)
    cluster.network.cut.clear()
    cluster.settle()
    assert old.node._SyncObj__raftLog[:] == cluster.leader.node._SyncObj__raftLog[:]
    assert old.content == cluster.leader.content
    assert 0 not in results


def test_entries_that_differ_where_they_must_not_are_told_of(cluster, caplog):
    leader, follower = cluster.leader, cluster.members["b:2"]
    log = follower.node._SyncObj__raftLog
    before = log[:]
    other = (b"\1", before[-2][1], before[-2][2] + 1)
    follower.node._SyncObj__raftCurrentTerm = leader.node._SyncObj__raftCurrentTerm = before[-2][2] + 1
    append(cluster, follower, -3, {"entries": [other]})
    assert [record.levelname for record in caplog.records] == ["CRITICAL"]
    assert log[:] == [*before[:-2], other]
