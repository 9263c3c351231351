"""etcd's messages: their classes, and how a raft message carries what snapstore calls a SnapshotMeta.

Bytes and values. No sockets, no files but our own two `.proto` ones, and no decisions.
"""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from snapstore.etcd.proto import DecodeError, message_classes
from snapstore.meta import META_DATA_SIZE_MAX, ConfState, SnapshotMeta

#: `raftpb.Message.type`, of those that are met here.
MSG_APP, MSG_APP_RESP, MSG_SNAP, MSG_HEARTBEAT, MSG_HEARTBEAT_RESP = 3, 4, 7, 8, 9

#: etcd's clusters have up to a dozen members. A message of the allowed size could name millions, and
#: each becomes an object here.
MEMBERS_MAX = 4096

#: Of a message beside its snapshot's data, in bytes: ids, terms, members. A member's id is one byte on
#: the wire, or more, and takes eight when it is decoded: so this is looked at first.
REST_SIZE_MAX = 64 * 1024

#: Of a message that goes before a database, in bytes: its data becomes part of a SnapshotMeta.
SNAPSHOT_MESSAGE_SIZE_MAX = META_DATA_SIZE_MAX + REST_SIZE_MAX

#: Scalars that etcd's encoder writes also where they are zero, but for `term`, which all messages have.
_ZEROS = {"logTerm": 0, "index": 0, "commit": 0, "reject": False, "rejectHint": 0}


class MessageMalformed(ValueError):
    """Bytes are not the message that they should be, or it says what cannot be."""


def _load(name: str) -> dict[str, Any]:
    return message_classes(name, files(__package__).joinpath(name).read_text("utf-8"))


_RAFT = _load("raft.proto")
_RPC = _load("rpc.proto")

#: `raftpb`; the classes are made at run time, so that type checkers see Any.
Message: Any = _RAFT["Message"]
MessageOutline: Any = _RAFT["MessageOutline"]
Snapshot: Any = _RAFT["Snapshot"]
SnapshotOutline: Any = _RAFT["SnapshotOutline"]
SnapshotMetadata: Any = _RAFT["SnapshotMetadata"]
RaftConfState: Any = _RAFT["ConfState"]

#: `etcdserverpb`
ResponseHeader: Any = _RPC["ResponseHeader"]
SnapshotRequest: Any = _RPC["SnapshotRequest"]
SnapshotResponse: Any = _RPC["SnapshotResponse"]
StatusRequest: Any = _RPC["StatusRequest"]
StatusResponse: Any = _RPC["StatusResponse"]
AuthenticateRequest: Any = _RPC["AuthenticateRequest"]
AuthenticateResponse: Any = _RPC["AuthenticateResponse"]


def encode(message: Any) -> bytes:
    """Return a message's bytes, its fields in the order of their numbers, as etcd writes them."""
    data: bytes = message.SerializeToString(deterministic=True)
    return data


def decode(kind: Any, data: bytes | bytearray) -> Any:
    """Return the message of class `kind` that `data` is; MessageMalformed where it is none.

    Absent fields read as zero, and unknown ones are kept.
    """
    try:
        return kind.FromString(bytes(data))
    except DecodeError as error:
        raise MessageMalformed(f"proto: {error}") from None


def decode_snapshot_message(data: bytes) -> Any:
    """Return the `raftpb.Message` before a database, from anybody: it takes little more room than `data`.

    Raises MessageMalformed, also where there is more than REST_SIZE_MAX bytes beside the data.
    """
    # Of a field that comes twice the last counts here, and both in what is left: more is refused, not less.
    content = decode(SnapshotOutline, decode(MessageOutline, data).snapshot).data
    if len(data) - len(content) > REST_SIZE_MAX:
        raise MessageMalformed(f"more than {REST_SIZE_MAX} bytes beside the snapshot's data")
    return decode(Message, data)


def raft_message(kind: int, *, to: int, sender: int, term: int, **fields: Any) -> Any:
    """Return a `raftpb.Message` with all scalars set, as etcd's encoder would write it.

    `kind` is one of MSG_*; `to` and `sender` are member ids; `fields` are further ones by etcd's names.
    """
    return Message(**{"type": kind, "to": to, "from": sender, "term": term, **_ZEROS, **fields})


def snapshot_message(meta: SnapshotMeta, *, to: int, sender: int, term: int) -> Any:
    """Return the MsgSnap that goes before a database; `term` is the sender's, in `meta` the entry's."""
    return raft_message(MSG_SNAP, to=to, sender=sender, term=term, snapshot=raft_snapshot(meta))


def raft_snapshot(meta: SnapshotMeta) -> Any:
    """Return `meta` as a `raftpb.Snapshot`; without data it has none, not an empty one."""
    state = meta.conf_state
    members = RaftConfState(
        voters=state.voters,
        learners=state.learners,
        voters_outgoing=state.voters_outgoing,
        learners_next=state.learners_next,
        auto_leave=state.auto_leave,
    )
    metadata = SnapshotMetadata(conf_state=members, index=meta.index, term=meta.term)
    return Snapshot(data=meta.data or None, metadata=metadata)


def snapshot_meta(snapshot: Any) -> SnapshotMeta:
    """Return a `raftpb.Snapshot` as a SnapshotMeta; MessageMalformed where it is beyond our limits."""
    metadata = snapshot.metadata
    state = metadata.conf_state
    lists: tuple[Any, ...] = (state.voters, state.learners, state.voters_outgoing, state.learners_next)
    if sum(map(len, lists)) > MEMBERS_MAX:
        raise MessageMalformed(f"the conf state names more than {MEMBERS_MAX} members")
    try:
        voters, learners, outgoing, coming = map(tuple, lists)
        conf_state = ConfState(voters, learners, outgoing, coming, state.auto_leave)
        return SnapshotMeta(metadata.index, metadata.term, conf_state, snapshot.data)
    except ValueError as error:
        raise MessageMalformed(str(error)) from None
