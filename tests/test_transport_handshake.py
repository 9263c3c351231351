"""Who comes in by TLS and who does not: handshakes that fail, stall, or are none, seen from both sides."""

from __future__ import annotations

import contextlib
import datetime
import re
import ssl
import threading

import pytest

from certificates import Authority
from nodes import CONTENT, UNIT, WAIT_S, Follower, Impostor, RawPeer, wait_until, written
from snapstore.errors import PeerRejected, PeerUnreachable, TransportError
from snapstore.testing import FakeClock
from snapstore.transport.address import connect, parse_url
from snapstore.transport.http import SnapshotClient
from snapstore.transport.patience import Deadlines

#: A short time that a test has to wait out.
SHORT_S = 0.15

HOST = "127.0.0.1"

GET = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"

pytestmark = pytest.mark.usefixtures("nothing_lost")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("certificates") / "theirs")


PAST = datetime.datetime(2020, 1, 1, tzinfo=datetime.timezone.utc)

EXPIRED = {"not_before": PAST, "not_after": PAST + datetime.timedelta(days=1)}

#: Who is refused: which side has something wrong, and the words of the client and of the server.
REFUSED = {
    "client of another authority": ("client", "unknown ca", "unable to get local issuer|self.signed"),
    "client without a certificate": ("client", "certificate required|handshake failure", "did not return"),
    "client with an expired one": ("client", "certificate expired", "certificate has expired"),
    "server of another authority": ("server", "unable to get local issuer|self.signed", "unknown ca"),
    "server with an expired one": ("server", "certificate has expired", "certificate expired"),
    "server of another name": ("server", "not valid for '127.0.0.1'", "bad certificate"),
}


def wrong_credentials(name, authority, stranger):
    if "another authority" in name:
        return stranger.issue(HOST, trusting=authority.file)
    if "expired" in name:
        return authority.issue(HOST, **EXPIRED)
    return authority.issue("example.org")


def bare_context(node):
    """A client that trusts the node's authority and has no certificate to show."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(node.ca)
    return context


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("name", REFUSED)
def test_who_has_not_the_right_certificate_stays_outside(
    node, authority, stranger, tmp_path, caplog, name, version
):
    side, client_words, server_words = REFUSED[name]
    wrong = wrong_credentials(name, authority, stranger)
    context = wrong.client if side == "client" else node.client
    if "without" in name:
        context = bare_context(node)
    context.maximum_version = version
    server = wrong if side == "server" else node
    with Follower(tmp_path / "follower", tls=server.server) as follower:
        for _ in range(3):  # An alert that was lost in a reset now and then would show.
            caplog.clear()
            with written() as stream, pytest.raises(TransportError, match=client_words) as raised:
                SnapshotClient(tls=context).send_snapshot(follower.url, stream)
            assert follower.url in str(raised.value)
            wait_until(lambda: caplog.records and not follower.server._crew.connections)
            (record,) = caplog.records
            assert record.levelname == "WARNING"
            assert re.match(rf"refused {HOST}:\d+: .*({server_words})", record.message)
        assert follower.names() == []


def test_a_transfer_goes_on_while_others_are_refused(secured, node, stranger, background, pausing):
    pace, reached, go_on = pausing
    with written(pace=pace) as stream:
        sending = background(
            SnapshotClient(tls=node.client).send_snapshot, secured.url, stream, chunk_size=UNIT
        )
        assert reached.wait(WAIT_S)
        outside = stranger.issue(HOST, trusting=node.ca).client
        for _ in range(5):
            with pytest.raises(TransportError, match="unknown ca"):
                SnapshotClient(tls=outside).list(secured.url)
        go_on.set()
        assert sending.result(WAIT_S).size == len(CONTENT)
    assert secured.directory.verify(7).path.read_bytes() == CONTENT


@pytest.fixture
def pausing():
    """A pace that stands in the middle until it is let go."""
    reached, go_on = threading.Event(), threading.Event()

    def pace(offset):
        if offset == UNIT:
            reached.set()
            assert go_on.wait(WAIT_S)

    yield pace, reached, go_on
    go_on.set()


def test_who_speaks_without_tls_is_told_so(secured, caplog):
    with RawPeer(secured.url.replace("https", "http")) as peer:
        peer.say(GET)
        status, headers, words = peer.hear("GET")
    assert (status, headers["Connection"]) == (400, "close")
    assert b"https://" in words
    with written() as stream, pytest.raises(PeerRejected, match="https://"):
        SnapshotClient().send_snapshot(secured.url.replace("https", "http"), stream)
    wait_until(lambda: not secured.server._crew.connections)
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 2
    assert secured.names() == []


def test_who_speaks_tls_to_a_plain_port_is_told_so(follower, node, caplog):
    url = follower.url.replace("http", "https")
    with written() as stream, pytest.raises(TransportError, match="without TLS"):
        SnapshotClient(tls=node.client).send_snapshot(url, stream)
    wait_until(lambda: not follower.server._crew.connections)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert follower.names() == []


def client_hello(context):
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing, server_hostname=HOST).do_handshake()
    return outgoing.read()


def stalled(hello):
    """What a peer says before it falls silent: nothing, and a handshake cut at some places."""
    return [b"", hello[:1], hello[:5], hello[:-1], hello]


def test_a_handshake_that_stalls_anywhere_is_cut_and_its_place_is_free_again(tmp_path, node, caplog):
    options = {
        "tls": node.server,
        "deadlines": Deadlines(head_timeout_s=SHORT_S),
        "connections_max": 1,
    }
    with Follower(tmp_path / "follower", **options) as follower:
        for said in stalled(client_hello(node.client)):
            caplog.clear()
            with RawPeer(follower.url.replace("https", "http")) as peer:
                peer.say(said)
                peer.hear_all()
                wait_until(lambda: not follower.server._crew.connections)
            (record,) = caplog.records
            assert "no TLS handshake within 0.15 s" in record.message
        with written() as stream:
            assert SnapshotClient(tls=node.client).send_snapshot(follower.url, stream).index == 7


def test_a_handshake_that_drips_is_cut_in_time(tmp_path, node):
    """The deadline is for the whole handshake, not for each byte of it."""
    hello = client_hello(node.client)
    with (
        Follower(
            tmp_path / "follower", tls=node.server, deadlines=Deadlines(head_timeout_s=SHORT_S)
        ) as follower,
        RawPeer(follower.url.replace("https", "http")) as peer,
    ):
        peer.socket.settimeout(SHORT_S / len(hello) * 10)
        ended = False
        for byte in hello[:-1]:
            with contextlib.suppress(ConnectionError):
                peer.say(bytes([byte]))
                with contextlib.suppress(TimeoutError):
                    peer.socket.recv(1)
                    ended = True
                    break
        assert ended


def test_a_peer_that_leaves_in_the_handshake_leaves_nothing(secured, node, caplog):
    hello = client_hello(node.client)
    for said in stalled(hello):
        caplog.clear()
        with RawPeer(secured.url.replace("https", "http")) as peer:
            peer.say(said)
            peer.end()
            peer.hear_all()
        wait_until(lambda: not secured.server._crew.connections)
        assert [record.levelname for record in caplog.records] == ["WARNING"]


@pytest.mark.parametrize("behave", ["leaves", "stalls", "leaves later"])
def test_a_server_that_fails_in_the_handshake_or_behind_it_is_an_error_of_ours(node, behave):
    def server(connection):
        if behave == "leaves":
            connection.recv(1)
        elif behave == "stalls":
            while connection.recv(1024):
                pass
        else:
            with contextlib.suppress(OSError), node.server.wrap_socket(connection, server_side=True) as tls:
                tls.recv(1)

    deadlines = Deadlines(connect_timeout_s=SHORT_S if behave == "stalls" else WAIT_S)
    client = SnapshotClient(tls=node.client, deadlines=deadlines)
    with Impostor(server) as impostor, pytest.raises(TransportError):
        client.list(impostor.url.replace("http", "https"))


def test_a_connection_and_its_handshake_share_one_budget(node, monkeypatch):
    clock = FakeClock()

    def slow(address, timeout_s):
        clock.advance(timeout_s - SHORT_S)
        return connect(address, timeout_s)

    monkeypatch.setattr("snapstore.transport.dial.connect", slow)
    monkeypatch.setattr("snapstore.transport.dial.time", clock)
    client = SnapshotClient(tls=node.client)
    silent = Impostor(lambda connection: connection.recv(65536) and connection.recv(1))
    with silent, pytest.raises(PeerUnreachable, match=f"no TLS handshake within {SHORT_S:g} s"):
        client.list(silent.url.replace("http", "https"))


def test_an_untrusting_connect_gets_no_byte_of_http(secured, node):
    """What a scanner sees that has no certificate: an alert, and no word of ours."""
    with connect(parse_url(secured.url), WAIT_S) as raw:
        tls = bare_context(node).wrap_socket(raw, server_hostname=HOST)
        with tls:
            tls.sendall(GET)
            with pytest.raises(ssl.SSLError, match="CERTIFICATE_REQUIRED"):
                tls.recv(1)
