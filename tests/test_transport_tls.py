"""Snapshots over TLS: all is as it is without, for us, for curl, and for peers that break off."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import ssl
import subprocess
import threading

import pytest

from nodes import (
    CONTENT,
    META,
    UNIT,
    WAIT_S,
    Follower,
    RawPeer,
    endless,
    frames,
    push,
    put_head,
    reset_at_close,
    wait_until,
    written,
)
from snapstore.directory import SnapshotDir
from snapstore.errors import PeerRejected, PeerUnreachable
from snapstore.transport.address import parse_url
from snapstore.transport.http import SnapshotClient, SnapshotServer
from snapstore.transport.patience import Deadlines
from snapstore.wire import Offer

#: A short time that a test has to wait out.
SHORT_S = 0.15

HOST = "127.0.0.1"

GET = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"

pytestmark = pytest.mark.usefixtures("nothing_lost")


class TlsPeer(RawPeer):
    """A peer that says exactly what a test lets it say, through Python's own TLS socket."""

    def __init__(self, url, context):
        super().__init__(url.replace("https", "http"))
        self.raw = self.socket
        self._answers.really_close()
        self.socket = context.wrap_socket(self.raw.dup(), server_hostname=parse_url(url).host)
        self._answers = _Answers(self.socket.makefile("rb"))

    def take_leave(self):
        """Say that no more will come, in TLS's words; what comes from there is read on."""
        self.socket.setblocking(False)
        with contextlib.suppress(ssl.SSLError):  # The other side's leave may be late, or behind its answer.
            self.socket.unwrap()
        self.socket.settimeout(WAIT_S)

    def close(self):
        super().close()
        self.raw.close()


class _Answers:
    """A reader that outlives the answers read from it."""

    def __init__(self, file):
        self._file = file
        self.read, self.readline, self.readinto = file.read, file.readline, file.readinto
        self.read1, self.peek, self.flush = file.read1, file.peek, lambda: None

    def close(self):
        pass

    def really_close(self):
        self._file.close()


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("size_known", [True, False])
def test_a_snapshot_comes_through_whole(secured, node, tmp_path, version, size_known):
    content, context = os.urandom(9 * 1024 * 1024 + 13), node.client
    context.maximum_version = version
    client = SnapshotClient(tls=context)
    with written(content, size_known=size_known) as stream:
        assert client.send_snapshot(secured.url, stream).size == len(content)
    assert secured.directory.verify(7).path.read_bytes() == content
    assert [entry["index"] for entry in client.list(secured.url)] == [7]
    with SnapshotDir(tmp_path / "fetched") as directory:
        assert client.fetch(secured.url, 7, directory).path.read_bytes() == content
    assert secured.saved == [7]


def test_the_url_says_that_it_is_tls(secured):
    assert secured.url == f"https://{HOST}:{secured.server.address.port}"
    assert parse_url(secured.url) == secured.server.address


def test_the_log_names_the_peer_and_not_our_relay(secured, node, caplog):
    caplog.set_level("INFO")
    with written() as stream:
        SnapshotClient(tls=node.client).send_snapshot(secured.url, stream)
    (record,) = [record for record in caplog.records if "transfer ends direction=in" in record.message]
    assert f" peer={HOST}:" in record.message


def test_garbage_in_the_place_of_records_saves_nothing(secured, node, caplog):
    with TlsPeer(secured.url, node.client) as peer:
        peer.say(put_head())
        peer.hear_continue()
        peer.say(frames()[:-1])
        peer.raw.sendall(b"\x17\x03\x03\x00\x20" + bytes(32))
        wait_until(lambda: not secured.server._crew.connections)
    assert secured.indexes == []


@pytest.mark.parametrize("leave", ["FIN alone", "leave of TLS", "reset"])
def test_a_body_cut_off_saves_nothing(secured, node, leave):
    """TLS's own leave is not needed to see it: frames and lengths tell."""
    for length in (0, 1, UNIT, len(frames()) - 1):
        with TlsPeer(secured.url, node.client) as peer:
            peer.say(put_head())
            peer.hear_continue()
            peer.say(frames()[:length])
            if leave == "leave of TLS":
                peer.take_leave()
                # What comes while OpenSSL says its leave, it throws away, the answer too.
                with contextlib.suppress(ssl.SSLError, ConnectionError):
                    assert peer.hear()[0] == 422
            elif leave == "FIN alone":
                peer.raw.shutdown(socket.SHUT_WR)
                assert peer.hear()[0] == 422
            else:
                reset_at_close(peer.raw)
        wait_until(lambda: not secured.server._crew.connections)
        assert secured.indexes == []


def test_a_half_open_line_still_gets_its_answer(secured, node):
    with TlsPeer(secured.url, node.client) as peer:
        peer.say(put_head(expect=False), frames())
        peer.take_leave()
        assert peer.hear()[0] == 201
    assert secured.indexes == [7]


def test_requests_come_one_after_the_other_on_one_line(secured, node):
    with TlsPeer(secured.url, node.client) as peer:
        peer.say(GET * 3)
        assert [peer.hear("GET")[0] for _ in range(3)] == [200] * 3
        peer.say(put_head(expect=False), frames(), GET)
        assert [peer.hear()[0], peer.hear("GET")[0]] == [201, 200]


def test_a_sender_that_is_refused_in_the_middle_reads_why(tmp_path, node):
    with Follower(tmp_path / "follower", limits={"size_max": 8 * 1024 * 1024}, tls=node.server) as follower:
        for _ in range(5):
            with pytest.raises(PeerRejected) as raised, endless() as stream:
                SnapshotClient(tls=node.client).send_snapshot(follower.url, stream)
            assert raised.value.status == 413
        assert follower.indexes == []


def test_a_peer_that_does_not_read_an_image_is_cut(tmp_path, node):
    with Follower(
        tmp_path / "follower", deadlines=Deadlines(idle_timeout_s=SHORT_S), tls=node.server
    ) as follower:
        follower.directory.save_from(bytes(32 * 1024 * 1024), 7)
        with TlsPeer(follower.url, node.client) as peer:
            peer.say(b"GET /v1/snapshots/7 HTTP/1.1\r\nHost: x\r\n\r\n")
            wait_until(lambda: not follower.server._crew.connections)


def test_an_idle_line_is_closed_with_tls_leave(tmp_path, node):
    with (
        Follower(
            tmp_path / "follower", deadlines=Deadlines(head_timeout_s=SHORT_S), tls=node.server
        ) as follower,
        TlsPeer(follower.url, node.client) as peer,
    ):
        peer.say(GET)
        assert peer.hear("GET")[0] == 200
        assert peer.socket.recv(1) == b""  # A line cut short would raise.


def test_closing_the_server_ends_connections_in_every_state(tmp_path, node):
    with contextlib.ExitStack() as peers, Follower(tmp_path / "follower", tls=node.server) as follower:
        peers.enter_context(RawPeer(follower.url.replace("https", "http")))  # No hello yet.
        idle = peers.enter_context(TlsPeer(follower.url, node.client))
        idle.say(GET)
        assert idle.hear("GET")[0] == 200
        pushing = peers.enter_context(TlsPeer(follower.url, node.client))
        pushing.say(put_head())
        pushing.hear_continue()
        pushing.say(frames()[:-1])


def test_connections_beyond_the_limit_are_cut(tmp_path, node):
    with Follower(tmp_path / "follower", connections_max=1, tls=node.server) as follower:
        with TlsPeer(follower.url, node.client) as peer:
            peer.say(GET)
            assert peer.hear("GET")[0] == 200
            with pytest.raises(PeerUnreachable):
                SnapshotClient(tls=node.client).list(follower.url)
        wait_until(lambda: not follower.server._crew.connections)
        assert SnapshotClient(tls=node.client).list(follower.url) == []


def test_without_a_thread_for_the_relay_there_is_no_line_and_nothing_is_left(secured, node, monkeypatch):
    start = threading.Thread.start

    def refuse(thread):
        if thread.name == "snapstore-tls":
            raise RuntimeError("can't start new thread")
        start(thread)

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        with pytest.raises(PeerUnreachable, match="thread"):
            SnapshotClient(tls=node.client).list(secured.url)
    wait_until(lambda: not secured.server._crew.connections)
    assert SnapshotClient(tls=node.client).list(secured.url) == []


def test_an_interrupted_sender_is_free_at_once(secured, node):
    """Whatever is still on its way is thrown away: a peer that takes nothing must not hold us."""

    class Interruption(Exception):
        pass

    def pace(offset):
        if offset:
            raise Interruption

    with written(os.urandom(4 * UNIT), pace=pace) as stream, pytest.raises(Interruption):
        SnapshotClient(tls=node.client).send_snapshot(secured.url, stream, chunk_size=UNIT)
    wait_until(lambda: not secured.server._crew.connections)
    assert secured.indexes == []


def test_tls_in_the_wrong_place_is_a_value_error(tmp_path, node):
    with SnapshotDir(tmp_path / "stored") as directory:
        with pytest.raises(ValueError, match="server's side"):
            SnapshotServer(directory, tls=node.client)
        with pytest.raises(ValueError, match="HOST:PORT"):
            SnapshotServer(directory, f"unix:{tmp_path}/s", tls=node.server)
    with pytest.raises(ValueError, match="needs tls="):
        SnapshotClient().list("https://127.0.0.1:1")
    with pytest.raises(ValueError, match="should it be https"):
        SnapshotClient(tls=node.client).list("http://192.0.2.1:1")


def test_local_peers_without_tls_are_spoken_to_by_a_client_that_has_it(follower, node):
    assert push(follower, written(), tls=node.client).index == META.index
    assert follower.directory.verify(7).size == len(CONTENT)


# Curl, which shares no code with us.


@pytest.fixture
def curl(node, tmp_path):
    program = shutil.which("curl")
    if program is None:
        pytest.skip("TLS WITH CURL IS NOT TESTED: it is not installed")
    certificates = ("--cacert", node.ca, "--cert", node.cert, "--key", node.key)

    def run(*arguments, certificates=certificates):
        """Its exit code and what it put out, without the user's settings or proxies."""
        quiet = (program, "-q", "-sS", "--noproxy", "*", "--max-time", str(WAIT_S))
        done = subprocess.run([*quiet, *certificates, *arguments], capture_output=True, check=False)
        return done.returncode, done.stdout

    return run


def test_curl_pushes_and_fetches_with_a_certificate(secured, curl, tmp_path):
    content = os.urandom(2 * 1024 * 1024 + 1)
    (tmp_path / "body").write_bytes(frames(content))
    fields = [f"{name}: {value}" for name, value in Offer(META, len(content), UNIT).headers()]
    own = ("Content-Length", "Transfer-Encoding")  # Those it finds by itself.
    headers = [part for field in fields if not field.startswith(own) for part in ("-H", field)]
    url = f"{secured.url}/v1/snapshots/7"
    code, said = curl("-T", tmp_path / "body", *headers, url)
    assert (code, json.loads(said)["size"]) == (0, len(content))
    assert curl(url) == (0, content)
    assert curl("-r", "100-199", url) == (0, content[100:200])
    assert curl(f"{secured.url}/healthz", f"{secured.url}/healthz") == (0, b"ok\nok\n")


def test_curl_without_a_certificate_gets_no_byte(secured, curl, node):
    code, said = curl(f"{secured.url}/healthz", certificates=("--cacert", node.ca))
    assert (code != 0, said) == (True, b"")
