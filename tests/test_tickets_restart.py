"""Where a node starts from, whatever a kill or a power cut has left of it."""

import pytest

from nodes import WAIT_S
from snapstore.errors import SnapshotNotFound
from ticket_nodes import Cluster

#: PySyncObj leaves the files that it sends from to the collector.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")


@pytest.fixture
def cluster(tmp_path, nothing_lost):
    """Three members with some entries: a:1 leads, b:2 and c:3 follow."""
    with Cluster(tmp_path) as cluster:
        cluster.begin()
        cluster.fill()
        cluster.settle()
        yield cluster


def damage(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_a_node_starts_from_its_snapshot_and_its_journal(cluster):
    leader = cluster.leader
    cluster.compact(cluster.members["b:2"])
    cluster.fill()
    cluster.settle()
    cluster.stop("b:2")
    follower = cluster.start("b:2")
    assert follower.content[b"count"] == b"5"  # As of the snapshot; the journal comes with the first tick.
    cluster.settle()
    assert follower.content == leader.content
    assert follower.content[b"count"] == b"10"


def test_a_node_without_a_dump_starts_with_an_empty_kv_and_its_journal(cluster):
    cluster.stop("b:2")
    follower = cluster.start("b:2")
    assert follower.content == {}
    cluster.settle()
    assert follower.content == cluster.leader.content


def test_a_ticket_of_another_life_is_forgotten(cluster):
    follower = cluster.members["b:2"]
    cluster.compact(follower)
    cluster.stop("b:2")
    for name in ("dump", "journal", "journal.meta"):
        (follower.path / name).unlink()
    follower = cluster.start("b:2")
    assert follower.content == {}
    assert not (follower.path / "dump.own").exists()
    cluster.settle()
    assert follower.content == cluster.leader.content


def test_a_broken_snapshot_is_replaced_by_a_peers_at_the_start(cluster, caplog):
    leader, follower = cluster.leader, cluster.members["b:2"]
    cluster.compact(follower)
    (index,) = follower.indexes
    cluster.fill()
    cluster.compact(leader)
    damage(follower.directory.get_snap_file_path(index))
    cluster.stop("b:2")
    with pytest.raises(SnapshotNotFound, match="none of 0 peers gave one"):
        cluster.start("b:2")
    follower = cluster.start("b:2", peers=[cluster.members["c:3"].server.url, leader.server.url])
    assert "has nothing as new as" in caplog.text
    assert follower.indexes == [leader.ticket.index]
    cluster.settle()
    assert follower.content == leader.content


def test_a_node_that_was_killed_while_it_fetched_starts_from_what_it_had(cluster):
    leader, follower = cluster.leader, cluster.members["b:2"]
    cluster.compact(follower)
    (index,) = follower.indexes
    cluster.stop("b:2")
    # PySyncObj has put the leader's ticket in place, and no byte has come.
    cluster.fill()
    cluster.compact(leader)
    (follower.path / "dump").write_bytes(leader.ticket.to_bytes())
    follower = cluster.start("b:2")
    assert follower.ticket.index == index
    cluster.settle()
    assert follower.content == leader.content


def test_a_new_node_that_was_killed_while_it_fetched_begins_again(cluster):
    leader = cluster.leader
    cluster.lose("b:2")
    cluster.compact(leader)
    path = cluster.path_of("b:2")
    path.mkdir()
    (path / "dump").write_bytes(leader.ticket.to_bytes())
    follower = cluster.start("b:2")
    assert follower.content == {}
    cluster.settle()
    assert follower.content == leader.content


@pytest.mark.parametrize("left", [b"", b"{}", b"\0" * 300])
def test_a_dump_file_that_a_power_cut_left_is_made_anew(cluster, left, caplog):
    leader, follower = cluster.leader, cluster.members["b:2"]
    cluster.compact(follower)
    cluster.stop("b:2")
    (follower.path / "dump").write_bytes(left)
    follower = cluster.start("b:2")
    assert "no ticket of snapstore's" in caplog.text
    assert follower.ticket.url == follower.server.url
    cluster.settle()
    assert follower.content == leader.content


# What a kill leaves.


def start_alone(cluster, name):
    """Start it again where nobody can tell it anything, and load what it has; the last entry of its log."""
    cluster.network.cut.add(name)
    follower = cluster.start(name)
    cluster.tick()
    return follower, follower.node._SyncObj__raftLog[-1][1]


def join_again(cluster, follower):
    cluster.network.cut.clear()
    cluster.settle()
    assert follower.content == cluster.leader.content


def test_a_kill_between_the_ticket_and_the_shorter_log_costs_no_entry(cluster):
    follower = cluster.members["b:2"]
    placed = follower.applied
    # PySyncObj did not begin this dump, and so leaves its log as it is.
    before, last = follower.node._SyncObj__raftLog[-2:]
    follower.dumps.serialize("unused", (last, before, set(follower.node.otherNodes)))
    cluster.until(lambda: follower.dumps._dump is None)
    assert follower.ticket.index == placed
    cluster.fill(3)
    cluster.settle()
    end = follower.applied
    cluster.stop("b:2")
    follower, last_index = start_alone(cluster, "b:2")
    assert last_index == end
    assert follower.node._getRaftLogSize() == end - placed + 2
    join_again(cluster, follower)


@pytest.mark.parametrize("renames", [0, 1, 2])
def test_a_kill_at_each_step_of_a_dump_of_its_own(cluster, renames):
    follower = cluster.members["b:2"]
    cluster.compact(follower)
    cluster.fill(3)
    cluster.settle()
    before, last = follower.node._SyncObj__raftLog[-2:]
    follower.dumps.serialize("unused", (last, before, set(follower.node.otherNodes)))
    ticket = follower.dumps._dump.result.result(WAIT_S)
    follower.dumps._dump = None
    for target, prepared in list(ticket.targets.items())[:renames]:
        prepared.rename(target)
    cluster.fill(3)
    cluster.settle()
    end = follower.applied
    cluster.stop("b:2")
    follower, last_index = start_alone(cluster, "b:2")
    assert last_index == end
    assert follower.ticket.index == (last[1] if renames else follower.indexes[0])
    assert sorted(path.name for path in follower.path.glob("dump*")) == ["dump", "dump.own"]
    join_again(cluster, follower)


@pytest.mark.parametrize("renames", [0, 1, 2])
def test_a_kill_at_each_step_of_going_on_from_a_leaders_snapshot(cluster, renames):
    leader, follower = cluster.leader, cluster.members["b:2"]
    cluster.compact(follower)
    cluster.network.cut.add("b:2")
    cluster.fill(3)
    cluster.compact(leader)
    saved = follower.dumps._redeemer._client.fetch(leader.server.url, leader.ticket.index, follower.directory)
    (follower.path / "dump").write_bytes(leader.ticket.to_bytes())  # As PySyncObj did.
    ticket = follower.dumps._saver.prepare(saved)
    for target, prepared in list(ticket.targets.items())[:renames]:
        prepared.rename(target)
    cluster.fill(3)
    cluster.stop("b:2")
    follower = cluster.start("b:2")
    assert follower.ticket.index == saved.index
    assert follower.ticket.url == follower.server.url
    with follower.places(saved) as kv, kv.env.begin() as txn:
        assert follower.content == dict(txn.cursor())
    join_again(cluster, follower)


def test_a_late_ticket_that_a_kill_left_is_not_what_a_node_starts_from(cluster):
    leader, follower = cluster.leader, cluster.members["b:2"]
    cluster.compact(leader)
    cluster.compact(follower)
    late = leader.ticket.to_bytes()
    cluster.fill(3)
    cluster.settle()
    cluster.compact(follower)
    own = follower.ticket
    cluster.fill(3)
    cluster.settle()
    end = follower.applied
    (follower.path / "dump").write_bytes(late)
    cluster.stop("b:2")
    follower, last_index = start_alone(cluster, "b:2")
    assert last_index == end
    assert follower.ticket.index == own.index
    join_again(cluster, follower)


def test_a_snapshot_of_another_term_is_not_what_a_leaders_ticket_is_for(cluster):
    follower = cluster.members["b:2"]
    cluster.compact(follower)
    ticket = follower.ticket
    cluster.stop("b:2")
    (follower.path / "dump").write_bytes(type(ticket)(ticket.url, ticket.index, 99, 1, "").to_bytes())
    (follower.path / "dump.own").unlink()
    journal = follower.path / "journal"
    for left in (journal, journal.with_name("journal.meta")):
        left.unlink()
    follower = cluster.start("b:2")
    assert follower.content == {}
    cluster.settle()
    assert follower.content == cluster.leader.content


def test_a_log_whose_beginning_is_lost_is_told_and_does_not_stand_still(cluster):
    follower = cluster.members["b:2"]
    cluster.compact(follower)
    cluster.stop("b:2")
    (follower.path / "dump").unlink()
    with pytest.raises(SnapshotNotFound, match="remove the journal"):
        cluster.start("b:2")
    (follower.path / "journal").unlink()
    follower = cluster.start("b:2")
    cluster.settle()
    assert follower.content == cluster.leader.content
