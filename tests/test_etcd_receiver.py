"""`POST /raft/snapshot` as a leader meets it: etcd's checks in etcd's order and words, and more."""

import struct
import threading

import pytest

import etcd_peers as etcd
from etcd_peers import BODY, DB, META, Member, chunked, head, prefixed, snapshot, status_of
from nodes import WAIT_S, wait_until
from snapstore.etcd import messages
from snapstore.etcd.messages import SNAPSHOT_MESSAGE_SIZE_MAX
from snapstore.etcd.receiver import MESSAGE_SIZE_MAX, RETRY_DELAY_S, EtcdReceiver, wait_unless_gone
from snapstore.meta import META_DATA_SIZE_MAX, SnapshotMeta


@pytest.fixture
def member(nothing_lost, tmp_path):
    with Member(tmp_path / "member") as member:
        yield member


# Accepted.


@pytest.mark.parametrize("pieces", [1, 7686, 4096])
def test_a_snapshot_in_chunks_is_saved(member, pieces):
    cuts = [BODY[start : start + max(pieces, 97)] for start in range(0, len(BODY), max(pieces, 97))]
    with member.peer() as peer:
        peer.say(head(), chunked(*cuts))
        status, headers, body = peer.hear("POST")
    assert (status, body) == (204, b"")
    assert headers["X-Etcd-Cluster-Id"] == "8edc744327887c91"
    assert headers["Date"].endswith("GMT")
    assert headers["Content-Length"] is None
    assert member.bytes_of(META.index) == DB
    assert member.directory.stat(META.index).meta == META
    assert member.heard == [(META.index, etcd.SENDER, 2)]
    assert member.directory.verify(META.index).problem is None


def test_one_line_carries_all_that_a_leader_says(member):
    beat = messages.encode(messages.raft_message(messages.MSG_HEARTBEAT, to=1, sender=2, term=2))
    probe = head("/raft/probing", "GET", length=0)
    with member.peer() as peer:
        peer.say(probe)
        assert etcd.probing(peer.hear("GET"))
        for index in (5, 20):
            body = snapshot(SnapshotMeta(index, 1)) + DB
            peer.say(head(length=len(body)), body)
            assert peer.hear("POST")[0] == 204
            peer.say(head("/raft", length=len(beat)), beat)
            assert peer.hear("POST")[0] == 204
            # The next request is there before the answer to this one.
            peer.say(head(), chunked(snapshot(SnapshotMeta(index + 10, 1)), DB), probe)
            assert peer.hear("POST")[0] == 204
            assert etcd.probing(peer.hear("GET"))
    assert member.indexes == [5, 15, 20, 30]


def test_zeros_may_be_absent_and_fields_unknown(member):
    bare = bytes.fromhex("08 07  4a 04  12 02 10 09  f8ff01 01")
    assert member.put(prefixed(bare) + DB)[0] == 204
    assert member.directory.stat(9).meta == SnapshotMeta(9)


@pytest.mark.parametrize("page_size", [1024, 65536])
def test_other_page_sizes(member, page_size):
    db = etcd.database(5, page_size=page_size)
    assert member.put(snapshot() + db)[0] == 204
    assert member.bytes_of(META.index) == db


def test_a_peer_that_waits_to_be_told_is(member):
    with member.peer() as peer:
        peer.say(head(length=len(BODY), Expect="100-continue"))
        peer.hear_continue()
        peer.say(BODY)
        assert peer.hear("POST")[0] == 204


# Needless: decided from the message, before the database.


@pytest.mark.parametrize("index", [0, 1, META.index - 1, META.index])
def test_what_is_old_or_there_is_not_read_again(member, index):
    assert member.put(BODY)[0] == 204
    with member.peer() as peer:
        # The database never comes, and is not waited for.
        peer.say(head(length=2**40), snapshot(SnapshotMeta(index, 2)))
        status, headers, _ = peer.hear("POST")
    assert (status, headers["Connection"]) == (204, "close")
    assert member.indexes == [META.index]
    # A leader that missed the first answer is owed the node's own, too.
    assert len(member.heard) == (2 if index == META.index else 1)


def test_an_index_of_zero_is_no_snapshot(member):
    assert member.put(snapshot(SnapshotMeta(0, 0)) + DB)[0] == 204
    member.assert_nothing_saved()


def test_a_broken_one_does_not_keep_the_good_one_out(member):
    assert member.put(BODY)[0] == 204
    path = member.directory.get_snap_file_path(META.index)
    path.write_bytes(DB[:-1])
    assert member.put(BODY)[0] == 204
    assert member.bytes_of(META.index) == DB


def test_an_index_of_another_term_is_another_snapshot(member):
    assert member.put(BODY)[0] == 204
    other = SnapshotMeta(META.index, 3)
    status, text = status_of(member.put(snapshot(other) + DB))
    assert status == 500
    assert "failed to save KV snapshot (one of term 2 is stored with this index; remove it" in text
    assert member.directory.stat(META.index).meta == META


def test_two_leaders_send_the_same_and_one_is_let_in(nothing_lost, tmp_path):
    with Member(tmp_path / "member", saves_max=1) as member, member.peer() as slow:
        slow.say(head(length=len(BODY)), BODY[:-1])
        wait_until(lambda: member.directory._saving)  # Its save has begun.
        assert status_of(member.put(BODY)) == (
            500,
            "failed to save KV snapshot (other snapshots are being saved)\n",
        )
        assert member.delays_s == [RETRY_DELAY_S]
        slow.say(BODY[-1:])
        assert slow.hear("POST")[0] == 204


def test_our_own_limits_are_told_as_failed_saves(nothing_lost, tmp_path):
    many = messages.RaftConfState(voters=range(messages.MEMBERS_MAX + 1))
    crowd = messages.Snapshot(metadata=messages.SnapshotMetadata(index=1, conf_state=many))
    heavy = messages.Snapshot(metadata=messages.SnapshotMetadata(index=1), data=bytes(META_DATA_SIZE_MAX + 1))
    with Member(tmp_path / "member", size_max=len(DB) - 1) as member:
        for size in (SNAPSHOT_MESSAGE_SIZE_MAX + 1, MESSAGE_SIZE_MAX):
            status, text = status_of(member.put(struct.pack(">Q", size) + DB))
            assert status == 500
            assert f"failed to save KV snapshot (its message has {size} bytes" in text
        for told in (crowd, heavy):
            message = messages.raft_message(messages.MSG_SNAP, to=1, sender=2, term=1, snapshot=told)
            status, text = status_of(member.put(prefixed(messages.encode(message)) + DB))
            assert status == 500
            assert "failed to save KV snapshot (" in text
        assert "failed to save KV snapshot (" in status_of(member.put(BODY))[1]
        member.assert_nothing_saved()
        assert len(member.delays_s) == 5


# After the save.


def test_never_403_whatever_the_address(nothing_lost, tmp_path):
    with Member(tmp_path / "member", member_id=etcd.OURS) as member:
        words = "failed to process raft message (cannot process message to mismatch member)\n"
        assert status_of(member.put(snapshot(to=7) + DB)) == (500, words)
        member.assert_nothing_saved()
        assert member.put(BODY)[0] == 204


def test_the_node_refuses(nothing_lost, tmp_path):
    def refuse(saved, message):
        raise RuntimeError("raft: stopped")

    with Member(tmp_path / "member", on_saved=refuse) as member:
        expected = (500, "failed to process raft message (raft: stopped)\n")
        assert status_of(member.put(BODY)) == expected
        assert status_of(member.put(BODY)) == expected
        assert member.delays_s == [RETRY_DELAY_S] * 2
        assert member.indexes == [META.index]


@pytest.mark.parametrize("body", [snapshot(), BODY], ids=["before the database", "behind it"])
def test_what_nobody_expected_is_held_back_too(nothing_lost, tmp_path, caplog, body):
    """A leader that hears of it at once sends again at once, a gigabyte perhaps."""
    with Member(tmp_path / "member") as member:
        member.directory.close()
        words = "failed to save KV snapshot (this node failed; its log says why)\n"
        assert status_of(member.put(body)) == (500, words)
        assert member.delays_s == [RETRY_DELAY_S]
    assert "was closed" in caplog.text


def test_who_waits_to_be_told_is_not_told_where_there_is_no_place(nothing_lost, tmp_path):
    with Member(tmp_path / "member", saves_max=1) as member, member.peer() as slow, member.peer() as other:
        slow.say(head(length=len(BODY)), BODY[:-1])
        wait_until(lambda: member.directory._saving)
        other.say(head(length=len(BODY), Expect="100-continue"))
        assert other.hear_all().startswith(b"HTTP/1.1 500")
        slow.say(BODY[-1:])
        assert slow.hear("POST")[0] == 204


def test_a_held_back_answer_holds_nobody_up(nothing_lost, tmp_path):
    """Not the server's end, and not a leader's that leaves."""
    begun = threading.Event()

    def delay(exchange, seconds):
        begun.set()
        wait_unless_gone(exchange, seconds)

    with Member(tmp_path / "member", delay=delay, retry_delay_s=3600) as member:
        for _ in range(2):
            begun.clear()
            with member.peer() as peer:
                peer.say(head(length=len(BODY)), snapshot(), bytes(len(DB)))
                assert begun.wait(WAIT_S)
        with member.peer() as peer:
            begun.clear()
            peer.say(head(length=len(BODY)), snapshot(), bytes(len(DB)))
            assert begun.wait(WAIT_S)
            member.server.close()
            assert peer.hear_all() == b""


def test_options_are_checked(tmp_path):
    for options in ({"saves_max": 0}, {"retry_delay_s": -1}):
        with pytest.raises(ValueError, match="saves_max is 1 or more"):
            EtcdReceiver(None, cluster_id=1, **options)
