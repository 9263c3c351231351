"""PySyncObj with tickets: what a dump is, what becomes of a leader's, and where a node starts from."""

import logging
import threading

import lmdb
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pysyncobj import SERIALIZER_STATE
from pysyncobj.node import TCPNode

from nodes import META, WAIT_S
from snapstore.clock import SystemClock
from snapstore.errors import PeerRejected, SnapshotBusy, SnapshotNotFound
from snapstore.meta import META_DATA_SIZE_MAX
from snapstore.raft.pysyncobj import LmdbPlaces, Ticket, TicketDumps, TicketMalformed
from snapstore.raft.pysyncobj.ticket import pack_meta, unpack_meta
from snapstore.wire import Offer
from ticket_nodes import Cluster

#: PySyncObj leaves the files that it sends from to the collector.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")

TICKET = Ticket("http://127.0.0.1:4322", 42, 3, 65536, "crc32c:0e7ba8df")


@pytest.fixture
def cluster(tmp_path, nothing_lost):
    """Three members: a:1 leads, b:2 and c:3 follow."""
    with Cluster(tmp_path) as cluster:
        for name in cluster.names:
            cluster.start(name)
        cluster.lead()
        yield cluster


class HastyClock(SystemClock):
    """Seconds pass a hundred times as fast."""

    def monotonic(self):
        return 100 * super().monotonic()


def fill(cluster, count=5):
    """Write so many values, and count them where counting twice would show."""
    for number in range(count):
        cluster.call("put", b"key %d" % number, b"value %d" % number)
        cluster.call("add", b"count")


def damage(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


# A dump of its own.


def test_a_dump_is_a_ticket_for_a_snapshot_of_exactly_the_applied_entry(cluster):
    leader = cluster.leader
    fill(cluster)
    before, applied = leader.content, leader.applied
    cluster.compact(leader)
    assert leader.ticket.url == leader.server.url
    assert leader.ticket.index == applied
    assert leader.indexes == [applied]
    path = str(leader.directory.get_snap_file_path(applied))
    with lmdb.open(path, subdir=False, lock=False) as env, env.begin() as txn:
        assert dict(txn.cursor()) == before
    assert leader.node._getRaftLogSize() == 2


def test_nothing_is_compacted_before_it_is_saved_and_what_is_written_meanwhile_is_not_in_it(cluster):
    leader = cluster.leader
    fill(cluster)
    applied, size, go_on = leader.applied, leader.node._getRaftLogSize(), threading.Event()
    leader.dumps._clock.run_soon(lambda: go_on.wait(WAIT_S))  # Before the save, on the same thread.
    leader.node.forceLogCompaction()
    cluster.call("put", b"key 0", b"later")
    assert leader.node._getRaftLogSize() == size + 1
    go_on.set()
    cluster.until(lambda: leader.dumps._dump is None)
    with leader.directory.open(applied) as stored, leader.places(stored.saved) as kv, kv.env.begin() as txn:
        assert txn.get(b"key 0") == b"value 0"
    assert leader.content[b"key 0"] == b"later"


def test_the_log_stays_when_the_kv_cannot_be_saved_and_raft_goes_on(cluster, caplog):
    leader = cluster.leader
    fill(cluster)
    leader.directory.size_max = 1
    leader.node.forceLogCompaction()
    cluster.until(lambda: "Failed to store full dump" in caplog.text)
    assert "the KV was not saved, so the log stays" in caplog.text
    assert leader.indexes == []
    assert leader.node._getRaftLogSize() > 2
    fill(cluster)
    leader.directory.size_max = 2**40
    cluster.compact(leader)
    assert leader.indexes == [leader.ticket.index]


def test_a_kv_that_cannot_be_pinned_is_no_end_of_raft(cluster, caplog):
    leader = cluster.leader
    fill(cluster)
    with leader.dumps.kv.reading() as kv:
        kv.snapshot = None  # As broken as can be.
        leader.node.forceLogCompaction()
        cluster.until(lambda: "the KV was not saved" in caplog.text)
        del kv.snapshot
    fill(cluster)
    cluster.compact(leader)


def test_the_last_snapshots_are_kept_and_older_ones_go(cluster):
    leader = cluster.leader
    for _ in range(4):
        fill(cluster, 2)
        cluster.compact(leader)
    cluster.until(lambda: len(leader.indexes) == 2)
    assert leader.indexes[-1] == leader.ticket.index


def test_a_second_dump_of_the_same_entry_takes_what_is_stored(cluster):
    leader = cluster.leader
    fill(cluster)
    cluster.compact(leader)
    (index,) = leader.indexes
    before = leader.directory.stat(index)
    leader.dumps.serialize("unused", ((b"", index, 1), (b"", index - 1, 1), set()))
    cluster.until(lambda: leader.dumps._dump is None)
    assert leader.directory.stat(index) == before


def test_a_broken_one_in_the_way_of_a_dump_goes_out_of_it(cluster):
    leader = cluster.leader
    fill(cluster)
    cluster.compact(leader)
    (index,) = leader.indexes
    (leader.path / "snapshots" / f"{index:016x}.json").unlink()
    leader.dumps.serialize("unused", ((b"", index, 1), (b"", index - 1, 1), set()))
    cluster.until(lambda: leader.dumps._dump is None)
    assert leader.directory.verify(index).problem is None


def test_commands_that_are_too_large_to_be_carried_are_told(cluster, caplog):
    dumps = cluster.leader.dumps
    huge = (bytes(META_DATA_SIZE_MAX), 7, 1)
    dumps.serialize("unused", (huge, (b"", 6, 1), set()))
    assert dumps.check() == SERIALIZER_STATE.SERIALIZING
    assert "will do when smaller ones were applied" in caplog.text
    cluster.until(lambda: dumps._dump is None)


# A leader's.


def test_a_node_that_comes_with_nothing_is_handed_a_snapshot_and_catches_up(cluster, caplog):
    leader = cluster.leader
    fill(cluster)
    cluster.lose("b:2")
    cluster.compact(leader)
    term = leader.node.raftCurrentTerm
    follower = cluster.start("b:2")
    fill(cluster)
    cluster.settle()
    assert follower.content == leader.content
    assert follower.content[b"count"] == b"10"
    assert follower.indexes == [leader.ticket.index] == [follower.ticket.index]
    assert follower.ticket.url == follower.server.url, "whom it leads next must not be sent elsewhere"
    assert follower.node.raftCurrentTerm == term, "there was an election"
    assert "failed to load full dump" not in caplog.text


def test_a_node_that_fell_behind_has_its_kv_replaced_while_it_is_read(cluster):
    leader, follower = cluster.leader, cluster.members["b:2"]
    fill(cluster)
    cluster.settle()
    cluster.network.cut.add("b:2")
    fill(cluster)
    cluster.compact(leader)
    with follower.dumps.kv.reading() as kv, kv.env.begin() as txn:
        cluster.network.cut.clear()
        cluster.settle()
        assert txn.get(b"count") == b"5"
    assert follower.content == leader.content
    cluster.until(lambda: len(list((follower.path / "kv").iterdir())) == 1)


def test_a_follower_goes_on_when_its_leaders_server_is_back(cluster, caplog):
    leader = cluster.leader
    fill(cluster)
    cluster.lose("b:2")
    cluster.compact(leader)
    address = str(leader.server.address)
    leader.server.close()
    follower = cluster.start("b:2")
    cluster.until(lambda: caplog.text.count("goes on in") >= 3)
    assert follower.applied < leader.ticket.index
    assert not (follower.path / "dump").exists(), "it would be told to whom this node leads"
    leader.serve(address)
    cluster.settle()
    assert follower.content == leader.content


def test_another_ticket_takes_the_place_of_one_that_is_on_its_way(cluster, caplog):
    leader = cluster.leader
    fill(cluster)
    cluster.lose("b:2")
    cluster.compact(leader)
    first, reached, go_on = leader.ticket, threading.Event(), threading.Event()

    def open_kv(places, saved):
        if saved is not None and saved.index == first.index:
            reached.set()
            assert go_on.wait(WAIT_S)
        return places(saved)

    follower = cluster.start("b:2", open_kv=open_kv)
    cluster.until(reached.is_set)
    cluster.network.cut.add("b:2")  # Else the log is kept for it.
    fill(cluster)
    cluster.compact(leader)
    cluster.network.cut.clear()
    with caplog.at_level(logging.INFO):
        cluster.until(lambda: "is given up: there is another ticket" in caplog.text)
    go_on.set()
    cluster.settle()
    assert leader.ticket.index > first.index
    assert follower.content == leader.content
    cluster.until(lambda: len(list((follower.path / "kv").iterdir())) == 1)


def test_the_log_is_kept_for_a_follower_that_fetches_and_compacted_when_it_has_caught_up(
    tmp_path, nothing_lost
):
    with Cluster(tmp_path) as cluster, HastyClock() as clock:
        for name in cluster.names:
            cluster.start(name, clock=clock)
        keep_and_compact(cluster, clock)


def keep_and_compact(cluster, clock):
    leader = cluster.lead()
    fill(cluster)
    cluster.lose("b:2")
    cluster.compact(leader)
    reached, go_on = threading.Event(), threading.Event()

    def open_kv(places, saved):
        if saved is not None:
            reached.set()
            assert go_on.wait(WAIT_S)
        return places(saved)

    leader.conf.logCompactionMinEntries = 6
    leader.dumps.attach(leader.node)  # With that setting.
    follower = cluster.start("b:2", open_kv=open_kv)
    cluster.until(reached.is_set)
    first = leader.ticket.index
    fill(cluster, 10)
    assert leader.ticket.index == first, "compacted under a follower that fetches"
    go_on.set()
    cluster.settle()
    assert follower.content == leader.content
    assert follower.indexes == [first], "a second snapshot was needed"
    cluster.until(lambda: leader.ticket.index > first)


def test_the_log_is_not_kept_longer_than_the_limits(tmp_path, nothing_lost):
    with Cluster(tmp_path) as cluster:
        for name in cluster.names:
            cluster.start(name, held_entries_max=30)
        leader = cluster.lead()
        fill(cluster)
        cluster.compact(leader)
        cluster.lose("b:2")
        leader.conf.logCompactionMinEntries = 4
        leader.dumps.attach(leader.node)
        hold = threading.Event()
        reached = threading.Event()

        def open_kv(places, saved):
            if saved is not None:
                reached.set()
                assert hold.wait(WAIT_S)
            return places(saved)

        cluster.start("b:2", open_kv=open_kv, held_entries_max=30)
        cluster.until(reached.is_set)
        first = leader.ticket.index
        fill(cluster, 20)
        cluster.until(lambda: leader.ticket.index > first)
        assert leader.ticket.index - first >= 28
        hold.set()
        cluster.settle()


def test_a_log_that_goes_beyond_the_leaders_snapshot_waits_for_it(cluster):
    leader, follower = cluster.leader, cluster.members["b:2"]
    fill(cluster)
    cluster.settle()
    cluster.compact(leader)
    beyond = leader.ticket.index + 1
    assert follower.node._getRaftLogSize() >= leader.ticket.index
    assert not follower.dumps._is_conflict(leader.ticket)
    fill(cluster)
    cluster.settle()
    assert follower.applied > beyond
    assert follower.dumps._is_conflict(leader.ticket)


def test_a_dump_of_its_own_is_forgotten_when_the_leaders_snapshot_was_quicker(cluster):
    leader, follower = cluster.leader, cluster.members["b:2"]
    fill(cluster)
    cluster.settle()
    go_on = threading.Event()
    follower.dumps._clock.run_soon(lambda: go_on.wait(WAIT_S))
    follower.node.forceLogCompaction()
    cluster.until(lambda: follower.dumps._dump is not None)
    cluster.network.cut.add("b:2")
    fill(cluster)
    cluster.compact(leader)
    cluster.network.cut.clear()
    cluster.settle()
    go_on.set()
    cluster.until(lambda: follower.dumps._dump is None)
    assert follower.ticket.index == leader.ticket.index
    assert follower.content == leader.content
    assert sorted(path.name for path in follower.path.glob("dump*")) == ["dump", "dump.own"]


def test_a_leader_with_dumps_of_its_own_kind_is_told_from_one_with_tickets(cluster, caplog):
    follower = cluster.members["b:2"]
    (follower.path / "dump").write_bytes(b"\x1f\x8b a pickle, zipped")
    with pytest.raises(TicketMalformed, match="no ticket of snapstore's"):
        follower.dumps.deserialize("unused")
    assert not (follower.path / "dump").exists()


# Where a node starts from.


def test_a_node_starts_from_its_snapshot_and_its_journal(cluster):
    leader = cluster.leader
    fill(cluster)
    cluster.settle()
    cluster.compact(cluster.members["b:2"])
    fill(cluster)
    cluster.settle()
    cluster.stop("b:2")
    follower = cluster.start("b:2")
    assert follower.content[b"count"] == b"5"  # As of the snapshot; the journal comes with the first tick.
    cluster.settle()
    assert follower.content == leader.content
    assert follower.content[b"count"] == b"10"


def test_a_node_without_a_dump_starts_with_an_empty_kv_and_its_journal(cluster):
    fill(cluster)
    cluster.settle()
    cluster.stop("b:2")
    follower = cluster.start("b:2")
    assert follower.content == {}
    cluster.settle()
    assert follower.content == cluster.leader.content


def test_a_broken_snapshot_is_replaced_by_a_peers_at_the_start(cluster, caplog):
    leader, follower = cluster.leader, cluster.members["b:2"]
    fill(cluster)
    cluster.settle()
    cluster.compact(follower)
    (index,) = follower.indexes
    fill(cluster)
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
    fill(cluster)
    cluster.settle()
    cluster.compact(follower)
    (index,) = follower.indexes
    cluster.stop("b:2")
    # PySyncObj has put the leader's ticket in place, and no byte has come.
    fill(cluster)
    cluster.compact(leader)
    (follower.path / "dump").write_bytes(leader.ticket.to_bytes())
    follower = cluster.start("b:2")
    assert follower.ticket.index == index
    cluster.settle()
    assert follower.content == leader.content


def test_a_new_node_that_was_killed_while_it_fetched_begins_again(cluster):
    leader = cluster.leader
    fill(cluster)
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
    fill(cluster)
    cluster.settle()
    cluster.compact(follower)
    cluster.stop("b:2")
    (follower.path / "dump").write_bytes(left)
    follower = cluster.start("b:2")
    assert "no ticket of snapstore's" in caplog.text
    assert follower.ticket.url == follower.server.url
    cluster.settle()
    assert follower.content == leader.content


def test_no_snapshot_is_pushed_to_such_a_node(cluster):
    with pytest.raises(PeerRejected, match="it takes none"):
        TicketDumps.refuse_offer(Offer(META, 1, 4096, "", 0))


# The ticket.


def test_a_ticket_reads_back_and_any_other_bytes_are_refused():
    data = TICKET.to_bytes()
    assert Ticket.from_bytes(data) == TICKET
    for at in range(len(data)):
        for bit in range(8):
            flipped = bytearray(data)
            flipped[at] ^= 1 << bit
            with pytest.raises(TicketMalformed):
                Ticket.from_bytes(bytes(flipped))


@given(data=st.binary() | st.sampled_from([b"[]", b'"x"', b"null", b'{"seal":1,"format":[]}']))
def test_no_bytes_make_a_ticket_raise_anything_else(data):
    with pytest.raises(TicketMalformed):
        Ticket.from_bytes(data)


@given(
    commands=st.tuples(st.binary(), st.binary()),
    index=st.integers(2, 2**63),
    terms=st.tuples(st.integers(0, 2**63), st.integers(0, 2**63)),
    ports=st.sets(st.integers(1, 65535)),
)
def test_what_pysyncobj_gave_it_gets_back(commands, index, terms, ports):
    last, before = (commands[0], index, terms[0]), (commands[1], index - 1, terms[1])
    members = {TCPNode(f"node:{port}") for port in ports}
    meta = pack_meta(last, before, [node.id for node in members])
    assert (meta.index, meta.term) == (index, terms[0])
    assert unpack_meta(meta, TCPNode) == (last, before, members)


def test_members_that_are_not_named_by_text_are_refused_before_anything_is_saved():
    with pytest.raises(TypeError, match="a member's id must be text"):
        pack_meta((b"", 2, 1), (b"", 1, 1), [7])


def test_a_snapshot_that_was_not_made_for_pysyncobj_is_told():
    with pytest.raises(ValueError, match="snapshot 7 was not made for PySyncObj"):
        unpack_meta(META, TCPNode)


# The places.


def test_places_belong_to_one_and_what_was_left_there_goes(tmp_path, nothing_lost):
    path = tmp_path / "kv"
    places = LmdbPlaces(path, map_size=1024**2)
    with pytest.raises(SnapshotBusy, match="another node that runs"):
        LmdbPlaces(path)
    kv = places(None)
    assert [place.name for place in path.iterdir()] == ["kv-00000001"]
    (path / "mine").mkdir()
    super(type(kv), kv).close()  # As a process ends that is killed: nothing is removed.
    places.close()
    LmdbPlaces(path).close()
    assert [place.name for place in path.iterdir()] == ["mine"]


def test_a_place_that_could_not_be_made_leaves_nothing(tmp_path, nothing_lost):
    places = LmdbPlaces(tmp_path, no_such_option=1)
    with pytest.raises(TypeError):
        places(None)
    assert list(tmp_path.iterdir()) == []
    places.close()
