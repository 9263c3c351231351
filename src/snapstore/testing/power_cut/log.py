"""What went to a disk, in order: each write, each flush, and between them what the workload said of itself.

Bytes in, records out, and back. No devices, no files, no clocks.

    record   kind (1 byte), offset (8), length (4), little-endian; then `length` bytes
    W        a write of these bytes at this offset
    F        a flush: the disk answered that every write before it is there for good
    M        a mark of the workload, as `Mark.to_bytes` spells it

A flush that the disk answers after a write covers it. That is a little kinder than a disk must be,
which may leave out writes that were still in flight when the flush came.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import TypeAlias

_HEAD = struct.Struct("<cQI")

#: What a workload can say of an index: its save begins, it returned, from now on it may be missing.
VERBS = ("begin", "ok", "gone")


@dataclass(frozen=True, slots=True)
class Write:
    """`data` went to the disk at `offset`, in bytes."""

    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Flush:
    """All writes before this one are there for good."""


@dataclass(frozen=True, slots=True)
class Mark:
    """The workload said `verb` of `index`."""

    verb: str
    index: int

    def to_bytes(self) -> bytes:
        """Return it as it stands in a log."""
        return f"{self.verb} {self.index}".encode("ascii")

    @classmethod
    def from_bytes(cls, data: bytes) -> Mark:
        """Read what `to_bytes` wrote; ValueError for anything else."""
        verb, _, index = data.decode("ascii").partition(" ")
        mark = cls(verb, int(index))
        if verb not in VERBS or mark.to_bytes() != data:
            raise ValueError(f"no mark: {data!r}")
        return mark


Record: TypeAlias = "Write | Flush | Mark"


def to_bytes(record: Record) -> bytes:
    """Return one record as a log has it."""
    if isinstance(record, Write):
        return _HEAD.pack(b"W", record.offset, len(record.data)) + record.data
    if isinstance(record, Flush):
        return _HEAD.pack(b"F", 0, 0)
    text = record.to_bytes()
    return _HEAD.pack(b"M", 0, len(text)) + text


def from_bytes(data: bytes) -> list[Record]:
    """Return the records of a whole log; ValueError where it is cut short or is none."""
    records: list[Record] = []
    position = 0
    while position < len(data):
        if len(data) - position < _HEAD.size:
            raise ValueError(f"the log ends within the head of record {len(records)}")
        kind, offset, length = _HEAD.unpack_from(data, position)
        position += _HEAD.size
        body = data[position : position + length]
        if len(body) < length:
            raise ValueError(f"the log ends within record {len(records)}")
        position += length
        records.append(_record(kind, offset, body))
    return records


def _record(kind: bytes, offset: int, body: bytes) -> Record:
    if kind == b"W":
        return Write(offset, body)
    if kind == b"M":
        return Mark.from_bytes(body)
    if kind == b"F" and not body:
        return Flush()
    raise ValueError(f"a record of kind {kind!r} with {len(body)} bytes")
