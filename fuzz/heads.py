"""Heads of requests and of answers: the same however the bytes come, within the limits, or refused."""

from __future__ import annotations

from collections.abc import Iterator
from http import HTTPStatus

from fuzz.peers import Pieces
from snapstore import _fastpipe
from snapstore.transport.heads import Call, Head, HeadMalformed, read_request, response_head

#: No time passes in a head that lies in memory.
_TIMEOUT_S = 60.0

#: Long enough for the method and the target to be cut anywhere, short enough to leave most to the head.
_SIZES = 4


def check(data: bytes) -> bool:
    """The first byte: the answer to which request, or a request; the next four: sizes of pieces."""
    kind, sizes, wire = data[:1], data[1 : 1 + _SIZES], data[1 + _SIZES :]
    whole = _outcome(kind, wire, b"\xff")
    assert _outcome(kind, wire, sizes) == whole
    if kind == b"\0":  # Of a next request something may have come along with the last.
        assert _outcome(kind, wire, sizes, (sizes[0] if sizes else 0) % (len(wire) + 1)) == whole
    return isinstance(whole, tuple)


def _outcome(kind: bytes, wire: bytes, sizes: bytes, kept: int = 0) -> object:
    """The head and all that follows it, or what was raised."""
    with Pieces(wire[kept:], sizes) as peer:
        try:
            heads = list(_heads(kind, peer, wire[:kept]))
        except (HeadMalformed, ConnectionError) as error:
            return type(error)
        return (*map(_checked, heads), heads[-1].kept + peer.left) if heads else None


def _heads(kind: bytes, peer: Pieces, kept: bytes) -> Iterator[Head]:
    """Yield a request's head, or that of the answer to one, and of "go on" before it."""
    if kind == b"\0":
        head = read_request(peer, kept, _TIMEOUT_S)  # type: ignore[arg-type]
        if head is not None:
            yield head
        return
    call = Call("HEAD" if kind == b"\1" else "PUT", "/", [("Host", "a")])
    head = call.read_answer(peer, _TIMEOUT_S, or_continue=kind == b"\2")  # type: ignore[arg-type]
    yield head
    if head.status == HTTPStatus.CONTINUE:
        yield call.read_answer(peer, _TIMEOUT_S)  # type: ignore[arg-type]


def _checked(head: Head) -> object:
    assert head.body_length is None or 0 <= head.body_length <= _fastpipe.SIZE_MAX
    assert not {"content-length", "transfer-encoding"} <= head.headers.keys()
    assert "\r" not in head.target
    assert "\n" not in head.target
    return head.headers, head.method, head.target, head.status, head.keep_alive


def seeds() -> dict[str, bytes]:
    """What peers of ours say, what curl says, and what is meant to be read twice."""
    request = b"\0\x09\xff\x01\x03"
    put = b"PUT /v1/snapshots/7 HTTP/1.1\r\nHost: a:1\r\nContent-Length: 3\r\n"
    return {
        "good-put": request + put + b"Expect: 100-continue\r\nSnapstore-Term: 3\r\n\r\nabc",
        "good-get": request + b"GET / HTTP/1.0\r\n\r\n",
        "good-chunked": request + b"PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "good-answer": b"\3\x20\x01\xff\x02" + response_head(201, [("Content-Length", "2")]) + b"{}",
        "good-continue": b"\2\x02\x01\xff\x02" + response_head(100, []) + response_head(200, []),
        "bad-both": request + put + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "bad-twice": request + put + b"Snapstore-Term: 3\r\nSnapstore-Term: 4\r\n\r\nabc",
        "bad-length": request + put.replace(b"3", b"18446744073709551616") + b"\r\n",
    }
