"""The values of a scripted raft node: messages, snapshots and errors in the shape of rraft-py's.

Values only, and the one way to carry them: bytes. A message that was not decoded from bytes is refused by
`scripted_node`, as one that belongs to another process would be.
"""

from __future__ import annotations

import enum
import json
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from typing_extensions import Self


class SnapshotTemporarilyUnavailableError(Exception):
    """Later. Never raised bare: only within a `StoreError`."""


class CompactedError(Exception):
    """The log begins behind this entry."""


class UnavailableError(Exception):
    """The log ends before this entry."""


class StoreError(Exception):
    """What a storage may raise: exactly one of the three above, nested."""


class MessageType(enum.Enum):
    """The kinds that a scripted node speaks."""

    MsgAppend = "append"
    MsgAppendResponse = "append response"
    MsgHeartbeat = "heartbeat"
    MsgHeartbeatResponse = "heartbeat response"
    MsgSnapshot = "snapshot"


class SnapshotStatus(enum.Enum):
    """What is reported of a snapshot."""

    Finish = "finish"
    Failure = "failure"


class Record:
    """Fields with `get_` and `set_` methods, as generated protobuf code has them; strict in both."""

    defaults: ClassVar[dict[str, Any]] = {}

    def __init__(self, **fields: Any) -> None:
        self._fields = {name: _fresh(value) for name, value in self.defaults.items()}
        for name, value in fields.items():
            self._set(name, value)

    @classmethod
    def default(cls) -> Self:
        """Return one with nothing set."""
        return cls()

    def __getattr__(self, name: str) -> Any:
        action, _, field = name.partition("_")
        if action == "get" and field in self.defaults:
            return lambda: self._fields[field]
        if action == "set" and field in self.defaults:
            return partial(self._set, field)
        raise AttributeError(f"{type(self).__name__} has no {name}")

    def _set(self, field: str, value: Any) -> None:
        if type(value) is not type(self.defaults[field]):
            raise TypeError(f"{type(self).__name__}.{field} takes no {type(value).__name__}")
        self._fields[field] = value

    def to_plain(self) -> dict[str, Any]:
        """Return the fields that are set, for JSON."""
        plain = {name: _plain(value) for name, value in self._fields.items() if value != self.defaults[name]}
        return {name: value for name, value in plain.items() if value != {}}

    @classmethod
    def from_plain(cls, fields: dict[str, Any]) -> Self:
        """Read what `to_plain` gave."""
        return cls(**{name: _like(cls.defaults[name], value) for name, value in fields.items()})

    def __repr__(self) -> str:
        told = {name: value for name, value in self._fields.items() if value != self.defaults[name]}
        return f"{type(self).__name__}({told})"


def _fresh(value: Any) -> Any:
    return type(value)() if isinstance(value, (Record, list)) else value


def _plain(value: Any) -> Any:
    if isinstance(value, Record):
        return value.to_plain()
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, bytes):
        return value.hex()
    return [_plain(one) for one in value] if isinstance(value, list) else value


def _like(model: Any, value: Any) -> Any:
    if isinstance(model, Record):
        return type(model).from_plain(value)
    if isinstance(model, enum.Enum):
        return type(model)[value]
    if isinstance(model, bytes):
        return bytes.fromhex(value)
    return (
        [Entry.from_plain(one) if isinstance(one, dict) else one for one in value]
        if isinstance(model, list)
        else value
    )


class ConfState(Record):
    """Who is in the cluster."""

    defaults: ClassVar[dict[str, Any]] = {
        "voters": [],
        "learners": [],
        "voters_outgoing": [],
        "learners_next": [],
        "auto_leave": False,
    }

    def __init__(
        self, voters: list[int] | None = None, learners: list[int] | None = None, **rest: Any
    ) -> None:
        super().__init__(voters=voters or [], learners=learners or [], **rest)


class SnapshotMetadata(Record):
    """Where in the log a snapshot stands."""

    defaults: ClassVar[dict[str, Any]] = {"index": 0, "term": 0, "conf_state": ConfState()}


class Snapshot(Record):
    """A snapshot as raft knows it; the bytes of the KV are never in it."""

    defaults: ClassVar[dict[str, Any]] = {"data": b"", "metadata": SnapshotMetadata()}


class Entry(Record):
    """One entry of the log."""

    defaults: ClassVar[dict[str, Any]] = {"index": 0, "term": 0, "data": b""}


class Message(Record):
    """What goes from one node to another; `decoded` tells that it came as bytes."""

    defaults: ClassVar[dict[str, Any]] = {
        "msg_type": MessageType.MsgHeartbeat,
        "to": 0,
        "from": 0,
        "term": 0,
        "index": 0,
        "log_term": 0,
        "commit": 0,
        "entries": [],
        "reject": False,
        "reject_hint": 0,
        "snapshot": Snapshot(),
    }

    decoded = False

    def encode(self) -> bytes:
        """Return it as it travels."""
        return json.dumps(self.to_plain()).encode()

    @classmethod
    def decode(cls, raw: bytes) -> Self:
        """Read what `encode` gave; TypeError for anything but bytes, ValueError for others' bytes."""
        if not isinstance(raw, bytes):
            raise TypeError("messages travel as bytes")
        try:
            message = cls.from_plain(json.loads(raw))
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"no message of a scripted node: {error!r}") from error
        message.decoded = True
        return message
