"""Bodies off a socket: the same however they come, and never other bytes than another reader sees.

The other reader is h11: where it takes a body that we take, it must be the same one, or a second
message could be smuggled past one of the two.
"""

from __future__ import annotations

import h11

from fuzz.peers import peer_that_sent
from snapstore import _fastpipe
from snapstore.errors import SnapshotCorrupt

#: What a socket's buffer surely has room for.
_WIRE_MAX = 64 * 1024


def check(data: bytes) -> bool:
    """Two bytes: the length, or 0xffff for the chunked coding; two more: how it is read."""
    length = int.from_bytes(data[:2], "big")
    wire = data[4 : 4 + _WIRE_MAX]
    expected = _outcome(wire, length, 0, 4096)
    split = data[2] if len(data) > 2 else 0
    size = 1 + (data[3] if len(data) > 3 else 0)
    assert _outcome(wire, length, split % (len(wire) + 1), size) == expected
    assert _outcome(wire, length, len(wire), size) == expected
    if not isinstance(expected, bytes):
        return False
    if length != 0xFFFF:
        assert expected == wire[:length]
    elif (other := _by_h11(wire)) is not None:
        assert expected == other
    return True


def _outcome(wire: bytes, length: int, kept: int, read_size: int) -> object:
    """The whole body, or what was raised."""
    pieces, buffer = [], bytearray(read_size)
    with peer_that_sent(wire[kept:]) as fd:
        body = _fastpipe.Body(fd, wire[:kept], None if length == 0xFFFF else length)
        try:
            while count := body.readinto(buffer):
                pieces.append(bytes(buffer[:count]))
        except SnapshotCorrupt as error:  # SnapshotTruncated is one.
            return type(error)
        assert body.ended
        assert length == 0xFFFF or body.leftover == wire[length:kept]
    return b"".join(pieces)


def _by_h11(wire: bytes) -> bytes | None:
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(b"PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + wire)
    pieces = []
    try:
        while not isinstance(event := connection.next_event(), h11.EndOfMessage):
            if event is h11.NEED_DATA:
                return None
            if isinstance(event, h11.Data):
                pieces.append(bytes(event.data))
    except h11.RemoteProtocolError:
        return None
    return b"".join(pieces)


def seeds() -> dict[str, bytes]:
    """Bodies with a length and in chunks, with what makes readers differ."""
    chunked = b"\xff\xff\x03\x02"
    return {
        "good-sized": b"\0\5\2\1hellonext",
        "good-chunks": chunked
        + b"5\r\nhello\r\n1;n=v\r\n,\r\nA\r\n 012345678\r\n0\r\nTrailer: x\r\n\r\nnext",
        "bad-sized": b"\0\5\2\1hell",
        "bad-line": chunked + b"5\nhello\r\n0\r\n\r\n",
        "bad-size": chunked + b"fffffffffffffffff\r\n",
        "bad-end": chunked + b"5\r\nhelloX\r\n0\r\n\r\n",
    }
