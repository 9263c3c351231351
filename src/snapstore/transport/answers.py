"""What peers answer: read within bounds, judged, and made fit to be shown."""

from __future__ import annotations

import json
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from snapstore import _fastpipe
from snapstore.errors import ROOM_NUMBERS, PeerRejected, SnapshotCorrupt, TransportError
from snapstore.manifest import digest_text
from snapstore.transport.advice import parse_advice

if TYPE_CHECKING:
    import socket

    from snapstore.transport.heads import Head
    from snapstore.transport.patience import Deadlines
    from snapstore.wire import Offer

#: An answer is a line of JSON; a peer that sends more is not one of ours.
_ANSWER_SIZE_MAX = 1024 * 1024

#: What is passed on of a peer's reason, in characters.
_WORDS_SIZE_MAX = 500

#: Read at a time of an answer; most have less.
_PIECE_SIZE = 16 * 1024

#: What an answer must have; what a newer follower says besides is passed over.
_ANSWER_TYPES: dict[str, type | tuple[type, ...]] = {
    "index": int,
    "size": int,
    "digest": str,
    "existed": bool,
    "sync_s": (int, float),
}


@dataclass(frozen=True, slots=True)
class SentSnapshot:
    """What the follower answered: the snapshot is saved there. `size` in bytes.

    `existed` tells that it was there before and no byte was sent; `sync_s` is what the follower's
    fsyncs took, in seconds; `kept` how many bytes it had of an earlier attempt, which were not sent.
    """

    index: int
    size: int
    digest: str
    existed: bool
    sync_s: float
    kept: int = 0


class Answers:
    """Reads the bodies of answers. A peer that drips is a silent one: TimeoutError. From any thread."""

    def __init__(self, deadlines: Deadlines) -> None:
        self._idle_timeout_s = deadlines.idle_timeout_s
        self._rate_min = deadlines.rate_min

    def read_all(self, sock: socket.socket, head: Head, size_max: int) -> bytes:
        """Return the whole body behind `head`; TransportError beyond `size_max` bytes."""
        body = _fastpipe.Body(sock.fileno(), head.kept, head.body_length)
        data = bytearray()
        piece = bytearray(min(size_max + 1, _PIECE_SIZE))  # One more than allowed is seen.
        try:
            while not body.ended:
                count = body.readinto(piece, idle_timeout_s=self._idle_timeout_s, rate_min=self._rate_min)
                data += memoryview(piece)[:count]
                if len(data) > size_max:
                    raise TransportError(f"the peer's answer has more than {size_max} bytes, the limit")
        except SnapshotCorrupt as error:
            raise TransportError("the peer's answer broke off, or is malformed") from error
        return bytes(data)

    def read_json(self, sock: socket.socket, head: Head) -> dict[str, Any]:
        """Return the object in the body; what is none counts as somebody's words."""
        text = self.read_all(sock, head, _ANSWER_SIZE_MAX)
        try:
            fields = json.loads(text)
        except (ValueError, RecursionError):
            fields = None
        if isinstance(fields, dict):
            return fields
        return {"error": text[:200].decode("utf-8", "replace") or "no reason given"}

    def read_sent(self, sock: socket.socket, answer: Head, offer: Offer, kept: int = 0) -> SentSnapshot:
        """Return what the follower says of `offer`; PeerRejected where it says no."""
        if answer.status not in (HTTPStatus.OK, HTTPStatus.CREATED):
            raise self.read_rejection(sock, answer)
        fields = self.read_json(sock, answer)
        known: dict[str, Any] = {name: fields.get(name) for name in _ANSWER_TYPES}
        if known["index"] != offer.meta.index or not all(
            isinstance(value, _ANSWER_TYPES[name]) for name, value in known.items()
        ):
            raise TransportError(f"the peer's answer is not one to this offer: {shown(str(fields))}")
        return SentSnapshot(**known, kept=kept)

    def read_rejection(self, sock: socket.socket, head: Head) -> PeerRejected:
        """Return the peer's no, with its reason."""
        fields = self.read_json(sock, head)
        reason = shown(str(fields.get("error", "no reason given")))
        return PeerRejected(
            head.status,
            reason,
            parse_advice(head.headers),
            {name: fields[name] for name in ROOM_NUMBERS if isinstance(fields.get(name), int)},
        )


def believed(url: str, sent: SentSnapshot, copied: _fastpipe.Copied | None) -> SentSnapshot:
    """Return `sent` where the follower can have that from what it was sent, in `copied`."""
    # Where it exists, another sender was quicker, and whose bytes are there is not our concern.
    if not sent.existed and (copied is None or sent.digest != digest_text(copied.digest)):
        raise TransportError(f"{url} claims to have saved what it was not sent: {sent}")
    return sent


def shown(words: str) -> str:
    """Return what a peer said as people may be shown it: they read logs and terminals."""
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in words[:_WORDS_SIZE_MAX])
