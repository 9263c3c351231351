"""Whose a directory is, who else may write to it, and how much room is left. Looks at numbers only."""

from __future__ import annotations

import os
import stat
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from snapstore.doctor.finding import Finding, Level
from snapstore.room import RoomAccount

if TYPE_CHECKING:
    from collections.abc import Iterator

#: A save takes two names and up to two temporary ones; some savers may be at work at once.
INODES_FREE_MIN = 16


@dataclass(frozen=True, slots=True)
class Room:
    """How much of a file system is free for this user, in bytes. None: it does not say, or has no limit.

    `reserve` is what no save takes of it, unless the node says otherwise.
    """

    size: int
    free: int | None
    inodes_free: int | None
    reserve: int = 0

    def has(self, size: int) -> bool:
        """Whether it is certain that `size` bytes are free."""
        return self.free is not None and self.free >= size

    def to_json(self) -> dict[str, Any]:
        """Return it for machines."""
        return asdict(self)


def look_at_room(directory: int) -> Room:
    """Return the room of the file system that an open directory is on."""
    status = os.fstatvfs(directory)
    return Room(
        status.f_blocks * status.f_frsize,
        status.f_bavail * status.f_frsize if status.f_blocks else None,
        status.f_favail if status.f_files else None,
        RoomAccount(lambda: status).measure().reserve,
    )


def judge_room(room: Room, wanted: int | None) -> Iterator[Finding]:
    """Yield whether a snapshot of `wanted` bytes fits, None where there is none to go by, and its names.

    By the rule by which a SnapshotDir refuses a save.
    """
    needed = room.reserve + (wanted or 1)
    if room.free is None:
        yield Finding(
            "room-unknown",
            "room",
            Level.HINT,
            "the file system does not say how much is free",
            "whether the next snapshot fits is not known before it comes",
            "use a disk with ext4, xfs or btrfs",
        )
    elif room.free < needed:
        yield Finding(
            "room",
            "room",
            Level.PROBLEM,
            f"free of {room.size} bytes; one as large as the newest needs {needed}, of which"
            f" {room.reserve} stay free",
            "the next one will be refused for lack of room, and the node stays behind",
            "free some space, `snapstore purge DIR --keep N`, or use a larger disk",
            size=room.free,
        )
    else:
        yield Finding("room", "room", Level.OK, f"free of {room.size} bytes", size=room.free)
    if room.inodes_free is not None and room.inodes_free < INODES_FREE_MIN:
        yield Finding(
            "inodes",
            "inodes",
            Level.PROBLEM,
            f"{room.inodes_free} are free",
            "new files are refused though there is room for bytes",
            "remove small files from this file system, or make it anew with more inodes",
        )


def judge_access(directory: int) -> Iterator[Finding]:
    """Yield whether this user, and no other, can change an open directory.

    The rules are those by which a SnapshotDir refuses to open.
    """
    status, user = os.fstat(directory), os.geteuid()
    subject, mode = "access", stat.S_IMODE(status.st_mode)
    seen = f"user {status.st_uid}, group {status.st_gid}, mode {mode:04o}"
    if status.st_uid not in (0, user) and user != 0:
        yield Finding(
            "owner",
            subject,
            Level.PROBLEM,
            f"{seen}; this is user {user}",
            "a node of this user refuses the directory: its owner could put files of his own into it",
            f"run this, and the node, as user {status.st_uid}, or chown the directory",
        )
    elif status.st_mode & stat.S_IWOTH:
        yield Finding(
            "mode",
            subject,
            Level.PROBLEM,
            seen,
            "every user can put files here, so a node refuses the directory",
            "chmod o-w DIR",
        )
    elif not os.access(".", os.W_OK, dir_fd=directory, effective_ids=True):
        yield Finding(
            "unwritable",
            subject,
            Level.PROBLEM,
            f"{seen}; user {user} cannot write here",
            "nothing can be saved, and what is left over is not swept",
            "run the node as the owner, chmod u+w, or mount the file system with rw",
        )
    elif status.st_mode & stat.S_IWGRP:
        yield Finding(
            "mode-group",
            subject,
            Level.HINT,
            seen,
            "whoever is in the group can remove snapshots, or put others here",
            "chmod g-w DIR, unless that is wanted",
        )
    else:
        yield Finding("access", subject, Level.OK, seen)
