"""Sent on as a leader sends: the bytes of the request, and each answer to them."""

import asyncio
import http.client
import io
import socket

import pytest

import etcd_peers as etcd
from etcd_peers import CLUSTER, DB, META, SENDER, Member
from etcd_sending import LARGE, Stored, message_of, send
from nodes import ImagedSnapshot, Impostor, read_head
from snapstore.aio import AsyncClient
from snapstore.errors import PeerRejected, PeerUnreachable, TransportError
from snapstore.etcd import messages
from snapstore.stream import SnapshotStream
from snapstore.transfer import Direction, State
from snapstore.transport.http import SnapshotClient, SnapshotServer
from snapstore.transport.patience import Deadlines
from tasks_at_work import cancelled, run

#: The least patience that a connection to nobody can end within.
SHORT_S = 0.15

#: Among them what a leader of 3.4.23 says differently: its name, its version, and what its HTTP adds.
NOT_OURS = {"User-Agent", "Accept-Encoding", "X-Server-Version", "Host"}


@pytest.fixture
def member(nothing_lost, tmp_path):
    with Member(tmp_path / "member") as member:
        yield member


@pytest.fixture
def stored(nothing_lost, tmp_path):
    with Stored(tmp_path) as stored:
        yield stored


def answering(answer, heard=None):
    """An impostor's behaviour: hear all of the request, say `answer`."""

    def behave(connection):
        head = read_head(connection)
        headers = http.client.parse_headers(io.BytesIO(head.partition(b"\r\n")[2]))
        left, body = int(headers["Content-Length"]), b""
        while left and (data := connection.recv(min(left, 65536))):
            left -= len(data)
            body += data
        if heard is not None:
            heard.append((head, headers, body))
        connection.sendall(answer)

    return behave


def reply(status, body=b"", **headers):
    lines = [f"HTTP/1.1 {status} Words", f"Content-Length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


NO_CONTENT = b"HTTP/1.1 204 No Content\r\nX-Etcd-Cluster-Id: 8edc744327887c91\r\n\r\n"


# Accepted.


def test_a_stored_snapshot_reaches_a_member_as_a_leader_s_would(member, stored):
    send(member.url, stored())
    assert member.bytes_of(META.index) == DB
    assert member.directory.stat(META.index).meta == META
    assert member.heard == [(META.index, SENDER, 2)]


def test_awaited_it_reaches_a_member_too(member, stored):
    async def main(loop):
        client = AsyncClient(SnapshotClient())
        await client.send_etcd(member.url, stored(), message_of(), cluster_id=CLUSTER)

    run(main)
    assert member.bytes_of(META.index) == DB


def test_awaited_it_ends_with_its_task_while_a_member_says_nothing(stored):
    async def main(loop):
        heard = asyncio.Event()

        def behave(connection):
            answering(b"")(connection)
            loop.call_soon_threadsafe(heard.set)
            connection.recv(1)

        client = SnapshotClient()
        with Impostor(behave) as peer:
            sending = asyncio.ensure_future(
                AsyncClient(client).send_etcd(peer.url, stored(), message_of(), cluster_id=CLUSTER)
            )
            await heard.wait()
            sending.cancel()
            await cancelled(sending)
        assert [it.state for it in client.registry.transfers()] == [State.CANCELLED]

    run(main)


def test_it_is_seen_on_both_sides(member, stored):
    client = SnapshotClient()
    send(member.url, stored(), client=client)
    (sent,), (received,) = client.registry.transfers(), member.server.registry.transfers()
    assert (sent.direction, sent.peer, received.direction) == (Direction.OUT, member.url, Direction.IN)
    for transfer in (sent, received):
        assert (transfer.index, transfer.state) == (META.index, State.DONE)
        assert transfer.bytes == transfer.total == transfer.moved == len(DB)


def test_a_stream_is_sent_and_stays_open(member, tmp_path):
    (tmp_path / "db").write_bytes(LARGE)
    with SnapshotStream(META, ImagedSnapshot(tmp_path / "db")) as stream:
        send(member.url, stream)
        assert not stream.closed
    assert member.bytes_of(META.index) == LARGE


def test_the_request_is_a_leader_s(stored):
    heard = []
    with Impostor(answering(NO_CONTENT, heard)) as peer:
        send(peer.url, stored(), peer_urls=["http://127.0.0.1:12380"])
    ((head, headers, body),) = heard
    assert head.startswith(b"POST /raft/snapshot HTTP/1.1\r\n")
    expected = {name: value for name, value in etcd.HEADERS.items() if name not in NOT_OURS}
    expected |= {"Host": peer.url.removeprefix("http://"), "Content-Length": str(len(body))}
    assert dict(headers) == {**expected, "X-Server-Version": "3.8.0"}
    assert body == etcd.BODY


def test_without_urls_of_the_sender_none_are_told(stored):
    heard = []
    with Impostor(answering(NO_CONTENT, heard)) as peer:
        send(peer.url, stored())
    assert "X-Peerurls" not in heard[0][1]


def test_a_message_goes_on_as_it_was_received(stored):
    """Fields that are none of ours too: a newer leader's vote, and what has no name yet."""
    message = messages.decode(
        messages.Message, messages.encode(message_of()) + bytes.fromhex("68 01  f8ff01 01")
    )
    heard = []
    with Impostor(answering(NO_CONTENT, heard)) as peer:
        send(peer.url, stored(), message=message)
    data = messages.encode(message)
    assert data.endswith(bytes.fromhex("68 01  f8ff01 01"))
    assert heard[0][2] == etcd.prefixed(data) + DB


def test_a_token_is_not_for_etcd(stored):
    heard = []
    with Impostor(answering(NO_CONTENT, heard)) as peer:
        send(peer.url, stored(), client=SnapshotClient(token="sesame-sesame-sesame"))
    assert b"sesame" not in heard[0][0]


def test_over_tls(nothing_lost, stored, tmp_path, node):
    member = Member(tmp_path / "member")
    with (
        member,
        SnapshotServer(
            member.directory, "127.0.0.1:0", tls=node.server, routes=member.member.routes
        ) as server,
    ):
        send(server.url, stored(LARGE), client=SnapshotClient(tls=node.client))
        assert member.bytes_of(META.index) == LARGE


# Refused.


@pytest.mark.parametrize(
    ("answer", "status", "words"),
    [
        (reply(412, b"incompatible version\n"), 412, "incompatible version; the etcd there is older than"),
        (
            reply(412, b"cluster ID mismatch\n", X_Etcd_Cluster_Id="abc"),
            412,
            "cluster ID mismatch; it is of the cluster 'abc', and this was sent to '8edc744327887c91'",
        ),
        (reply(412, b"no such luck\n"), 412, "no such luck"),
        (
            reply(403, b'{"message":"cannot process message from removed member"}'),
            403,
            "removed member; the sender bed7b5dac636f795 was removed from the cluster",
        ),
        (
            reply(403, b'{"message":"cannot process message to mismatch member"}'),
            403,
            "mismatch member; the member there is not 22914de8007a9ea: look at the URL",
        ),
        (reply(403), 403, "no reason given; the sender bed7b5dac636f795 was removed"),
        (reply(400, b"wrong raft message type\n"), 400, "wrong raft message type"),
        (reply(405, b"Method Not Allowed\n"), 405, "Method Not Allowed"),
        (
            reply(500, b"failed to save KV snapshot (read tcp: i/o timeout)\n"),
            500,
            "i/o timeout); it waits 5 s for each byte",
        ),
        (reply(500, b"failed to process raft message (x)\n"), 500, "failed to process raft message (x)"),
        (reply(200, b"not etcd"), 200, "not etcd"),
        (reply(503, b"\x1b[31mred"), 503, r"'\x1b[31mred'"),
    ],
)
def test_each_no_is_told_with_what_to_do(stored, answer, status, words):
    with Impostor(answering(answer)) as peer, pytest.raises(PeerRejected) as raised:
        send(peer.url, stored())
    assert raised.value.status == status
    assert words in raised.value.reason
    assert raised.value.reason.isprintable()


def test_a_member_that_refuses_at_once_is_heard(member, stored):
    """Its answer comes before the body has gone out."""
    with pytest.raises(PeerRejected, match=r"cluster ID mismatch; .*'8edc744327887c91'.* 'abc'") as raised:
        send(member.url, stored(LARGE), cluster_id=0xABC)
    assert raised.value.status == 412
    member.assert_nothing_saved()


def test_a_member_that_claims_to_have_all_before_it_was_sent(stored):
    def behave(connection):
        read_head(connection)
        connection.sendall(NO_CONTENT)

    with Impostor(behave) as peer, pytest.raises(TransportError, match="claims to have saved"):
        send(peer.url, stored(LARGE))


@pytest.mark.parametrize("database", [DB, LARGE], ids=["after the body", "in the body"])
def test_a_member_that_leaves(stored, database):
    def behave(connection):
        read_head(connection)
        connection.recv(len(etcd.BODY), socket.MSG_WAITALL)

    with Impostor(behave) as peer, pytest.raises(PeerUnreachable, match="left or fell silent"):
        send(peer.url, stored(database))


def test_a_member_that_takes_no_more(stored):
    done = []

    def behave(connection):
        read_head(connection)
        connection.sendall(reply(500, b"failed to save KV snapshot (no space left on device)\n"))
        done.append(connection.recv(1))
        while connection.recv(65536):
            pass

    with Impostor(behave) as peer, pytest.raises(PeerRejected, match="no space left on device"):
        send(peer.url, stored(LARGE))
    assert done


def test_nobody_there(stored):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    with pytest.raises(PeerUnreachable, match="cannot be reached"):
        send(url, stored(), client=SnapshotClient(deadlines=Deadlines(connect_timeout_s=SHORT_S)))
