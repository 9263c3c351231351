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
from snapstore.directory import SnapshotDir
from snapstore.errors import PeerRejected
from snapstore.meta import META_DATA_SIZE_MAX, SnapshotMeta
from snapstore.raft.pysyncobj import Ticket, TicketDumps, TicketMalformed
from snapstore.raft.pysyncobj.dump_file import DumpFile
from snapstore.raft.pysyncobj.own_dump import Saver
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
        cluster.begin()
        yield cluster


def again(member):
    """Begin the dump of the last entry once more, as after a kill."""
    before, last = member.node._SyncObj__raftLog[-2:]
    member.dumps.serialize("unused", (last, before, member.node.otherNodes | {member.node.selfNode}))


# A dump of its own.


def test_a_dump_is_a_ticket_for_a_snapshot_of_exactly_the_applied_entry(cluster):
    leader = cluster.leader
    cluster.fill()
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
    cluster.fill()
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
    cluster.fill()
    leader.directory.size_max = 1
    leader.node.forceLogCompaction()
    cluster.until(lambda: "Failed to store full dump" in caplog.text)
    assert "the KV was not saved, so the log stays" in caplog.text
    assert leader.indexes == []
    assert leader.node._getRaftLogSize() > 2
    cluster.fill()
    leader.directory.size_max = 2**40
    cluster.compact(leader)
    assert leader.indexes == [leader.ticket.index]


def test_a_kv_that_cannot_be_pinned_is_no_end_of_raft(cluster, caplog):
    leader = cluster.leader
    cluster.fill()
    with leader.dumps.kv.reading() as kv:
        kv.snapshot = None  # As broken as can be.
        leader.node.forceLogCompaction()
        cluster.until(lambda: "the KV was not saved" in caplog.text)
        del kv.snapshot
    cluster.fill()
    cluster.compact(leader)


def test_the_last_snapshots_are_kept_and_older_ones_go(cluster):
    leader = cluster.leader
    for _ in range(4):
        cluster.fill(2)
        cluster.compact(leader)
    cluster.until(lambda: len(leader.indexes) == 2)
    assert leader.indexes[-1] == leader.ticket.index


def test_a_second_dump_of_the_same_entry_takes_what_is_stored(cluster):
    leader = cluster.leader
    cluster.fill()
    cluster.compact(leader)
    (index,) = leader.indexes
    before = leader.directory.stat(index)
    again(leader)
    cluster.until(lambda: leader.dumps._dump is None)
    assert leader.directory.stat(index) == before


def test_a_broken_one_in_the_way_of_a_dump_goes_out_of_it(cluster):
    leader = cluster.leader
    cluster.fill()
    cluster.compact(leader)
    (index,) = leader.indexes
    (leader.path / "snapshots" / f"{index:016x}.json").unlink()
    again(leader)
    cluster.until(lambda: leader.dumps._dump is None)
    assert leader.directory.verify(index).problem is None


def test_a_snapshot_of_another_log_is_not_taken_for_ours(cluster, caplog):
    leader = cluster.leader
    cluster.fill()
    cluster.compact(leader)
    ticket = leader.ticket
    leader.dumps.serialize("unused", ((b"", ticket.index, 99), (b"", ticket.index - 1, 99), set()))
    cluster.until(lambda: "is of another log" in caplog.text)
    cluster.until(lambda: leader.dumps._dump is None)
    assert leader.ticket == ticket


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
    cluster.fill()
    cluster.lose("b:2")
    cluster.compact(leader)
    term = leader.node.raftCurrentTerm
    follower = cluster.start("b:2")
    cluster.fill()
    cluster.settle()
    assert follower.content == leader.content
    assert follower.content[b"count"] == b"10"
    assert follower.indexes == [leader.ticket.index] == [follower.ticket.index]
    assert follower.ticket.url == follower.server.url, "whom it leads next must not be sent elsewhere"
    assert follower.node.raftCurrentTerm == term, "there was an election"
    assert "failed to load full dump" not in caplog.text


def test_a_node_that_fell_behind_has_its_kv_replaced_while_it_is_read(cluster):
    leader, follower = cluster.leader, cluster.members["b:2"]
    cluster.fill()
    cluster.settle()
    cluster.network.cut.add("b:2")
    cluster.fill()
    cluster.compact(leader)
    with follower.dumps.kv.reading() as kv, kv.env.begin() as txn:
        cluster.network.cut.clear()
        cluster.settle()
        assert txn.get(b"count") == b"5"
    assert follower.content == leader.content
    cluster.until(lambda: len(list((follower.path / "kv").iterdir())) == 1)


def test_a_follower_goes_on_when_its_leaders_server_is_back(cluster, caplog):
    leader = cluster.leader
    cluster.fill()
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
    cluster.fill()
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
    cluster.fill()
    cluster.compact(leader)
    cluster.network.cut.clear()
    with caplog.at_level(logging.INFO):
        cluster.until(lambda: "is given up: there is another ticket" in caplog.text)
    go_on.set()
    cluster.settle()
    assert leader.ticket.index > first.index
    assert follower.content == leader.content
    cluster.until(lambda: len(list((follower.path / "kv").iterdir())) == 1)


def test_a_dump_of_its_own_is_forgotten_when_the_leaders_snapshot_was_quicker(cluster):
    leader, follower = cluster.leader, cluster.members["b:2"]
    cluster.fill()
    cluster.settle()
    go_on = threading.Event()
    follower.dumps._clock.run_soon(lambda: go_on.wait(WAIT_S))
    follower.node.forceLogCompaction()
    cluster.until(lambda: follower.dumps._dump is not None)
    cluster.network.cut.add("b:2")
    cluster.fill()
    cluster.compact(leader)
    cluster.network.cut.clear()
    cluster.settle()
    go_on.set()
    cluster.until(lambda: follower.dumps._dump is None)
    assert follower.ticket.index == leader.ticket.index
    assert follower.content == leader.content
    assert not list(follower.path.glob("dump*.next"))


def test_a_dump_that_was_saved_already_is_forgotten_too_and_leaves_nothing(cluster):
    follower = cluster.members["b:2"]
    cluster.fill()
    cluster.settle()
    cluster.compact(follower)
    ticket = follower.ticket
    cluster.fill(1)
    cluster.settle()
    again(follower)
    assert follower.dumps._dump.result.result(WAIT_S)
    follower.dumps._dump.overtake()
    cluster.until(lambda: follower.dumps._dump is None)
    assert follower.ticket == ticket
    assert not list(follower.path.glob("dump*.next"))


def test_a_snapshot_that_has_nothing_of_pysyncobjs_is_fetched_at_leisure(cluster, caplog):
    leader = cluster.leader
    cluster.fill()
    cluster.lose("b:2")
    cluster.compact(leader)
    index = leader.ticket.index + 1
    leader.directory.save_from(b"content", SnapshotMeta(index, leader.ticket.term))
    other = Ticket.for_saved(leader.directory.stat(index), leader.server.url)
    (leader.path / "dump").write_bytes(other.to_bytes())
    cluster.start("b:2")
    cluster.until(lambda: caplog.text.count("was not made for PySyncObj") > 1)
    assert "goes on in" in caplog.text
    assert "failed to load full dump" not in caplog.text


def test_old_snapshots_stay_where_the_dump_file_may_not_last(cluster, caplog):
    leader = cluster.leader

    def sync():
        raise OSError("the disk is gone")

    leader.dumps._file.sync = sync
    for _ in range(3):
        cluster.fill(1)
        cluster.compact(leader)
    settled = threading.Event()
    leader.dumps._clock.run_soon(settled.set)
    assert settled.wait(WAIT_S)
    assert len(leader.indexes) == 3
    assert "old snapshots stay" in caplog.text


def test_a_leader_with_dumps_of_its_own_kind_is_told_from_one_with_tickets(cluster, caplog):
    follower = cluster.members["b:2"]
    (follower.path / "dump").write_bytes(b"\x1f\x8b a pickle, zipped")
    with pytest.raises(TicketMalformed, match="no ticket of snapstore's"):
        follower.dumps.deserialize("unused")
    assert not (follower.path / "dump").exists()


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


def test_the_last_ticket_of_our_own_can_be_put_back_again_and_again(tmp_path):
    file = DumpFile(tmp_path / "dump")
    file.replace(TICKET)
    for left in (b"of a leader", None, None, b"of a leader"):
        if left is not None:
            (tmp_path / "new").write_bytes(left)
            (tmp_path / "new").rename(tmp_path / "dump")
        file.put_back()
        assert file.read() == TICKET


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


def test_a_node_that_has_ended_leases_nothing_any_more(tmp_path):
    with SnapshotDir(tmp_path / "d") as directory:
        for index in (1, 2):
            directory.save_from(b"as good as any", SnapshotMeta(index, 1))
        file = DumpFile(tmp_path / "dump")
        file.path.touch()
        saver = Saver(directory, file, "http://127.0.0.1:1", keep=1)
        saver.settle(1)
        assert len(directory.leases()) == 1
        saver.close()
        saver.settle(1)  # As the clock's background does that had not come to it before.
        assert directory.leases() == []
        assert [saved.index for saved in directory.list()] == [1, 2]  # The dump file still names the first.
