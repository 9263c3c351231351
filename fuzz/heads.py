"""Heads of requests and of answers: the same however the bytes come, within the limits, or refused."""

from __future__ import annotations

from fuzz.peers import Pieces
from snapstore import _fastpipe
from snapstore.transport.heads import Head, HeadMalformed, read_request, read_response, response_head

#: No time passes in a head that lies in memory.
_TIMEOUT_S = 60.0

#: Long enough for the method and the target to be cut anywhere, short enough to leave most to the head.
_SIZES = 4


def check(data: bytes) -> bool:
    """The first byte: the answer to which request, or a request; the next four: sizes of pieces."""
    kind, sizes, wire = data[:1], data[1 : 1 + _SIZES], data[1 + _SIZES :]
    whole = _outcome(kind, Pieces(wire, b"\xff"), b"")
    assert _outcome(kind, Pieces(wire, sizes), b"") == whole
    kept = (sizes[0] if sizes else 0) % (len(wire) + 1)
    assert _outcome(kind, Pieces(wire[kept:], sizes), wire[:kept]) == whole
    return isinstance(whole, tuple)


def _outcome(kind: bytes, peer: Pieces, kept: bytes) -> object:
    """The head and all that follows it, or what was raised."""
    head: Head | None
    try:
        if kind == b"\0":
            head = read_request(peer, kept, _TIMEOUT_S)  # type: ignore[arg-type]
        else:
            of = "HEAD" if kind == b"\1" else "PUT"
            head = read_response(peer, kept, _TIMEOUT_S, of=of, or_continue=kind == b"\2")  # type: ignore[arg-type]
    except (HeadMalformed, ConnectionError) as error:
        return type(error)
    if head is None:
        return None
    assert head.body_length is None or 0 <= head.body_length <= _fastpipe.SIZE_MAX
    assert not {"content-length", "transfer-encoding"} <= head.headers.keys()
    assert "\r" not in head.target
    assert "\n" not in head.target
    return head.headers, head.method, head.target, head.status, head.keep_alive, head.kept + peer.left


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
