"""What an archive looks like: the names of its objects, and the inventory that makes a snapshot of them.

Values, names and bytes only. No network, no files.

    %016x.json               the inventory: the snapshot's manifest, and the size of its parts
    %016x/KEY/part-%05d      the parts: the snapshot's bytes, cut every `part_size`

A snapshot is in the archive exactly when its inventory is: that comes last and goes first. Parts are
objects of their own and no multipart upload, since obstore can neither list the parts of one nor go on
with it: so a push that broke goes on with a list of names, and what is left of it is to be seen.

KEY is a digest of the inventory. Two nodes that push one index with different bytes, as stores of the
same content may have, never write to one name; and a part that is there is the one it should be.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from snapstore.errors import SnapshotCorrupt, SnapshotTooLarge
from snapstore.manifest import MANIFEST_SIZE_MAX, Manifest, sealed

FORMAT = "snapstore-archive/1"

#: S3's limits for the parts of one object, kept here too: whoever wants a plain object of a snapshot can
#: have S3 join the parts (UploadPartCopy) without moving a byte. Sizes in bytes; the last part is exempt.
PARTS_MAX = 10_000
PART_SIZE_MIN = 5 * 1024 * 1024
PART_SIZE_MAX = 5 * 1024 * 1024 * 1024

#: In bytes: a second of a good line, so that a break costs little and a request's own time counts little.
PART_SIZE_DEFAULT = 16 * 1024 * 1024

#: What is asked for at a time when reading, in bytes, whatever the parts' size: it has to fit the memory.
READ_SIZE_MAX = 16 * 1024 * 1024

#: A manifest, and some fields around it.
INVENTORY_SIZE_MAX = MANIFEST_SIZE_MAX + 1024

#: So much is told of what is wrong with an inventory, in letters: it may quote what it has, of any length.
_WORDS_MAX = 200

#: Half of a SHA-256 in hexadecimal digits: no two contents meet, by chance or on purpose.
_KEY_LENGTH = 32

_INVENTORY_NAME = re.compile(r"([0-9a-f]{16})\.json\Z")
_FOLDER_NAME = re.compile(r"([0-9a-f]{16})\Z")


def inventory_name(index: int) -> str:
    """Return the name of the inventory of this index."""
    return f"{index:016x}.json"


def folder_name(index: int) -> str:
    """Return what the names of all parts of this index begin with, up to a slash."""
    return f"{index:016x}"


def inventory_index(name: str) -> int | None:
    """Return the index whose inventory is called `name`; None for names of others."""
    found = _INVENTORY_NAME.match(name)
    return int(found[1], 16) if found else None


def folder_index(name: str) -> int | None:
    """Return the index whose parts are in the folder `name`; None for folders of others."""
    found = _FOLDER_NAME.match(name)
    return int(found[1], 16) if found else None


def part_size_for(size: int, chunk_size: int, wanted: int = PART_SIZE_DEFAULT) -> int:
    """Return the size of the parts of `size` bytes: whole chunks, `wanted` bytes where the limits allow.

    Raises SnapshotTooLarge where PARTS_MAX of the largest parts are not enough.
    """
    least = max(wanted, PART_SIZE_MIN, -(-size // PARTS_MAX))
    part_size = -(-least // chunk_size) * chunk_size
    if part_size > PART_SIZE_MAX:
        raise SnapshotTooLarge(f"{PARTS_MAX} parts of {PART_SIZE_MAX} bytes do not hold {size} bytes")
    return part_size


class Part(NamedTuple):
    """One object of a snapshot: `size` bytes from `offset` on."""

    name: str
    offset: int
    size: int


class Read(NamedTuple):
    """A request for some bytes of a part: `size` of them, from `start` on."""

    part: Part
    start: int
    size: int


@dataclass(frozen=True)
class Inventory:
    """A snapshot's manifest, and how its bytes are cut: every `part_size` bytes."""

    manifest: Manifest
    part_size: int

    @property
    def index(self) -> int:
        """Raft's index of the snapshot."""
        return self.manifest.meta.index

    @cached_property
    def parts(self) -> Sequence[Part]:
        """The parts in order."""
        size, key = self.manifest.size, hashlib.sha256(self.to_bytes()).hexdigest()[:_KEY_LENGTH]
        return [
            Part(
                f"{folder_name(self.index)}/{key}/part-{number:05d}",
                number * self.part_size,
                min(self.part_size, size - number * self.part_size),
            )
            for number in range(-(-size // self.part_size))
        ]

    def missing(self, sizes: Mapping[str, int]) -> Sequence[Part]:
        """Return the parts that are not among the objects with these names and sizes in bytes."""
        return [part for part in self.parts if sizes.get(part.name) != part.size]

    def reads(self, start: int) -> Iterator[Read]:
        """Yield the requests that bring all bytes from `start` on, in order."""
        for part in self.parts[start // self.part_size :]:
            first = max(0, start - part.offset)
            for at in range(first, part.size, READ_SIZE_MAX):
                yield Read(part, at, min(READ_SIZE_MAX, part.size - at))

    def is_same(self, other: Inventory) -> bool:
        """Whether both are of one snapshot, however it is cut."""
        ours, theirs = self.manifest, other.manifest
        return (ours.meta, ours.size, ours.digest) == (theirs.meta, theirs.size, theirs.digest)

    def to_bytes(self) -> bytes:
        """Return the sealed JSON."""
        fields = {
            "format": FORMAT,
            "part_size": self.part_size,
            "snapshot": json.loads(self.manifest.to_bytes()),
        }
        return sealed(fields)

    @classmethod
    def from_bytes(cls, data: bytes, index: int) -> Inventory:
        """Read what `to_bytes` wrote for `index`; raises SnapshotCorrupt for anything else."""
        try:
            fields = json.loads(data)
            inner = json.dumps(fields["snapshot"], sort_keys=True, separators=(",", ":"))
            inventory = cls(Manifest.from_bytes(inner.encode()), fields["part_size"])
            inventory._check(index)
            # One way to write it, as with the manifest: format and seal are compared with the rest.
            if inventory.to_bytes() != data:
                raise ValueError(f"its format is not {FORMAT}, its seal is wrong, or it is not canonical")
            return inventory
        except SnapshotCorrupt as error:
            raise SnapshotCorrupt(f"in its inventory {error}"[:_WORDS_MAX]) from error
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise SnapshotCorrupt(f"its inventory is broken: {error}"[:_WORDS_MAX]) from error

    def _check(self, index: int) -> None:
        part_size, chunk_size = self.part_size, self.manifest.chunk_size
        if type(part_size) is not int or not PART_SIZE_MIN <= part_size <= PART_SIZE_MAX:
            raise ValueError(f"its parts have {part_size!r} bytes")
        if part_size % chunk_size:
            raise ValueError(f"parts of {part_size} bytes have no whole chunks of {chunk_size}")
        if self.manifest.size > PARTS_MAX * part_size:
            raise ValueError(f"it has more than {PARTS_MAX} parts")
        if self.index != index:
            raise ValueError(f"it is that of index {self.index}, under the name of {index}")
