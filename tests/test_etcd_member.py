"""The member that a leader sees: what it answers, to whom, and what it never says."""

import http.client
import socket
import struct
from datetime import datetime

import pytest

import etcd_peers as etcd
from etcd_peers import CLUSTER, OURS, SENDER, Member, head, status_of
from nodes import WAIT_S, wait_until
from snapstore.etcd import messages
from snapstore.etcd.member import RAFT_MESSAGE_SIZE_MAX, _Stream
from snapstore.meta import SnapshotMeta
from snapstore.transport.patience import Deadlines

VOTE, PRE_VOTE, TIMEOUT_NOW = 5, 17, 14

TERM = 7

#: One comes each 1.7 s, and no answer takes so long.
SIGNS_MAX = 6


@pytest.fixture
def member(nothing_lost, tmp_path):
    with Member(tmp_path / "member") as member:
        yield member


class Listener:
    """A leader that listens on one of our streams."""

    def __init__(self, member, kind="message", name=f"{SENDER:x}", **changes):
        self.peer = member.peer()
        self.peer.socket.settimeout(WAIT_S)
        self.peer.say(head(f"/raft/stream/{kind}/{name}", "GET", length=0, **changes))
        self.answer = http.client.HTTPResponse(self.peer, method="GET")
        self.answer.begin()

    def hear(self):
        """The next message that is no sign of life; of those a few may come before it."""
        for _ in range(SIGNS_MAX):
            (size,) = struct.unpack(">Q", self.answer.read(8))
            message = messages.decode(messages.Message, self.answer.read(size))
            if message.to:
                return message
        raise AssertionError("heard signs of life, and nothing else")

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.answer.close()
        self.peer.close()


def tell(member, kind, *, to=OURS, sender=SENDER, term=TERM, **fields):
    """Say one raft message as a leader does; the answer."""
    body = messages.encode(messages.raft_message(kind, to=to, sender=sender, term=term, **fields))
    with member.peer() as peer:
        peer.say(head("/raft", length=len(body), Content_Type="application/protobuf"), body)
        return peer.hear("POST")


def test_it_is_there(member):
    with member.peer() as peer:
        peer.say(head("/raft/probing", "GET", length=0))
        answer = peer.hear("GET")
    assert etcd.probing(answer)
    assert '"Now":' in answer[2].decode()
    datetime.fromisoformat(answer[2].decode().split('"')[5])


def test_it_tells_its_version(member):
    with member.peer() as peer:
        peer.say(b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n")
        status, _, body = peer.hear("GET")
    # A cluster's version that is not its own would keep a new member from joining.
    assert (status, body) == (200, b'{"etcdserver": "3.8.0", "etcdcluster": "not_decided"}')
    with member.peer() as peer:
        peer.say(b"DELETE /version HTTP/1.1\r\nHost: x\r\n\r\n")
        status, headers, _ = peer.hear("DELETE")
    assert (status, headers["Allow"]) == (405, "GET")


def test_a_heartbeat_is_answered_to_who_listens(member):
    with Listener(member) as leader:
        assert leader.answer.status == 200
        assert leader.answer.headers["X-Server-Version"] == "3.8.0"
        assert leader.answer.headers["X-Etcd-Cluster-Id"] == f"{CLUSTER:x}"
        answer = tell(member, messages.MSG_HEARTBEAT, context=b"read 1")
        assert (answer[0], answer[1]["X-Etcd-Cluster-Id"]) == (204, f"{CLUSTER:x}")
        heard = leader.hear()
        assert (heard.type, heard.to, getattr(heard, "from")) == (messages.MSG_HEARTBEAT_RESP, SENDER, OURS)
        assert (heard.term, heard.context) == (TERM, b"read 1")


def test_appends_are_turned_away_until_only_a_snapshot_will_do(member):
    with Listener(member) as leader:
        tell(member, messages.MSG_APP, index=6504)
        heard = leader.hear()
        assert (heard.type, heard.reject, heard.index, heard.rejectHint) == (4, True, 6504, 0)
        assert member.put(etcd.snapshot(SnapshotMeta(6505, 2)) + etcd.database())[0] == 204
        tell(member, messages.MSG_APP, index=9000)
        heard = leader.hear()
        assert (heard.type, heard.reject, heard.index, heard.rejectHint) == (4, True, 9000, 6505)
        tell(member, messages.MSG_APP, index=6000)
        heard = leader.hear()
        assert (heard.type, heard.reject, heard.index) == (4, False, 6505)


def test_it_takes_no_entry_and_casts_no_vote(member):
    assert member.put(etcd.snapshot(SnapshotMeta(6505, 2)) + etcd.database())[0] == 204
    with Listener(member) as leader:
        tell(member, messages.MSG_APP, index=6505)
        for kind in (VOTE, PRE_VOTE, TIMEOUT_NOW, 0, 999):
            assert tell(member, kind, index=10**6)[0] == 204
        tell(member, messages.MSG_HEARTBEAT)
        assert leader.hear().type == messages.MSG_HEARTBEAT_RESP  # Nothing came before it.


def test_answers_go_to_the_last_who_listens_and_elsewhere_nowhere(member):
    with Listener(member) as first, Listener(member, name="b0b") as other, Listener(member) as second:
        tell(member, messages.MSG_HEARTBEAT, sender=0xDEAD)  # Never listened.
        tell(member, messages.MSG_HEARTBEAT, term=1)
        tell(member, messages.MSG_HEARTBEAT, sender=0xB0B, term=2)
        assert second.hear().term == 1
        assert other.hear().term == 2
        first.peer.socket.setblocking(False)
        with pytest.raises(BlockingIOError):
            first.peer.socket.recv(1)
    assert tell(member, messages.MSG_HEARTBEAT)[0] == 204


def test_the_last_who_listens_stays_when_an_earlier_one_leaves(member):
    with Listener(member) as first, Listener(member) as second:
        first.__exit__()
        wait_until(lambda: len(member.server._crew.connections) == 1)
        tell(member, messages.MSG_HEARTBEAT)
        assert second.hear().term == TERM


def test_nothing_is_said_before_the_answer_has_its_head():
    said = []

    class Recorder:
        respond_endless = staticmethod(lambda status, headers: said.append("head"))
        send = staticmethod(said.append)
        wait_hangup = staticmethod(lambda timeout_s: True)

    stream = _Stream(Recorder, 1.0)
    stream.say(b"early")
    stream.run([], b"heartbeat")
    stream.say(b"late")
    assert said == ["head", b"\0\0\0\0\0\0\0\x04late"]


def test_a_stream_that_took_half_a_message_is_ended():
    said = []

    class Stuck:
        respond_endless = staticmethod(lambda status, headers: None)
        wait_hangup = staticmethod(lambda timeout_s: stream.say(b"half") or len(said) > 1)

        @staticmethod
        def send(data):
            said.append(data)
            raise TimeoutError

    stream = _Stream(Stuck, 1.0)
    stream.run([], b"heartbeat")
    stream.say(b"late")
    assert said == [b"\0\0\0\0\0\0\0\x04half"]


@pytest.mark.parametrize("kind", ["message", "msgapp"])
def test_streams_show_signs_of_life(nothing_lost, tmp_path, kind):
    fast = Member(tmp_path / "member", link_heartbeat_s=0.001)
    with fast as member, Listener(member, kind) as leader:
        for _ in range(3):
            (size,) = struct.unpack(">Q", leader.answer.read(8))
            if kind == "msgapp":
                assert size == 0  # There it is the message's type.
            else:
                heard = messages.decode(messages.Message, leader.answer.read(size))
                assert (heard.type, heard.to, getattr(heard, "from")) == (messages.MSG_HEARTBEAT, 0, 0)


def test_streams_end_with_the_server(member):
    with Listener(member) as leader, Listener(member, "msgapp") as other:
        member.server.close()
        assert leader.answer.read() == other.answer.read() == b""


@pytest.mark.parametrize("target", ["/raft", f"/raft/stream/message/{SENDER:x}", "/raft/stream/msgapp/1"])
def test_all_is_checked_as_snapshots_are(member, target):
    method = "POST" if target == "/raft" else "GET"
    for changes, expected in [
        ({"X_Server_Version": None}, (412, "incompatible version\n")),
        ({"X_Etcd_Cluster_Id": "1"}, (412, "cluster ID mismatch\n")),
    ]:
        with member.peer() as peer:
            peer.say(head(target, method, length=0, **changes))
            assert status_of(peer.hear(method)) == expected
    with member.peer() as peer:
        peer.say(head(target, "PUT", length=0))
        answer = peer.hear("PUT")
        assert status_of(answer) == (405, "Method Not Allowed\n")
        assert (answer[1]["Allow"], answer[1]["X-Etcd-Cluster-Id"]) == (method, None)
    with member.peer() as peer:
        peer.say(head(target, method, length=0, X_Peerurls="nonsense"))
        assert peer.hear_all() == b""


@pytest.mark.parametrize(
    "target", ["/raft/", "/raft/stream/", "/raft/stream/message/", "/raft/stream/message/xyz",
               "/raft/stream/message/0", "/raft/stream/snap/1", "/raft/snapshots"]
)  # fmt: skip
def test_there_is_nothing_else(member, target):
    with member.peer() as peer:
        peer.say(head(target, "GET", length=0))
        assert status_of(peer.hear("GET")) == (404, "404 page not found\n")


def test_messages_that_are_none(member):
    for body, words in [(b"\xff" * 9, "unmarshalling"), (bytes(RAFT_MESSAGE_SIZE_MAX + 1), "reading")]:
        with member.peer() as peer:
            peer.say(head("/raft", length=len(body)), body)
            assert status_of(peer.hear("POST")) == (400, f"error {words} raft message\n")


@pytest.mark.parametrize(
    ("length", "body"), [(9, b"\x08\x08"), (None, b"2\r\n\x08\x08\r\n"), (None, b"two\r\n\x08\x08\r\n")]
)
def test_a_message_that_breaks_off_is_none(member, caplog, length, body):
    with member.peer() as peer:
        peer.say(head("/raft", length=length), body)
        peer.end()
        assert status_of(peer.hear("POST")) == (400, "error reading raft message\n")
    assert "a reason of our own" not in caplog.text


def test_who_says_nothing_more_is_not_waited_for(nothing_lost, tmp_path):
    with (
        Member(tmp_path / "member", deadlines=Deadlines(idle_timeout_s=0.05)) as member,
        member.peer() as peer,
    ):
        peer.say(head("/raft", length=9), b"\x08")
        assert status_of(peer.hear("POST")) == (400, "error reading raft message\n")


def test_a_member_that_knows_its_name_answers_to_no_other(nothing_lost, tmp_path):
    with Member(tmp_path / "member", member_id=OURS) as member:
        with Listener(member, X_Raft_To="1") as stranger:
            assert stranger.answer.status == 412
            assert stranger.answer.read() == b"to field mismatch\n"
        with Listener(member, X_Raft_To=f"{OURS:x}") as leader:
            tell(member, messages.MSG_HEARTBEAT, to=1)
            tell(member, messages.MSG_HEARTBEAT, term=8)
            assert leader.hear().term == 8


def test_a_listener_that_is_cut_off_is_forgotten(member):
    leader = Listener(member)
    leader.peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    leader.__exit__()
    wait_until(lambda: not member.member._streams)
    assert tell(member, messages.MSG_HEARTBEAT)[0] == 204
    with Listener(member) as again:
        tell(member, messages.MSG_HEARTBEAT)
        assert again.hear().term == TERM
