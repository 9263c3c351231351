"""PySyncObj's messages to a follower that was shown a ticket."""

import pytest
from pysyncobj.node import TCPNode
from pysyncobj.transport import TCPTransport, Transport

from snapstore.raft.pysyncobj import TicketTransport
from snapstore.raft.pysyncobj.transport import EntriesHeldBack

NODE, OTHER = TCPNode("b:2"), TCPNode("c:3")

HEARTBEAT = {"type": "append_entries", "prevLogIdx": 7, "entries": []}
ENTRIES = {"type": "append_entries", "prevLogIdx": 7, "entries": [(b"", 8, 1)]}
LARGE_ENTRY = {"type": "append_entries", "prevLogIdx": 7, "transmission": "start", "data": b""}
TICKET = {"type": "append_entries", "serialized": (b"ticket", True, False)}
TICKET_END = {"type": "append_entries", "serialized": (b"", False, True)}
NO_TICKET_NOW = {"type": "append_entries", "serialized": None}
ANSWER = {"type": "next_node_idx", "next_node_idx": 2, "reset": True, "success": False}


class Sent(Transport):
    """Notes what is sent."""

    def __init__(self, sync_obj, self_node, other_nodes):
        super().__init__(sync_obj, self_node, other_nodes)
        self.sent = []

    def send(self, node, message):
        self.sent.append((node, message))
        return True


class Line(EntriesHeldBack, Sent):
    pass


@pytest.fixture
def line():
    line = Line(None, TCPNode("a:1"), [NODE, OTHER])
    line.heard = []
    line.setOnMessageReceivedCallback(lambda node, message: line.heard.append((node, message)))
    return line


def test_entries_behind_a_ticket_wait_for_the_answer(line):
    for message in (ENTRIES, TICKET, TICKET_END, ENTRIES, LARGE_ENTRY, HEARTBEAT, NO_TICKET_NOW):
        assert line.send(NODE, message), "as sent, or PySyncObj would end the line"
    assert [message for _, message in line.sent] == [ENTRIES, TICKET, TICKET_END, HEARTBEAT, NO_TICKET_NOW]
    line._onMessageReceived(NODE, ANSWER)
    assert line.heard == [(NODE, ANSWER)]
    line.send(NODE, ENTRIES)
    assert line.sent[-1] == (NODE, ENTRIES)


def test_others_and_other_words_are_no_concern_of_it(line):
    for message in (TICKET, TICKET_END):
        line.send(NODE, message)
    line._onMessageReceived(OTHER, ANSWER)
    line._onMessageReceived(NODE, {"type": "request_vote"})
    line._onMessageReceived(NODE, ["status"])
    line.send(NODE, ENTRIES)
    line.send(OTHER, ENTRIES)
    line.send(NODE, ["status"])
    assert line.sent[2:] == [(OTHER, ENTRIES), (NODE, ["status"])]
    assert len(line.heard) == 3


def test_nobody_hears_where_nobody_wants_to(line):
    line.setOnMessageReceivedCallback(None)
    line._onMessageReceived(NODE, ANSWER)
    assert line.heard == []


def test_the_ready_made_one_speaks_tcp():
    assert issubclass(TicketTransport, TCPTransport)
    assert TicketTransport.send is EntriesHeldBack.send
