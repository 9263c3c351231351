"""The adapter to rraft-py against the scripted node, which has its shape and keeps its rules."""

from __future__ import annotations

import pytest

from snapstore.errors import MissingExtra, SnapshotTemporarilyUnavailable
from snapstore.meta import ConfState, SnapshotMeta
from snapstore.raft.rraft import Rraft
from snapstore.testing import scripted_node
from snapstore.testing.scripted_log import ScriptedLog
from snapstore.testing.scripted_node import Message, MessageType, RawNode, SnapshotStatus, StoreError

META = SnapshotMeta(7, 3, ConfState((1, 2), (3,), (4,), (5,), auto_leave=True))


class FakeExchange:
    """Gives META, or raises; notes what it is told."""

    def __init__(self):
        self.error, self.asked, self.sent, self.installed = None, [], [], []

    def snapshot(self, to, request_index):
        self.asked.append((to, request_index))
        if self.error is not None:
            raise self.error
        return META

    def send(self, to, index, message):
        self.sent.append((to, index, message))

    def install(self, index):
        self.installed.append(index)


@pytest.fixture
def rraft():
    return Rraft(scripted_node)


@pytest.fixture
def exchange(rraft):
    exchange = FakeExchange()
    log = ScriptedLog(rraft.snapshot)
    rraft.attach(RawNode(2, log), exchange)
    return exchange


def message_of(kind=MessageType.MsgSnapshot, *, index=7, term=3, to=2):
    message = Message(msg_type=kind, to=to, term=5, **{"from": 1})
    message.get_snapshot().get_metadata().set_index(index)
    message.get_snapshot().get_metadata().set_term(term)
    return message


def test_snapshot_says_where_it_stands_and_who_was_in_the_cluster(rraft, exchange):
    metadata = rraft.snapshot(5, 2).get_metadata()
    assert exchange.asked == [(2, 5)]
    assert (metadata.get_index(), metadata.get_term()) == (7, 3)
    members = metadata.get_conf_state()
    assert members.get_voters() == [1, 2]
    assert members.get_learners() == [3]
    assert members.get_voters_outgoing() == [4]
    assert members.get_learners_next() == [5]
    assert members.get_auto_leave() is True


@pytest.mark.parametrize(
    "error", [SnapshotTemporarilyUnavailable("later"), OSError("disk"), RuntimeError("bug")], ids=repr
)
def test_every_error_becomes_the_nested_later(rraft, exchange, error):
    exchange.error = error
    with pytest.raises(StoreError) as raised:
        rraft.snapshot(0, 2)
    (inner,) = raised.value.args
    assert isinstance(inner, scripted_node.SnapshotTemporarilyUnavailableError)


def test_nothing_attached_is_later(rraft):
    with pytest.raises(StoreError):
        rraft.snapshot(0, 2)
    node = RawNode(2, ScriptedLog(None))
    node.step(Message.decode(message_of().encode()))
    with pytest.raises(SnapshotTemporarilyUnavailable):
        rraft.install(node.ready())


def test_messages_go_their_ways_as_bytes(rraft, exchange):
    sent = []

    def send(to, raw):
        sent.append((to, Message.decode(raw).get_msg_type()))
        raise OSError("no route")

    beat = message_of(MessageType.MsgHeartbeat, to=3)
    snapshot = message_of()
    rraft.send([beat, snapshot, beat], send)
    assert sent == [(3, MessageType.MsgHeartbeat)] * 2
    assert exchange.sent == [(2, 7, snapshot.encode())]


def test_snapshot_whose_message_cannot_be_sent_is_one_that_the_exchange_has_not(rraft, exchange, caplog):
    class Broken(Message):
        def encode(self):
            raise ValueError("no bytes")

    rraft.send([Broken(msg_type=MessageType.MsgSnapshot, to=2)], None)
    assert exchange.sent == [(2, 0, b"")]
    assert "no bytes" in caplog.text


def test_ready_with_a_snapshot_installs_it(rraft, exchange):
    rraft.step_snapshot(message_of().encode(), META)
    ready = rraft._node.ready()
    assert rraft.install(ready) == 7
    assert exchange.installed == [7]


def test_ready_without_a_snapshot_installs_nothing(rraft, exchange):
    assert rraft.install(rraft._node.ready()) == 0
    assert exchange.installed == []


@pytest.mark.parametrize(
    "raw",
    [
        b"no message",
        message_of(MessageType.MsgHeartbeat).encode(),
        message_of(index=8).encode(),
        message_of(term=4).encode(),
    ],
)
def test_message_about_something_else_is_not_stepped(rraft, exchange, raw):
    with pytest.raises(ValueError, match="message"):
        rraft.step_snapshot(raw, META)
    assert not rraft._node.has_ready()


def test_reports_have_the_engines_words(rraft):
    told = []

    class Node:
        def report_snapshot(self, to, status):
            told.append((to, status))

    rraft.attach(Node(), FakeExchange())
    rraft.report_snapshot(2, finished=True)
    rraft.report_snapshot(3, finished=False)
    assert told == [(2, SnapshotStatus.Finish), (3, SnapshotStatus.Failure)]


def test_missing_package_is_named():
    with pytest.raises(MissingExtra, match="rraft-py"):
        Rraft()
