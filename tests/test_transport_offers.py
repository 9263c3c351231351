"""Offers as raw heads: every header missing or wrong, wrong methods, wrong codings, heads too long."""

from __future__ import annotations

import pytest

from nodes import CONTENT, Follower, RawPeer, frames, put_head
from snapstore.meta import META_DATA_SIZE_MAX
from snapstore.wire import HEAD_SIZE_MAX

pytestmark = pytest.mark.usefixtures("nothing_lost")


@pytest.fixture
def follower(tmp_path):
    with Follower(tmp_path / "follower") as follower:
        yield follower
        assert follower.names() == []


def answer_to(follower, *parts, method="PUT"):
    with RawPeer(follower.url) as peer:
        peer.say(*parts)
        return peer.hear(method)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("Snapstore_Protocol", None),
        ("Snapstore_Protocol", "2"),
        ("Snapstore_Digest", None),
        ("Snapstore_Digest", "sha-256"),
        ("Snapstore_Chunk_Size", None),
        ("Snapstore_Chunk_Size", "0"),
        ("Snapstore_Chunk_Size", "4097"),
        ("Snapstore_Chunk_Size", str(2**40)),
        ("Snapstore_Chunk_Size", "-4096"),
        ("Snapstore_Chunk_Size", "4k"),
        ("Snapstore_Term", None),
        ("Snapstore_Term", ""),
        ("Snapstore_Term", str(2**64)),
        ("Snapstore_Term", "1_0"),
        ("Snapstore_Conf_State", None),
        ("Snapstore_Conf_State", ""),
        ("Snapstore_Conf_State", "[]"),
        ("Snapstore_Conf_State", '{"voters":[1.5]}'),
        ("Snapstore_Conf_State", '{"voters":[true]}'),
        ("Snapstore_Conf_State", '{"voters":1}'),
        ("Snapstore_Conf_State", '{"autoleave":true}'),
        ("Snapstore_Conf_State", "[" * 50_000),
        ("Snapstore_Conf_State", "9" * 10_000),
        ("Snapstore_Size", "1"),
        ("Snapstore_Size", "x"),
        ("Snapstore_Size", str(2**63)),
        ("Snapstore_Data_Size", "1"),
        ("Snapstore_Data_Size", str(META_DATA_SIZE_MAX + 1)),
        ("Content_Length", "1"),
        ("Content_Length", "-1"),
        ("Content_Length", "1, 2"),
        ("Content_Length", "0x10"),
    ],
)
def test_a_header_that_is_missing_or_wrong_is_named_before_any_byte(follower, name, value):
    status, _, words = answer_to(follower, put_head(**{name: value}))
    assert status == 400
    assert name.replace("_", "-").lower() in words.decode().lower() or "Content-Length" in words.decode()


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        (b"Content-Length: 5\r\nTransfer-Encoding: chunked", 400),
        (b"Content-Length: 5\r\nContent-Length: 6", 400),
        (b"Snapstore-Term: 3", 400),
        (b"Transfer-Encoding: gzip", 501),
        (b"Transfer-Encoding: gzip, chunked", 501),
        (b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", 501),
        (b"Content-Length: " + b"9" * 19, 400),
        (b"Content-Length: " + b"9" * 5000, 400),
        (b"Content-Length: 9223372036854775808", 400),
        (b"Content-Length : 5", 400),
        (b"X: a\0b", 400),
        (b" folded: 1", 400),
        (b"X: " + b"x" * 2 * HEAD_SIZE_MAX, 431),
        (b"X: y\r\n" * (HEAD_SIZE_MAX // 3), 431),
    ],
    ids=lambda part: part[:40].decode() if isinstance(part, bytes) else str(part),
)
def test_a_head_that_can_be_read_in_two_ways_or_has_no_end_is_refused(follower, lines, status):
    sound = put_head(expect=False, Content_Length=None, Snapstore_Size=None)
    head = sound.removesuffix(b"\r\n") + lines + b"\r\n\r\n"
    answered, headers, _ = answer_to(follower, head)
    assert answered == status
    assert headers["Connection"] == "close"


@pytest.mark.parametrize(
    "line",
    [
        b"\r\n",
        b"hello\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/2.0\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200) + b"\r\n\r\n",
    ],
)
def test_what_is_no_http_1_1_is_refused(follower, line):
    with RawPeer(follower.url) as peer:
        peer.say(line)
        peer.end()
        heard = peer.hear_all()
    assert heard == b"" or heard.startswith(b"HTTP/1.1 4"), heard


@pytest.mark.parametrize(
    "target", ["/", "/v1", "/v1/snapshots", "/v1/snapshots/", "/v1/snapshots/x", "/v1/snapshots/-1"]
)
def test_a_push_to_anything_but_an_index_is_not_found(follower, target):
    head = put_head().replace(b"/v1/snapshots/7", target.encode())
    assert answer_to(follower, head)[0] == 404


def test_a_push_to_what_belongs_to_an_index_is_not_found(follower):
    for part in ("/manifest", "?x", "/../8", f"/{2**64}"):
        head = put_head().replace(b"/snapshots/7", b"/snapshots/7" + part.encode())
        assert answer_to(follower, head)[0] == 404


@pytest.mark.parametrize("method", ["POST", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW"])
def test_other_methods_are_not_allowed(follower, method):
    head = f"{method} /v1/snapshots/7 HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    assert answer_to(follower, head, method=method)[0] == 405


def test_a_get_with_a_body_is_refused(follower):
    head = b"GET /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc"
    assert answer_to(follower, head, method="GET")[0] == 400


def test_a_push_without_a_body_is_no_snapshot(follower):
    status, _, words = answer_to(follower, put_head(expect=False, Content_Length=None))
    assert status == 422
    assert b"ended" in words


@pytest.mark.parametrize("expect", [True, False])
def test_a_push_in_http_1_0_is_saved_without_a_go_on(tmp_path, expect):
    with Follower(tmp_path / "follower") as follower:
        head = put_head(expect=expect).replace(b"HTTP/1.1", b"HTTP/1.0")
        with RawPeer(follower.url) as peer:
            peer.say(head, frames())
            heard = peer.hear_all()  # To its end: an answer in HTTP/1.0 ends the connection.
        assert heard.startswith(b"HTTP/1.1 201")
        assert follower.directory.verify(7).size == len(CONTENT)


def test_a_body_that_is_sent_uninvited_is_saved_and_the_line_goes_on(tmp_path):
    with Follower(tmp_path / "follower") as follower, RawPeer(follower.url) as peer:
        for index in (7, 8):
            peer.say(put_head(index=index, expect=False), frames())
            assert peer.hear()[0] == 201
        peer.say(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert peer.hear("GET")[2] == b"ok\n"
        assert follower.indexes == [7, 8]


def test_pushes_and_gets_that_come_in_one_piece_are_answered_in_order(tmp_path):
    get = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    with Follower(tmp_path / "follower") as follower, RawPeer(follower.url) as peer:
        body = frames()
        chunked = b"%x;extension\r\n%b\r\n0\r\nTrailer: x\r\n\r\n" % (len(body), body)
        head = put_head(index=8, expect=False, Content_Length=None, Transfer_Encoding="chunked")
        peer.say(put_head(expect=False), body, get, head, chunked, get)
        heard = b""
        while heard.count(b"ok\n") < 2:
            heard += peer.socket.recv(65536)
        statuses = [line.split()[1] for line in heard.splitlines() if line.startswith(b"HTTP/1.1")]
        assert statuses == [b"201", b"200", b"201", b"200"]
        assert follower.indexes == [7, 8]
