"""Frames inside a body: what is taken is what `send_frames` writes, and it lies in the file."""

from __future__ import annotations

import os
import struct

from fuzz.peers import file_with, peer_that_sent
from fuzz.runs import EXPANDED_MAX, expand, pack
from snapstore import _fastpipe
from snapstore.errors import SnapshotCorrupt, SnapshotTooLarge

_CHUNK_SIZE = _fastpipe.CHUNK_SIZE_MIN
_HEAD = struct.Struct(">4sIQ")
_FOOT = struct.Struct(">I")

#: Bits of the first byte; the fourth and the fifth say how many chunks the receiver has already.
_MENDED, _SIZE_KNOWN, _CHUNKED, _KEPT_SHIFT = 1, 2, 4, 3

#: What an earlier attempt left, of which up to three chunks count.
_LEFT = b"".join(bytes([letter]) * _CHUNK_SIZE for letter in b"abc")


def check(data: bytes) -> bool:
    """A byte of bits, two of the size declared, one of how it is cut, and the frames, with runs."""
    if len(data) < 4:
        return False
    bits, split = data[0], data[3]
    size = int.from_bytes(data[1:3], "big") if bits & _SIZE_KNOWN else None
    kept = min(bits >> _KEPT_SHIFT & 3, 3 if size is None else size // _CHUNK_SIZE) * _CHUNK_SIZE
    wire = expand(data[4:])
    if bits & _MENDED:
        wire = _mended(wire)
    expected = _saved(wire, len(wire), size, kept)
    assert _saved(wire, len(wire), size, kept, split * len(wire) // 255) == expected
    if bits & _CHUNKED:
        step = 64 + split * 16
        pieces = [wire[at : at + step] for at in range(0, len(wire), step)]
        coded = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
        assert _saved(coded, None, size, kept) == expected
    if not isinstance(expected, bytes):
        return False
    unsent = sum(wire.startswith(b"SNPK", number * (_HEAD.size + _FOOT.size)) for number in range(3))
    with file_with(b"") as fd:
        _fastpipe.send_frames(expected, fd, size=size, chunk_size=_CHUNK_SIZE, kept=unsent * _CHUNK_SIZE)
        assert os.pread(fd, len(wire) + 1, 0) == wire
    return True


def _saved(wire: bytes, length: int | None, size: int | None, kept: int, along: int = 0) -> object:
    """The saved bytes, or what was raised and for which chunk; `along` bytes came with the head."""
    with peer_that_sent(wire[along:]) as fd, file_with(_LEFT[:kept]) as target:
        frames = _fastpipe.Frames(_fastpipe.Body(fd, wire[:along], length), chunk_size=_CHUNK_SIZE, size=size)
        try:
            copied = _fastpipe.save(
                frames,
                target,
                size=size,
                size_max=EXPANDED_MAX,
                chunk_size=_CHUNK_SIZE,
                kept=kept,
                direct=False,
            )
        except (SnapshotCorrupt, SnapshotTooLarge) as error:
            return type(error), getattr(error, "chunk", None)
        data = os.pread(target, copied.size, 0)
    assert (len(data), _fastpipe.crc32c(data)) == copied[:2]
    return data


def _mended(wire: bytes) -> bytes:
    """The same frames with their digests made right, which no fuzzer guesses."""
    mended, whole, at = bytearray(wire), 0, 0
    while at + _HEAD.size <= len(wire):
        magic, length, offset = _HEAD.unpack_from(wire, at)
        foot = at + _HEAD.size + (length if magic == b"SNPC" else 0)
        if foot + _FOOT.size > len(wire):
            break
        data = _LEFT[offset : offset + length] if magic == b"SNPK" else wire[at + _HEAD.size : foot]
        whole = _fastpipe.crc32c(data, whole)
        _FOOT.pack_into(mended, foot, whole if magic == b"SNPE" else _fastpipe.crc32c(data))
        at = foot + _FOOT.size
    return bytes(mended)


def framed(data: bytes, kept: int = 0) -> bytes:
    """Return the frames of `data`, as written down, apart from the core; its first `kept` bytes unsent."""
    pieces = []
    for at in range(0, len(data), _CHUNK_SIZE):
        chunk = data[at : at + _CHUNK_SIZE]
        pieces += [_HEAD.pack(b"SNPK" if at < kept else b"SNPC", len(chunk), at), b"" if at < kept else chunk]
        pieces += [_FOOT.pack(_fastpipe.crc32c(chunk))]
    return b"".join([*pieces, _HEAD.pack(b"SNPE", 0, len(data)), _FOOT.pack(_fastpipe.crc32c(data))])


def seeds() -> dict[str, bytes]:
    """Snapshots of no, one and three chunks, one that goes on from two, and what is wrong with some."""
    data = _LEFT[: 2 * _CHUNK_SIZE] + b"end"
    size = len(data).to_bytes(2, "big")
    known = bytes([_MENDED | _SIZE_KNOWN, *size, 9])
    unknown = bytes([_MENDED | _CHUNKED, 0, 0, 200])
    plain = bytes([0, 0, 0, 3])
    resumed = bytes([_MENDED | _SIZE_KNOWN | 2 << _KEPT_SHIFT, *size, 0])
    return {
        "good-known": known + pack(framed(data)),
        "good-chunked": unknown + pack(framed(data)),
        "good-empty": plain + pack(framed(b"")),
        "good-small": plain + pack(framed(b"small")),
        "good-resumed": resumed + pack(framed(data, 2 * _CHUNK_SIZE)),
        "good-half-resumed": resumed + pack(framed(data, _CHUNK_SIZE)),
        "bad-digest": plain + pack(framed(b"small")).replace(b"small", b"smell"),
        "bad-order": unknown + pack(framed(data)[4116:]),
        "bad-end": known + pack(framed(data)[:-20]),
        "bad-more": known + pack(framed(data + b"!")),
        "bad-resumed": known + pack(framed(data, 2 * _CHUNK_SIZE)),
        "bad-kept": bytes([1 << _KEPT_SHIFT, 0, 0, 0]) + pack(framed(b"x" * _CHUNK_SIZE, _CHUNK_SIZE)),
    }
