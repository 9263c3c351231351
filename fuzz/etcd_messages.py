"""etcd's messages, from peers and servers: MessageMalformed, or what is written and read the same again."""

from __future__ import annotations

from fuzz.runs import EXPANDED_MAX, expand, pack
from snapstore.etcd import messages
from snapstore.etcd.messages import (
    MEMBERS_MAX,
    MessageMalformed,
    decode,
    decode_snapshot_message,
    encode,
    raft_message,
    snapshot_message,
    snapshot_meta,
)
from snapstore.meta import ConfState, SnapshotMeta

#: What the first byte chooses from, but for 0, which is the message before a database.
_KINDS = (
    messages.MessageOutline,
    messages.SnapshotResponse,
    messages.StatusResponse,
    messages.AuthenticateResponse,
)

#: A bit of the first byte: the rest says how a message is put together, and is none itself. What is
#: random is no message, and protobuf's own branches do not guide the fuzzer.
_PUT_TOGETHER = 0x80

_NUMBER, _BYTES, _MESSAGE = range(3)


def check(data: bytes) -> bool:
    """The first byte: what the rest is."""
    how, wire = data[0] if data else 0, data[1:]
    kind = (how & ~_PUT_TOGETHER) % (len(_KINDS) + 1)
    if how & _PUT_TOGETHER:
        wire = _together(wire)
    try:
        if kind == 0:
            _check_snapshot(wire)
        else:
            message = encode(decode(_KINDS[kind - 1], wire))
            assert encode(decode(_KINDS[kind - 1], message)) == message
    except MessageMalformed:
        return False
    return True


def _together(plan: bytes) -> bytes:
    """Fields, one after the other: a byte of number and kind, one of size, and what they have, with runs."""
    wire, at = b"", 0
    while at + 2 <= len(plan) and len(wire) <= 2 * EXPANDED_MAX:
        head, content = plan[at], plan[at + 2 : at + 2 + plan[at + 1]]
        at += 2 + plan[at + 1]
        number, kind = head & 15 or 1000, head >> 4 & 3
        if kind == _NUMBER:
            wire += _varint(number << 3) + _varint(int.from_bytes(content[:8], "big"))
        elif kind in (_BYTES, _MESSAGE):
            inside = expand(content) if kind == _BYTES else _together(content)
            wire += _varint(number << 3 | 2) + _varint(len(inside)) + inside
        else:
            wire += content
    return wire


def _varint(number: int) -> bytes:
    septets = []
    while number > 127:
        septets.append(number & 127 | 128)
        number >>= 7
    return bytes([*septets, number])


def _check_snapshot(wire: bytes) -> None:
    message = decode_snapshot_message(wire)
    outline = decode(messages.MessageOutline, wire)
    for name in ("type", "to", "from", "term", "index", "context"):
        assert getattr(message, name) == getattr(outline, name)
    meta = snapshot_meta(message.snapshot)
    state = meta.conf_state
    members = (*state.voters, *state.learners, *state.voters_outgoing, *state.learners_next)
    assert len(members) <= MEMBERS_MAX
    assert encode(decode(messages.Message, encode(message))) == encode(message)
    ours = snapshot_message(meta, to=message.to, sender=getattr(message, "from"), term=message.term)
    assert snapshot_meta(decode(messages.Message, encode(ours)).snapshot) == meta


def _field(number: int, kind: int, content: bytes) -> bytes:
    return bytes([number | kind << 4, len(content)]) + content


def _plan(*, voters: int, data: int, beside: bytes = b"") -> bytes:
    """How a snapshot with so many members and bytes of data is put together."""
    state = _field(1, _MESSAGE, _field(1, _BYTES, pack(b"\1" * voters)))
    metadata = _field(2, _MESSAGE, state + _field(2, _NUMBER, b"\7"))
    snapshot = _field(9, _MESSAGE, _field(1, _BYTES, pack(bytes(data))) + metadata)
    return bytes([_PUT_TOGETHER]) + _field(1, _NUMBER, b"\7") + snapshot + beside


def seeds() -> dict[str, bytes]:
    """A snapshot with all that it can have, one with nothing, and what is refused of either."""
    meta = SnapshotMeta(2**64 - 1, 3, ConfState((1, 2**63), (3,), (4,), (5,), auto_leave=True), b"{}")
    full = encode(snapshot_message(meta, to=1, sender=2**64 - 1, term=3))
    beat = encode(raft_message(messages.MSG_HEARTBEAT, to=1, sender=2, term=3, context=b"read"))
    blob = encode(messages.SnapshotResponse(remaining_bytes=5, blob=b"bytes", version="3.6"))
    status = messages.StatusResponse(header={"revision": 7}, version="3.4.23", dbSize=4096, isLearner=True)
    return {
        "good-full": b"\0" + full,
        "good-bare": b"\0" + bytes.fromhex("08 07  4a 04  12 02 10 09"),
        "good-packed": b"\0" + bytes.fromhex("08 07  4a 0a  12 08  0a 04  0a 02 05 06  10 09"),
        "good-unknown": b"\0" + full + bytes.fromhex("3a 02 20 05  f8 ff 01 01"),
        "good-twice": b"\0" + full + full,
        "good-heartbeat": b"\1" + beat,
        "good-blob": b"\2" + blob,
        "good-status": b"\3" + encode(status),
        "good-together": _plan(voters=MEMBERS_MAX, data=60_000, beside=_field(0, _NUMBER, b"\xff" * 8)),
        "bad-members": _plan(voters=MEMBERS_MAX + 1, data=0),
        "bad-beside": _plan(voters=6, data=9, beside=_field(7, _BYTES, pack(bytes(2**16 - 1)))),
        "good-token": b"\4" + encode(messages.AuthenticateResponse(token="t.1")),
        "bad-cut": b"\0" + full[:-1],
        "bad-text": b"\4\x12\x01\xff",
    }
