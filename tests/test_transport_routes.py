"""Requests that a part above the transport answers: what it is given, and what becomes of the line."""

import contextlib
import socket

import pytest

from nodes import RawPeer
from snapstore import _fastpipe
from snapstore.directory import SnapshotDir
from snapstore.errors import PeerRejected
from snapstore.transport.http import SnapshotServer

TOKEN = "a-token-of-sixteen"


def read_all(exchange):
    data, piece = b"", bytearray(1000)
    while count := exchange.body.readinto(piece):
        data += piece[:count]
    return data


@pytest.fixture
def serve(nothing_lost, tmp_path):
    """Starts a server with routes; its URL."""
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(SnapshotDir(tmp_path / "stored"))

        def start(routes, **options):
            server = SnapshotServer(directory, "127.0.0.1:0", routes=routes, **options)
            return stack.enter_context(server).url

        yield start


def request(target, *, method="POST", body=b"", length=None, more=""):
    size = len(body) if length is None else length
    return f"{method} {target} HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\n{more}\r\n".encode() + body


def test_a_route_answers_at_its_path_and_below(serve):
    def echo(exchange):
        exchange.respond(200, exchange.head.target.encode() + b" " + read_all(exchange), [("X-Y", "z")])

    with RawPeer(serve({"/echo": echo})) as peer:
        for target in ("/echo", "/echo/", "/echo/a/b", "/echo?q=1"):
            peer.say(request(target, body=b"said"))
            status, headers, body = peer.hear("POST")
            assert (status, headers["X-Y"], body) == (200, "z", target.encode() + b" said")
        peer.say(request("/healthz", method="GET"), request("/echo", body=b"again"))
        assert peer.hear("GET")[2] == b"ok\n"
        assert peer.hear("POST")[2] == b"/echo again"
        peer.say(request("/echoes", method="GET"))
        assert peer.hear("GET")[0] == 404


def test_the_answer_to_head_has_no_body(serve):
    with RawPeer(serve({"/r": lambda exchange: exchange.respond(200, b"body")})) as peer:
        peer.say(request("/r", method="HEAD"), request("/r", method="GET"))
        status, headers, body = peer.hear("HEAD")
        assert (status, headers["Content-Length"], body) == (200, "4", b"")
        assert peer.hear("GET")[2] == b"body"


def test_what_is_left_unread_ends_the_line(serve):
    with RawPeer(serve({"/r": lambda exchange: exchange.respond(204)})) as peer:
        peer.say(request("/r"), request("/r", body=b"unread"), request("/r"))
        assert peer.hear("POST")[1]["Connection"] is None
        assert peer.hear("POST")[1]["Connection"] == "close"
        peer.end()
        assert peer.hear_all() == b""


def test_an_answer_that_does_not_end(serve):
    def endless(exchange):
        exchange.respond_endless(200, [("X-Y", "z")])
        exchange.send(b"first, ")
        assert exchange.wait_hangup(0) is False
        exchange.send(b"last")

    with RawPeer(serve({"/r": endless})) as peer:
        peer.say(request("/r", method="GET"))
        status, headers, body = peer.hear("GET")
        assert (status, headers["X-Y"], headers["Connection"], body) == (200, "z", "close", b"first, last")


def test_a_route_sees_that_its_peer_hangs_up(serve):
    seen = []

    def wait(exchange):
        seen.append(exchange.wait_hangup(20))
        exchange.respond(204)

    with RawPeer(serve({"/r": wait})) as peer:
        peer.say(request("/r"))
        peer.end()
        assert peer.hear("POST")[0] == 204
    assert seen == [True]


def test_a_body_is_asked_for_where_it_is_wanted(serve):
    def ask(exchange):
        exchange.go_on()
        exchange.respond(200, read_all(exchange))

    with RawPeer(serve({"/r": ask})) as peer:
        peer.say(request("/r", length=4, more="Expect: 100-continue\r\n"))
        peer.hear_continue()
        peer.say(b"said")
        assert peer.hear("POST")[2] == b"said"


def test_a_route_that_fails(serve):
    def reject(exchange):
        raise PeerRejected(418, "no coffee here")

    def fail(exchange):
        raise RuntimeError("a fault of its own")

    def leave(exchange):
        raise ConnectionError("not worth an answer")

    url = serve({"/reject": reject, "/fail": fail, "/leave": leave})
    with RawPeer(url) as peer:
        peer.say(request("/reject"))
        assert peer.hear("POST")[0] == 418
    with RawPeer(url) as peer:
        peer.say(request("/fail"))
        status, _, body = peer.hear("POST")
        assert status == 500
        assert b"a fault" not in body
    with RawPeer(url) as peer:
        peer.say(request("/leave"))
        assert peer.hear_all() == b""


def test_a_token_is_for_routes_too(serve):
    with RawPeer(serve({"/r": lambda exchange: exchange.respond(204)}, token=TOKEN)) as peer:
        peer.say(request("/r", more=f"Authorization: Bearer {TOKEN}\r\n"), request("/r"))
        assert peer.hear("POST")[0] == 204
        assert peer.hear("POST")[0] == 401


@pytest.mark.parametrize("path", ["", "/", "raft", "/raft/", "/v1", "/v1/x", "/healthz", "/metrics", "//"])
def test_paths_that_are_not_to_be_had(tmp_path, nothing_lost, path):
    with SnapshotDir(tmp_path) as directory, pytest.raises(ValueError, match="a route is a path"):
        SnapshotServer(directory, routes={path: print})


# What a route may do with a body's first bytes: look, and put them back.


@pytest.fixture
def line():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


@pytest.mark.parametrize(
    ("length", "sent"), [(10, b"0123456789"), (None, b"6\r\n012345\r\n4\r\n6789\r\n0\r\n\r\n")]
)
@pytest.mark.parametrize("looked", [1, 6, 8, 10])
def test_bytes_that_are_put_back_come_again(line, tmp_path, length, sent, looked):
    ours, theirs = line
    theirs.sendall(sent + b"next")
    theirs.shutdown(socket.SHUT_WR)
    body = _fastpipe.Body(ours.fileno(), b"", length)
    piece, seen = bytearray(looked), b""
    while len(seen) < looked:
        count = body.readinto(memoryview(piece)[: looked - len(seen)])
        seen += piece[:count]
    body.put_back(seen)
    assert not body.ended
    with SnapshotDir(tmp_path) as directory:
        saved = directory.save_from(body, 1, size=10)
        assert saved.path.read_bytes() == b"0123456789"
    assert body.ended


def test_nothing_is_put_back_twice(line):
    body = _fastpipe.Body(line[0].fileno(), b"", 0)
    assert body.ended
    body.put_back(b"ab")
    with pytest.raises(ValueError, match="2 bytes that were put back"):
        body.put_back(b"c")
    piece = bytearray(1)
    assert body.readinto(piece) == 1
    with pytest.raises(ValueError, match="1 bytes"):
        body.put_back(b"c")
    assert body.readinto(piece) == 1
    assert piece == b"b"
    assert body.ended
    body.put_back(b"")
    assert body.readinto(piece) == 0
    with pytest.raises(TypeError):
        body.put_back(None)
