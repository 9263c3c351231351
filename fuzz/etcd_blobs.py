"""What Maintenance.Snapshot brings: taken where a second reader takes it, and then it is those bytes."""

from __future__ import annotations

import hashlib

from snapstore.errors import SnapshotCorrupt, SnapshotTruncated
from snapstore.etcd.blobs import TRAILER_SIZE, Blobs
from snapstore.etcd.messages import MessageMalformed, SnapshotResponse, decode, encode

_MENDED = 1


def check(data: bytes) -> bool:
    """A byte: whether counts and digest are made right; messages, each behind two bytes of its length."""
    try:
        said = [decode(SnapshotResponse, message) for message in _split(data[1:])]
    except MessageMalformed:
        return False
    if data and data[0] & _MENDED:
        _mend(said)
    blobs, came = Blobs(), b""
    try:
        for message in said:
            came += blobs.take(message)
        blobs.end()
    except SnapshotCorrupt as error:
        assert not _is_whole(said)
        if isinstance(error, SnapshotTruncated):
            assert blobs.database_size is None or len(came) < blobs.database_size + TRAILER_SIZE
        return False
    assert _is_whole(said)
    assert came == b"".join(message.blob for message in said)
    assert blobs.received == len(came)
    return True


def _split(data: bytes) -> list[bytes]:
    pieces, at = [], 0
    while at < len(data):
        size = int.from_bytes(data[at : at + 2], "big")
        pieces.append(data[at + 2 : at + 2 + size])
        at += 2 + size
    return pieces


def _is_whole(said: list[SnapshotResponse]) -> bool:
    """The same verdict from all of it at once."""
    if not said:
        return False
    whole = b"".join(message.blob for message in said)
    size, received = said[0].remaining_bytes + len(said[0].blob), 0
    for message in said:
        received += len(message.blob)
        if message.remaining_bytes != max(0, size - received):
            return False
    return len(whole) == size + TRAILER_SIZE and hashlib.sha256(whole[:size]).digest() == whole[size:]


def _mend(said: list[SnapshotResponse]) -> None:
    """Let the last bytes be the digest of the others, and each count be right: no fuzzer guesses those."""
    whole = b"".join(message.blob for message in said)
    size = max(0, len(whole) - TRAILER_SIZE)
    whole = whole[:size] + hashlib.sha256(whole[:size]).digest()[: len(whole) - size]
    at = 0
    for message in said:
        end = at + len(message.blob)
        message.blob, message.remaining_bytes, at = whole[at:end], max(0, size - end), end


def _input(*said: tuple[bytes, int], mended: bool = False) -> bytes:
    pieces = [encode(SnapshotResponse(blob=blob, remaining_bytes=remaining)) for blob, remaining in said]
    return bytes([mended]) + b"".join(len(piece).to_bytes(2, "big") + piece for piece in pieces)


def seeds() -> dict[str, bytes]:
    """A database in three blobs, cut elsewhere too, and what is wrong with some."""
    trailer = hashlib.sha256(b"database").digest()
    start = ((b"data", 4), (b"bas", 1))
    return {
        "good-plain": _input(*start, (b"e", 0), (trailer, 0)),
        "good-cut": _input(*start, (b"e" + trailer[:1], 0), (b"", 0), (trailer[1:], 0)),
        "good-mended": _input(*start, (b"e", 0), (bytes(32), 0), mended=True),
        "bad-digest": _input(*start, (b"e", 0), (bytes(32), 0)),
        "bad-count": _input(*start, (b"e", 1), (trailer, 0)),
        "bad-end": _input(*start, (b"e", 0)),
        "bad-more": _input(*start, (b"e", 0), (trailer, 0), (b"!", 0)),
        "bad-promise": _input((b"d", 2**64 - 1)),
    }
