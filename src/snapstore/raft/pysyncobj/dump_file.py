"""PySyncObj's dump file, as long as it has a ticket in it: put in place so that it lasts.

It must not know where tickets come from or when. PySyncObj itself renames what it receives over this
file, without an fsync, and before anybody has looked at it: after that it may name what is not here, and
after a power cut have anything in it. So the last ticket of our own stands in a second file beside it.
"""

from __future__ import annotations

import glob
import itertools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from snapstore import disk
from snapstore.raft.pysyncobj.ticket import TICKET_SIZE_MAX, Ticket, TicketMalformed

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Behind the file's name: the last ticket of our own.
OWN_SUFFIX = ".own"

#: Behind either name: a number, and this, until it takes its place.
_NEXT_SUFFIX = ".next"


@dataclass(frozen=True, slots=True)
class PreparedTicket:
    """A ticket of our own that is written, and has only to be put in place. For any thread."""

    ticket: Ticket
    targets: Mapping[Path, Path]

    def place(self) -> None:
        """Put it in place: two renames, no fsync. `DumpFile.sync` makes it last."""
        for target, prepared in self.targets.items():
            os.replace(prepared, target)

    def discard(self) -> None:
        """Remove what is not in place."""
        for prepared in self.targets.values():
            prepared.unlink(missing_ok=True)


class DumpFile:
    """The file at `path`, whose directory is made where it is missing.

    What a process that was killed has left of it goes, PySyncObj's own leftovers too. Tickets that are
    put in place here are for snapshots that are saved: that is for the caller to see to.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).absolute()
        self._own = self._beside(OWN_SUFFIX)
        self._numbers = itertools.count()
        disk.make_directories(self.path.parent, 0o777)
        for left in self.path.parent.glob(glob.escape(self.path.name) + ".*"):
            if left.suffix in (_NEXT_SUFFIX, ".tmp"):
                left.unlink(missing_ok=True)

    def _beside(self, suffix: str) -> Path:
        return self.path.with_name(self.path.name + suffix)

    @property
    def exists(self) -> bool:
        """Whether PySyncObj will find one."""
        return self.path.is_file()

    def read(self) -> Ticket:
        """Read the ticket that is there; raises TicketMalformed for anything else, and OSError."""
        return _read(self.path)

    def read_own(self) -> Ticket | None:
        """Read the last ticket of our own; None where there never was one."""
        try:
            return _read(self._own)
        except (FileNotFoundError, TicketMalformed):  # Ours have an fsync: it is somebody else's file.
            return None

    def prepare(self, ticket: Ticket) -> PreparedTicket:
        """Write `ticket`, which is for a snapshot of our own, beside the file. From any thread."""
        number = next(self._numbers)
        targets = {
            target: target.with_name(f"{target.name}.{number}{_NEXT_SUFFIX}")
            for target in (self._own, self.path)
        }
        for prepared in targets.values():
            with open(prepared, "wb") as file:
                file.write(ticket.to_bytes())
                file.flush()
                os.fsync(file.fileno())
        return PreparedTicket(ticket, targets)

    def put_back(self) -> None:
        """Put the last ticket of our own back in place, or nothing where there never was one. No fsync."""
        link = self._beside(_NEXT_SUFFIX)
        link.unlink(missing_ok=True)  # Renaming a file to what is a name of it already does nothing.
        try:
            os.link(self._own, link)
        except FileNotFoundError:
            self.path.unlink(missing_ok=True)
        else:
            os.replace(link, self.path)

    def sync(self) -> None:
        """Make the names last. Raises OSError."""
        fd = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            disk.sync_directory(fd)
        finally:
            os.close(fd)

    def replace(self, ticket: Ticket) -> None:
        """Put `ticket` in place, for good."""
        self.prepare(ticket).place()
        self.sync()

    def remove(self) -> None:
        """Remove what is there, for good: PySyncObj begins with nothing then."""
        for path in (self.path, self._own):
            path.unlink(missing_ok=True)
        self.sync()


def _read(path: Path) -> Ticket:
    with open(path, "rb") as file:
        return Ticket.from_bytes(file.read(TICKET_SIZE_MAX + 1))
