"""What a snapshot is called: its index, its term, who was in the cluster.

Values only. No files, no sockets, no clocks.
"""

from __future__ import annotations

import base64
import binascii
import operator
from dataclasses import dataclass, field
from typing import Any

#: Raft's log index is an unsigned 64-bit number, and so is its term.
INDEX_MAX = 2**64 - 1

#: Engine data carried beside the KV (etcd's v2 membership JSON is tens of KiB); more belongs into
#: the KV itself, since this part is held in memory and travels in a head.
META_DATA_SIZE_MAX = 16 * 1024 * 1024


def check_index(index: object, name: str = "index") -> int:
    """Return `index` as an int in 0..2^64-1.

    Anything that says it is an integer (`__index__`, numpy's included) is taken, except bool.
    Raises TypeError for other types and ValueError for other numbers.
    """
    if isinstance(index, bool):
        raise TypeError(f"{name} must be an integer, not a bool")
    try:
        number = operator.index(index)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{name} must be an integer, not {type(index).__name__}") from None
    if not 0 <= number <= INDEX_MAX:
        raise ValueError(f"{name} must be between 0 and 2^64-1, not {number}")
    return number


@dataclass(frozen=True, slots=True)
class ConfState:
    """Who votes, as of the snapshot: the fields of etcd's `raftpb.ConfState`. Member ids are uint64."""

    voters: tuple[int, ...] = ()
    learners: tuple[int, ...] = ()
    voters_outgoing: tuple[int, ...] = ()
    learners_next: tuple[int, ...] = ()
    auto_leave: bool = False

    def __post_init__(self) -> None:
        for name in ("voters", "learners", "voters_outgoing", "learners_next"):
            members = tuple(check_index(member, name) for member in getattr(self, name))
            object.__setattr__(self, name, members)

    def to_json(self) -> dict[str, Any]:
        """Return the fields that are not empty, for JSON."""
        fields: dict[str, Any] = {
            "voters": list(self.voters),
            "learners": list(self.learners),
            "voters_outgoing": list(self.voters_outgoing),
            "learners_next": list(self.learners_next),
            "auto_leave": self.auto_leave,
        }
        return {name: value for name, value in fields.items() if value}

    @classmethod
    def from_json(cls, fields: object) -> ConfState:
        """Read what `to_json` wrote; raises ValueError or TypeError for anything else."""
        if not isinstance(fields, dict):
            raise ValueError("conf_state must be an object")
        known = {"voters", "learners", "voters_outgoing", "learners_next", "auto_leave"}
        if not fields.keys() <= known:
            raise ValueError(f"conf_state has unknown fields: {sorted(fields.keys() - known)}")
        members: dict[str, Any] = dict(fields)
        auto_leave = members.pop("auto_leave", False)
        if not isinstance(auto_leave, bool):
            raise ValueError("conf_state.auto_leave must be true or false")
        if not all(isinstance(ids, list) for ids in members.values()):
            raise ValueError("conf_state lists must be lists of member ids")
        return cls(**{name: tuple(ids) for name, ids in members.items()}, auto_leave=auto_leave)


@dataclass(frozen=True, slots=True)
class SnapshotMeta:
    """The applied log entry that a snapshot stands at.

    `index` and `term` are uint64; `data` is what the engine wants carried beside the KV, unread by
    snapstore, `META_DATA_SIZE_MAX` bytes at most.
    """

    index: int
    term: int = 0
    conf_state: ConfState = field(default_factory=ConfState)
    data: bytes = b""

    def __post_init__(self) -> None:
        object.__setattr__(self, "index", check_index(self.index))
        object.__setattr__(self, "term", check_index(self.term, "term"))
        if not isinstance(self.conf_state, ConfState):
            raise TypeError(f"conf_state must be a ConfState, not {type(self.conf_state).__name__}")
        object.__setattr__(self, "data", bytes(memoryview(self.data)))
        if len(self.data) > META_DATA_SIZE_MAX:
            raise ValueError(
                f"data has {len(self.data)} bytes, the limit is {META_DATA_SIZE_MAX}; keep more in the KV"
            )

    def to_json(self) -> dict[str, Any]:
        """Return the fields for JSON; `data` goes as base64."""
        return {
            "index": self.index,
            "term": self.term,
            "conf_state": self.conf_state.to_json(),
            "data": base64.b64encode(self.data).decode("ascii"),
        }

    @classmethod
    def from_json(cls, fields: object) -> SnapshotMeta:
        """Read what `to_json` wrote; raises ValueError or TypeError for anything else."""
        if not isinstance(fields, dict) or fields.keys() != {"index", "term", "conf_state", "data"}:
            raise ValueError("a snapshot's meta needs exactly index, term, conf_state and data")
        if not isinstance(fields["data"], str):
            raise ValueError("data must be base64 text")
        try:
            data = base64.b64decode(fields["data"], validate=True)
        except binascii.Error as error:
            raise ValueError(f"data is not base64: {error}") from None
        return cls(fields["index"], fields["term"], ConfState.from_json(fields["conf_state"]), data)


def to_meta(meta_or_index: SnapshotMeta | int) -> SnapshotMeta:
    """Return `meta_or_index` as a SnapshotMeta; a bare index stands for term 0 and nothing else."""
    if isinstance(meta_or_index, SnapshotMeta):
        return meta_or_index
    return SnapshotMeta(check_index(meta_or_index))
