"""What PySyncObj carries in place of a dump, and what it wants back for it.

Values and bytes only; no files, no sockets, no PySyncObj. A *ticket* says where a snapshot lies and which
one it is, in a few hundred bytes. What PySyncObj hands to a serializer and wants back from a
deserializer, two entries of its log and the members, travels with the snapshot itself, as its meta's
data: whoever has a snapshot has all that is needed to go on from it.

JSON, not pickles: whoever reads them runs nothing that is written there.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from snapstore.manifest import sealed
from snapstore.meta import META_DATA_SIZE_MAX, SnapshotMeta, check_index

if TYPE_CHECKING:
    from collections.abc import Callable

    from snapstore.stored import SavedSnapshot

FORMAT = "snapstore-ticket/1"
DATA_FORMAT = "snapstore-pysyncobj/1"

#: Most of a ticket is an URL; what is larger is somebody's own dump.
TICKET_SIZE_MAX = 64 * 1024

#: An entry of PySyncObj's log: the command, its index, its term.
Entry = tuple[bytes, int, int]


class TicketMalformed(ValueError):
    """These bytes are no ticket: a dump of PySyncObj's own, perhaps, or a file that a power cut left."""


@dataclass(frozen=True, slots=True)
class Ticket:
    """Where a snapshot can be had, and which one it is. `size` in bytes."""

    url: str
    index: int
    term: int
    size: int
    digest: str

    @classmethod
    def for_saved(cls, saved: SavedSnapshot, url: str) -> Ticket:
        """Return the ticket for what is stored at `url`; ValueError where it has no manifest."""
        if saved.digest is None:
            raise ValueError(f"{saved.path} has no manifest, so nobody can be sent there")
        return cls(url, saved.index, saved.meta.term, saved.size, saved.digest)

    def to_bytes(self) -> bytes:
        """Return sealed JSON."""
        fields = {name: getattr(self, name) for name in self.__slots__}
        return sealed({"format": FORMAT, **fields})

    @classmethod
    def from_bytes(cls, data: bytes) -> Ticket:
        """Read what `to_bytes` wrote; raises TicketMalformed for anything else."""
        try:
            fields = json.loads(data)
            fields.pop("seal")
            if fields.pop("format") != FORMAT:
                raise ValueError(f"its format is not {FORMAT}")
            ticket = cls(**fields)
            ticket._check()
            if ticket.to_bytes() != data:
                raise ValueError("its seal is wrong")
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise TicketMalformed(f"this is no ticket of snapstore's: {error}") from error
        return ticket

    def _check(self) -> None:
        for name in ("index", "term", "size"):
            check_index(getattr(self, name), name)
        if not isinstance(self.url, str) or not isinstance(self.digest, str):
            raise TypeError("url and digest must be text")


def pack_meta(last: Entry, before: Entry, members: list[str]) -> SnapshotMeta:
    """Return the meta of a snapshot that stands at `last`, the entry that was applied last.

    Raises ValueError where the two commands are too large to be carried, TypeError for a member's id that
    is not text.
    """
    size = len(last[0]) + len(before[0])
    if size > META_DATA_SIZE_MAX // 2:  # In base64 they need a third more; the members are short.
        raise ValueError(
            f"the last two commands have {size} bytes, {META_DATA_SIZE_MAX // 2} can be carried with a"
            " snapshot; it will do when smaller ones were applied"
        )
    entries = [[base64.b64encode(command).decode("ascii"), *where] for command, *where in (last, before)]
    fields = {"format": DATA_FORMAT, "entries": entries, "members": sorted(map(_text, members))}
    return SnapshotMeta(last[1], last[2], data=json.dumps(fields).encode("ascii"))


def unpack_meta(meta: SnapshotMeta, node_of: Callable[[str], Any]) -> tuple[Entry, Entry, set[Any]]:
    """Return what PySyncObj wants of a deserializer; `node_of` makes a node of a member's id.

    Raises ValueError where `meta` is not one of `pack_meta`.
    """
    try:
        fields = json.loads(meta.data)
        if fields["format"] != DATA_FORMAT:
            raise ValueError(f"its format is not {DATA_FORMAT}")
        last, before = (
            (base64.b64decode(command, validate=True), check_index(index), check_index(term))
            for command, index, term in fields["entries"]
        )
        if (last[1], last[2]) != (meta.index, meta.term) or before[1] != meta.index - 1:
            raise ValueError("its entries are not those before the snapshot")
        members = {node_of(_text(member)) for member in fields["members"]}
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"snapshot {meta.index} was not made for PySyncObj: {error}") from error
    return last, before, members


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("a member's id must be text")
    return value
