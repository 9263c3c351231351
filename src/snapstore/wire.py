"""What a leader offers and a follower answers, as text and bytes. No sockets, no files, no clocks.

The native push is one HTTP request. Its head is the offer; its body, once the follower said "go on",
is at most one data frame and then the chunk frames that the C core writes and verifies
(`_native/body.pxi`), closed by a frame with the digest of the whole.
"""

from __future__ import annotations

import base64
import json
import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from snapstore import _fastpipe
from snapstore.errors import SnapshotCorrupt, SnapshotTruncated
from snapstore.manifest import DIGEST_ALGORITHM, Manifest, digest_text
from snapstore.meta import META_DATA_SIZE_MAX, ConfState, SnapshotMeta, check_index

#: Spoken by both sides, or the offer is refused: it names the frames and the headers below.
PROTOCOL = "1"

CONTENT_TYPE = "application/vnd.snapstore.frames"

#: A head with everything an offer has stays far below; proxies grant between 8 and 64 KiB.
HEAD_SIZE_MAX = 64 * 1024

#: A raft message that announces a snapshot holds its metadata alone: some ten bytes for each member.
MESSAGE_SIZE_MAX = 16 * 1024

#: One head and one foot for each chunk, and as much for the closing frame.
_FRAME_OVERHEAD = 20

_DATA_HEAD = struct.Struct(">4sIQ")
_DATA_FOOT = struct.Struct(">I")
_DATA_MAGIC = b"SNPD"

_OFFSET = "Snapstore-Offset"

_CLUSTER = re.compile(r"[!-~]{0,128}\Z")
_NUMBER = re.compile(r"[0-9]{1,20}\Z")
_RANGE = re.compile(r"bytes=([0-9]{0,20})-([0-9]{0,20})\Z")


class OfferMalformed(ValueError):
    """An offer's head is not as agreed; the text names the header."""


def check_cluster(cluster: str) -> str:
    """Return `cluster`, a cluster's name: up to 128 printable ASCII characters without spaces."""
    if not _CLUSTER.match(cluster):
        raise ValueError(f"a cluster's name has up to 128 printable ASCII characters, not {cluster!r}")
    return cluster


@dataclass(frozen=True, slots=True)
class Offer:
    """What a sender says before any byte. `size` and `chunk_size` in bytes; `size` None: not known.

    `data_size` is how many bytes of `meta.data` open the body: they are no part of the head, and a
    parsed offer has none of them yet.

    `message` is the raft message that goes with the snapshot, unread here, `MESSAGE_SIZE_MAX` bytes at
    most. It is of one sender to one receiver, and no part of what is saved: it comes with each attempt,
    also where the snapshot is stored already.
    """

    meta: SnapshotMeta
    size: int | None
    chunk_size: int
    cluster: str = ""
    data_size: int = 0
    message: bytes = b""

    def __post_init__(self) -> None:
        if len(self.message) > MESSAGE_SIZE_MAX:
            raise ValueError(f"message has {len(self.message)} bytes, the limit is {MESSAGE_SIZE_MAX}")

    @property
    def body_size(self) -> int | None:
        """The length of a body that repeats nothing, in bytes; None where the size is not known."""
        if self.size is None:
            return None
        chunks = -(-self.size // self.chunk_size)
        data = _FRAME_OVERHEAD + self.data_size if self.data_size else 0
        return data + self.size + _FRAME_OVERHEAD * (chunks + 1)

    def headers(self) -> list[tuple[str, str]]:
        """Return the head's fields.

        The body's length is not among them: it turns on how much the follower kept of an earlier
        attempt, which it says when the head is gone.
        """
        fields = [
            ("Content-Type", CONTENT_TYPE),
            ("Snapstore-Protocol", PROTOCOL),
            ("Snapstore-Digest", DIGEST_ALGORITHM),
            ("Snapstore-Chunk-Size", str(self.chunk_size)),
            *meta_headers(self.meta),
        ]
        if self.cluster:
            fields.append(("Snapstore-Cluster", self.cluster))
        if self.data_size:
            fields.append(("Snapstore-Data-Size", str(self.data_size)))
        if self.message:
            fields.append(("Snapstore-Message", base64.b64encode(self.message).decode("ascii")))
        if self.size is not None:
            fields.append(("Snapstore-Size", str(self.size)))
        return [*fields, ("Transfer-Encoding", "chunked")]

    @classmethod
    def parse(cls, index: int, headers: Mapping[str, str]) -> Offer:
        """Read an offer's head; names in `headers` are in lower case. Raises OfferMalformed."""
        if headers.get("snapstore-protocol") != PROTOCOL:
            raise OfferMalformed(f"Snapstore-Protocol must be {PROTOCOL}")
        if headers.get("snapstore-digest") != DIGEST_ALGORITHM:
            raise OfferMalformed(f"Snapstore-Digest must be {DIGEST_ALGORITHM}")
        for name in ("Snapstore-Chunk-Size", "Snapstore-Term", "Snapstore-Conf-State"):
            if name.lower() not in headers:  # A default here would become a raft message's term.
                raise OfferMalformed(f"{name} is missing")
        known = "snapstore-size" in headers
        offer = cls(
            SnapshotMeta(index, _number(headers, "snapstore-term"), _conf_state(headers)),
            _number(headers, "snapstore-size", _fastpipe.SIZE_MAX) if known else None,
            _number(headers, "snapstore-chunk-size", _fastpipe.CHUNK_SIZE_MAX),
            headers.get("snapstore-cluster", ""),
            _number(headers, "snapstore-data-size", META_DATA_SIZE_MAX),
            _message(headers),
        )
        if offer.chunk_size < _fastpipe.CHUNK_SIZE_MIN or offer.chunk_size % _fastpipe.CHUNK_SIZE_MIN:
            raise OfferMalformed(f"Snapstore-Chunk-Size must be a multiple of {_fastpipe.CHUNK_SIZE_MIN}")
        if known and headers.get("content-length", str(offer.body_size)) != str(offer.body_size):
            raise OfferMalformed(f"Content-Length must be {offer.body_size} for this offer")
        return offer


def kept_headers(kept: int) -> list[tuple[str, str]]:
    """Return what a "go on" says of the bytes kept of an earlier attempt.

    For these, in whole chunks, the sender may send digests in place of bytes, so that both sides
    know that they have the same.
    """
    return [(_OFFSET, str(kept))] if kept else []


def parse_kept(headers: Mapping[str, str], offer: Offer) -> int:
    """Read what `kept_headers` wrote, for `offer`. Raises OfferMalformed."""
    kept = _number(headers, _OFFSET.lower(), _fastpipe.SIZE_MAX if offer.size is None else offer.size)
    if kept % offer.chunk_size:
        raise OfferMalformed(f"{_OFFSET} must be a multiple of {offer.chunk_size}, not {kept}")
    return kept


def meta_headers(meta: SnapshotMeta) -> list[tuple[str, str]]:
    """Return what a head says of a snapshot's meta; its data is not in it."""
    conf_state = json.dumps(meta.conf_state.to_json(), separators=(",", ":"))
    return [("Snapstore-Term", str(meta.term)), ("Snapstore-Conf-State", conf_state)]


def _number(headers: Mapping[str, str], name: str, number_max: int = 2**64 - 1) -> int:
    text = headers.get(name, "0")
    if not _NUMBER.match(text) or int(text) > number_max:
        raise OfferMalformed(f"{name} must be a number up to {number_max}, not {text!r}")
    return int(text)


def _message(headers: Mapping[str, str]) -> bytes:
    try:
        message = base64.b64decode(headers.get("snapstore-message", ""), validate=True)
    except ValueError as error:
        raise OfferMalformed(f"Snapstore-Message is not base64: {error}") from None
    if len(message) > MESSAGE_SIZE_MAX:
        raise OfferMalformed(f"Snapstore-Message has {len(message)} bytes, the limit is {MESSAGE_SIZE_MAX}")
    return message


def _conf_state(headers: Mapping[str, str]) -> ConfState:
    try:
        return ConfState.from_json(json.loads(headers["snapstore-conf-state"]))
    except (ValueError, TypeError, RecursionError) as error:
        raise OfferMalformed(f"snapstore-conf-state: {error}") from None


def parse_index(text: str) -> int | None:
    """Return the index that a path names in decimal digits; None for anything else."""
    if not _NUMBER.match(text):
        return None
    try:
        return check_index(int(text))
    except ValueError:
        return None


def pack_data(data: bytes) -> bytes:
    """Return the frame that carries a meta's data, or nothing where there is none."""
    if not data:
        return b""
    return _DATA_HEAD.pack(_DATA_MAGIC, len(data), 0) + data + _DATA_FOOT.pack(_fastpipe.crc32c(data))


def read_data(offer: Offer, read_exactly: Callable[[int], bytes]) -> bytes:
    """Read the data frame that `offer` announced; raises SnapshotCorrupt."""
    if not offer.data_size:
        return b""
    if read_exactly(_DATA_HEAD.size) != _DATA_HEAD.pack(_DATA_MAGIC, offer.data_size, 0):
        raise SnapshotCorrupt("the data frame is malformed")
    data = read_exactly(offer.data_size)
    if _DATA_FOOT.unpack(read_exactly(_DATA_FOOT.size))[0] != _fastpipe.crc32c(data):
        raise SnapshotCorrupt("the digest of the data frame is wrong")
    return data


def exact_reader(
    body: _fastpipe.Body, idle_timeout_s: float | None, rate_min: float = 0
) -> Callable[[int], bytes]:
    """Return a function that reads exactly so many bytes of `body`, or raises SnapshotTruncated."""

    def read_exactly(size: int) -> bytes:
        data = bytearray(size)
        view, done = memoryview(data), 0
        while done < size:
            count = body.readinto(view[done:], idle_timeout_s=idle_timeout_s, rate_min=rate_min)
            if count == 0:
                raise SnapshotTruncated(f"the body ended {size - done} bytes early")
            done += count
        return bytes(data)

    return read_exactly


def entity_tag(manifest: Manifest) -> str:
    """Return the ETag of a snapshot's bytes: equal for equal ones, whichever peer has them."""
    return f'"{digest_text(manifest.digest)}-{manifest.size}"'


def parse_range(text: str | None, size: int) -> tuple[int, int] | None:
    """Return (first byte, length) of a `Range` header; None to send all.

    As RFC 9110 has it: several ranges, other units and malformed ones are passed over. Raises
    ValueError for one that lies outside of `size` bytes.
    """
    found = _RANGE.match(text) if text else None
    if not found or found[0] == "bytes=-":
        return None
    first, last = found[1], found[2]
    if not first:
        start, end = max(0, size - int(last)), size
        if int(last) == 0:
            _unsatisfiable(size)
    else:
        start, end = int(first), min(int(last) + 1, size) if last else size
        if last and int(last) < start:
            return None
    if start >= size:
        _unsatisfiable(size)
    return start, end - start


def _unsatisfiable(size: int) -> NoReturn:
    raise ValueError(f"the range lies outside of {size} bytes")


def to_json(fields: dict[str, Any]) -> bytes:
    """Return an answer's body: JSON and a newline, for people with curl."""
    return json.dumps(fields).encode() + b"\n"
