"""Long runs of one byte in short inputs. Bytes in, bytes out.

Pages and chunks have thousands of bytes, most of them alike, and a fuzzer that has to carry them
changes what means nothing. In an input `MARK`, a byte and a count (big-endian, two bytes) stand for
that byte so many times; all other bytes stand for themselves.
"""

from __future__ import annotations

import re

MARK = b"\xff\xfe"

#: Sixteen pages of 4 KiB, or as many chunks of the smallest kind: enough for a tree and its free pages.
EXPANDED_MAX = 64 * 1024

#: A shorter run is shorter as it is.
_RUN = re.compile(rb"(.)\1{5,65534}|\xff\xfe", re.DOTALL)


def expand(data: bytes) -> bytes:
    """Return what `data` stands for, cut at `EXPANDED_MAX` bytes."""
    pieces, size, at = [], 0, 0
    while at < len(data) and size < EXPANDED_MAX:
        end = data.find(MARK, at)
        if end == at and len(data) - at >= 5:
            piece = data[at + 2 : at + 3] * int.from_bytes(data[at + 3 : at + 5], "big")
            at += 5
        else:
            end = end if end > at else len(data)
            piece, at = data[at:end], end
        pieces.append(piece)
        size += len(piece)
    return b"".join(pieces)[:EXPANDED_MAX]


def pack(data: bytes) -> bytes:
    """Return the input that stands for `data`."""

    def packed(found: re.Match[bytes]) -> bytes:
        if found[0] == MARK:
            return MARK + b"\xff\0\x01" + MARK[1:]
        return MARK + found[0][:1] + len(found[0]).to_bytes(2, "big")

    return _RUN.sub(packed, data)
