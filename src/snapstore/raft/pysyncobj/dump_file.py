"""PySyncObj's dump file, as long as it has a ticket in it: put in place so that it lasts.

It must not know where tickets come from or when. PySyncObj itself renames what it receives over this
file, without an fsync, and before anybody has looked at it: after that it may name what is not here, and
after a power cut have anything in it. So the last ticket of our own stands in a second file beside it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from snapstore import disk
from snapstore.raft.pysyncobj.ticket import TICKET_SIZE_MAX, Ticket, TicketMalformed

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Behind the file's name: the last ticket of our own.
OWN_SUFFIX = ".own"

#: Behind either name: the next one.
_NEXT_SUFFIX = ".next"

#: What a process that was killed may have left, PySyncObj's own among them.
_LEFT_SUFFIXES: Sequence[str] = (_NEXT_SUFFIX, OWN_SUFFIX + _NEXT_SUFFIX, ".tmp", ".1.tmp")


class DumpFile:
    """The file at `path`, whose directory is made where it is missing. One thread at a time.

    Tickets that are put in place here are for snapshots that are saved: that is for the caller to see to.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).absolute()
        self._own = self._beside(OWN_SUFFIX)
        disk.make_directories(self.path.parent, 0o777)
        for suffix in _LEFT_SUFFIXES:
            self._beside(suffix).unlink(missing_ok=True)

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

    def prepare(self, ticket: Ticket) -> None:
        """Write `ticket`, which is for a snapshot of our own, for `place`."""
        for suffix in (OWN_SUFFIX, ""):
            with open(self._beside(suffix + _NEXT_SUFFIX), "wb") as file:
                file.write(ticket.to_bytes())
                file.flush()
                os.fsync(file.fileno())

    def place(self) -> None:
        """Put what was prepared in place: two renames, no fsync. `sync` makes it last."""
        os.replace(self._beside(OWN_SUFFIX + _NEXT_SUFFIX), self._own)
        os.replace(self._beside(_NEXT_SUFFIX), self.path)

    def sync(self) -> None:
        """Make the names last. Raises OSError."""
        fd = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            disk.sync_directory(fd)
        finally:
            os.close(fd)

    def replace(self, ticket: Ticket) -> None:
        """Put `ticket` in place, for good."""
        self.prepare(ticket)
        self.place()
        self.sync()

    def remove(self) -> None:
        """Remove what is there, for good: PySyncObj begins with nothing then."""
        for path in (self.path, self._own):
            path.unlink(missing_ok=True)
        self.sync()


def _read(path: Path) -> Ticket:
    with open(path, "rb") as file:
        return Ticket.from_bytes(file.read(TICKET_SIZE_MAX + 1))
