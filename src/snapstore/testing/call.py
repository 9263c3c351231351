"""One system call of a held process: its name, what it works on, and what may become of it.

Looks into the process while it stands: its memory, and its descriptors through /proc. Who holds it,
and what is decided, is no business of this file.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from snapstore.testing.machine import this_machine

if TYPE_CHECKING:
    from snapstore.testing.ptrace import Entry

#: The name of a call by which the child tells where it is: `Subject.mark`.
MARK = "mark"

#: Longer paths the kernel refuses itself (PATH_MAX).
_PATH_SIZE_MAX = 4096

#: The unit in which memory is there or is not.
_PAGE_SIZE = os.sysconf("SC_PAGE_SIZE")

#: Where a path is relative to what an argument names, and which argument: see `Call.path`.
_AT_FDCWD = -100


class _Kill(Enum):
    KILL = "kill"

    def __repr__(self) -> str:
        return "KILL"


#: The process is killed before the call is made (SIGKILL).
KILL = _Kill.KILL


@dataclass(frozen=True)
class Fail:
    """The call fails with the errno `code`, unmade; with `made` it is made first, as close(2) does it."""

    code: int
    made: bool = False


@dataclass(frozen=True)
class Shorten:
    """The call, a read or a write, gets `size` bytes where it asked for more."""

    size: int


Verdict = _Kill | Fail | Shorten | None


@dataclass(frozen=True)
class Call:
    """A call that a thread of a held process is about to make, or just made."""

    name: str
    arguments: tuple[int, ...]
    pid: int
    tid: int
    memory_fd: int

    @classmethod
    def of(cls, pid: int, tid: int, entry: Entry, memory_fd: int, mark_fd: int) -> Call:
        """Name the call of `entry`; a write to `mark_fd` is one named "mark"."""
        name = this_machine().names.get(entry.number, f"call-{entry.number}")
        if name == "write" and entry.arguments[0] == mark_fd:
            name = MARK
        return cls(name, entry.arguments, pid, tid, memory_fd)

    def int_argument(self, position: int) -> int:
        """An argument, counted from 0, as C's `int`: a descriptor, flags."""
        value = self.arguments[position] & 0xFFFFFFFF
        return value - 2**32 if value >= 2**31 else value

    def memory(self, address: int, size: int) -> bytes:
        """What the process has there; OSError where it has nothing."""
        return os.pread(self.memory_fd, size, address)

    @property
    def data(self) -> bytes:
        """The bytes that a write(2) or pwrite(2) was given; all that were asked for, written or not."""
        return self.memory(self.arguments[1], self.arguments[2])

    @property
    def mark_text(self) -> str:
        """What a "mark" says."""
        return self.data.decode()

    def text(self, position: int) -> str:
        """The zero-terminated string that an argument points to, as the os module decodes paths."""
        found, address = b"", self.arguments[position]
        while b"\0" not in found and len(found) <= _PATH_SIZE_MAX:
            room = _PAGE_SIZE - address % _PAGE_SIZE  # The next page may be missing.
            found += self.memory(address, room)
            address += room
        return os.fsdecode(found.split(b"\0", 1)[0])

    def descriptor(self, position: int) -> str:
        """A path in /proc that stands for the descriptor in an argument, to stat or to open."""
        return self._of_descriptor(self.int_argument(position))

    def identity(self, position: int) -> tuple[int, int] | None:
        """Device and inode of what a descriptor stands for; None where it is not open."""
        with contextlib.suppress(FileNotFoundError):
            status = os.stat(self.descriptor(position))
            return status.st_dev, status.st_ino
        return None

    def path(self, directory: int | None, position: int) -> str:
        """The path in argument `position` as we reach it, relative to the descriptor in `directory`.

        With None it is relative to the working directory, as for the calls without "at".
        """
        own = self.text(position).replace("/proc/self/", f"/proc/{self.pid}/")
        fd = _AT_FDCWD if directory is None else self.int_argument(directory)
        base = f"/proc/{self.pid}/cwd" if fd == _AT_FDCWD else self._of_descriptor(fd)
        return os.path.join(base, own)

    def descriptor_state(self, position: int) -> tuple[int, int]:
        """Position in bytes and flags (O_APPEND, O_DIRECT, ...) of a descriptor."""
        with open(f"/proc/{self.pid}/fdinfo/{self.int_argument(position)}") as file:
            fields = dict(line.split(":", 1) for line in file)
        return int(fields["pos"]), int(fields["flags"], 8)

    def _of_descriptor(self, fd: int) -> str:
        return f"/proc/{self.pid}/fd/{fd}"
