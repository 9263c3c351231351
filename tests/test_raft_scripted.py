"""The scripted node forgives nothing: each rule of raft-rs around a snapshot, broken once."""

from __future__ import annotations

import threading

import pytest

from snapstore.testing.scripted_log import ScriptedLog
from snapstore.testing.scripted_node import (
    APPEND_SIZE_MAX,
    Entry,
    Message,
    MessageType,
    NodePanic,
    RawNode,
    RuleBroken,
    Snapshot,
    SnapshotStatus,
    SnapshotTemporarilyUnavailableError,
    StoreError,
)


def later(request_index, to):
    raise StoreError(SnapshotTemporarilyUnavailableError())


def new_leader(snapshot=later, *, written=3):
    """A leader whose follower 2 is behind its compacted log; `snapshot` is the storage's."""
    log = ScriptedLog(snapshot)
    node = RawNode(1, log, peers=[2])
    node.campaign()
    handle(node, log)
    for _ in range(written):
        node.propose(b"data")
        handle(node, log)
    log.compact(node.applied)
    return node, log


def handle(node, log):
    sent = []
    while node.has_ready():
        ready = node.ready()
        log.append(ready.entries())
        ready.take_committed_entries()
        sent += ready.take_messages() + ready.take_persisted_messages()
        node.advance(ready)
    return sent


def ask_for_snapshot(node):
    """The follower answers that it has nothing."""
    node.step(answer(node, MessageType.MsgHeartbeatResponse))


def answer(node, kind, **fields):
    message = Message(msg_type=kind, to=node.id, term=node.term, **{"from": 2}, **fields)
    return Message.decode(message.encode())


def snapshot_at(index):
    snapshot = Snapshot.default()
    snapshot.get_metadata().set_index(index)
    snapshot.get_metadata().set_term(1)
    return snapshot


def test_later_is_no_error():
    node, log = new_leader()
    ask_for_snapshot(node)
    assert handle(node, log) == []
    assert not node.dead


@pytest.mark.parametrize(
    "raised",
    [
        SnapshotTemporarilyUnavailableError(),
        StoreError(),
        StoreError("later"),
        OSError("disk"),
        KeyboardInterrupt(),
    ],
    ids=repr,
)
def test_any_other_error_of_the_storage_is_a_panic(raised):
    def snapshot(request_index, to):
        raise raised

    node, _ = new_leader(snapshot)
    with pytest.raises(NodePanic):
        ask_for_snapshot(node)
    with pytest.raises(NodePanic, match="dead"):
        node.tick()


def test_snapshot_of_index_0_is_a_panic():
    node, _ = new_leader(lambda request_index, to: snapshot_at(0))
    with pytest.raises(NodePanic, match="non-empty"):
        ask_for_snapshot(node)


def test_unreported_snapshot_stalls_its_follower_until_it_is_reported():
    node, log = new_leader(lambda request_index, to: snapshot_at(4))
    ask_for_snapshot(node)
    assert [message.get_msg_type() for message in handle(node, log)] == [MessageType.MsgSnapshot]
    node.propose(b"more")
    handle(node, log)
    ask_for_snapshot(node)
    assert handle(node, log) == []
    node.report_snapshot(2, SnapshotStatus.Finish)
    ask_for_snapshot(node)
    assert [message.get_msg_type() for message in handle(node, log)] == [MessageType.MsgAppend]
    with pytest.raises(RuleBroken, match="reported before"):
        node.report_snapshot(2, SnapshotStatus.Finish)


def test_failed_snapshot_is_sent_again():
    node, log = new_leader(lambda request_index, to: snapshot_at(4))
    ask_for_snapshot(node)
    handle(node, log)
    node.report_snapshot(2, SnapshotStatus.Failure)
    assert handle(node, log) == []  # Not before the follower has shown that it lives.
    ask_for_snapshot(node)
    assert [message.get_msg_type() for message in handle(node, log)] == [MessageType.MsgSnapshot]


def test_node_belongs_to_one_thread():
    node, _ = new_leader()
    caught = []

    def tick():
        try:
            node.tick()
        except NodePanic as panic:
            caught.append(str(panic))

    thread = threading.Thread(target=tick)
    thread.start()
    thread.join()
    assert caught == ["tick was called on a second thread"]


def test_nothing_happens_while_a_ready_is_open():
    node, _ = new_leader()
    node.propose(b"data")
    node.ready()
    with pytest.raises(NodePanic, match="Ready is open"):
        node.report_snapshot(2, SnapshotStatus.Finish)


def test_messages_travel_as_bytes():
    node, _ = new_leader()
    with pytest.raises(NodePanic, match="as bytes"):
        node.step(Message(to=1, **{"from": 2}))
    with pytest.raises(TypeError, match="bytes"):
        Message.decode("{}")
    with pytest.raises(ValueError, match="Expecting value"):
        Message.decode(b"no message")
    with pytest.raises(AttributeError):
        Message().get_weight()
    with pytest.raises(TypeError):
        Message().set_term("1")


def test_message_survives_its_encoding():
    message = answer(
        new_leader()[0],
        MessageType.MsgAppend,
        entries=[Entry(index=3, term=2, data=b"\x00\xff")],
        snapshot=snapshot_at(7),
    )
    again = Message.decode(message.encode())
    assert again.to_plain() == message.to_plain()
    assert again.get_entries()[0].get_data() == b"\x00\xff"
    assert again.get_snapshot().get_metadata().get_index() == 7


def test_entries_beyond_max_size_are_a_panic():
    node, log = new_leader()
    honest = log.entries
    log.entries = lambda low, high, context, max_size: honest(low, high, context, 10**9)
    node.propose(b"x" * APPEND_SIZE_MAX)
    node.propose(b"x")
    ready = node.ready()
    log.append(ready.entries())
    ready.take_messages()
    node.advance(ready)
    with pytest.raises(NodePanic, match="max_size"):
        node.ready()


def test_advance_before_saving_is_a_panic():
    node, _ = new_leader()
    node.propose(b"data")
    ready = node.ready()
    with pytest.raises(NodePanic, match="before the log had"):
        node.advance(ready)


def test_response_before_saving_is_refused():
    log = ScriptedLog(later)
    node = RawNode(2, log)
    message = Message(msg_type=MessageType.MsgSnapshot, to=2, term=1, snapshot=snapshot_at(4), **{"from": 1})
    node.step(Message.decode(message.encode()))
    ready = node.ready()
    with pytest.raises(RuleBroken, match="before the log had"):
        ready.take_persisted_messages()
    log.apply_snapshot(ready.snapshot())
    assert [sent.get_index() for sent in ready.take_persisted_messages()] == [4]
    node.advance(ready)
    assert node.applied == 4
