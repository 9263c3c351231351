"""The file system under a directory: which it is, how it is mounted, and what that means for a snapshot.

Reads /proc/self/mountinfo (proc(5)) and judges by two tables. Tries nothing; that is probes.py's.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from snapstore.doctor.finding import Finding, Level

if TYPE_CHECKING:
    from collections.abc import Iterator

_LOCAL_DISK = "put the directory on a local disk with ext4, xfs or btrfs"

#: The ones that power was cut under while savers worked, thousands of times.
_TRIED = {"ext4", "xfs", "btrfs"}

#: Kinds of file systems, how bad they are for snapshots, what that means, and what to do.
_KINDS: tuple[tuple[set[str], Level, str, str], ...] = (
    (
        {"tmpfs", "ramfs", "devtmpfs"},
        Level.PROBLEM,
        "it lies in memory, and all snapshots are gone after a restart of the machine",
        _LOCAL_DISK,
    ),
    (
        {"overlay", "aufs"},
        Level.PROBLEM,
        "this is the writable layer of a container, and all snapshots are gone with the container",
        "mount a volume of a local disk here",
    ),
    (
        {
            "nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "virtiofs", "ceph", "afs", "lustre", "gfs2",
            "ocfs2", "glusterfs", "beegfs", "gpfs", "fuse.glusterfs", "fuse.sshfs", "fuse.s3fs",
        },
        Level.PROBLEM,
        "a save is as lasting as another machine makes it, and locks may not reach the other savers",
        _LOCAL_DISK,
    ),
    (
        {"vfat", "msdos", "exfat", "ntfs", "ntfs3", "hfs", "hfsplus"},
        Level.PROBLEM,
        "it knows no owners and no hard links, and a power cut may damage more than the last file",
        _LOCAL_DISK,
    ),
    (
        {"squashfs", "erofs", "iso9660"},
        Level.PROBLEM,
        "it can only be read",
        _LOCAL_DISK,
    ),
    (
        {"ext2"},
        Level.HINT,
        "it has no journal: after a power cut it needs a check before it can be mounted",
        "use ext4, xfs or btrfs",
    ),
)  # fmt: skip

#: Options, how bad they are, what they mean, and what to do.
_OPTIONS: tuple[tuple[set[str], Level, str, str], ...] = (
    (
        {"ro"},
        Level.PROBLEM,
        "nothing can be saved; where it once was writable, the disk has failed",
        "look into the kernel's log (dmesg); then repair it, and mount it with rw",
    ),
    (
        {"nobarrier", "barrier=0", "fsync_mode=nobarrier"},
        Level.PROBLEM,
        "fsync does not wait for the disk's own cache: a power cut may take a saved snapshot",
        "mount it without this option, unless the disk's cache has a battery",
    ),
    (
        {"volatile", "fsync=volatile"},
        Level.PROBLEM,
        "fsync does nothing here: a power cut may take any snapshot",
        "mount it without this option",
    ),
    (
        {"data=writeback"},
        Level.HINT,
        "a power cut may leave old data in files that were not synced, which snapshots were",
        "none needed for snapshots; other programs on this disk may want data=ordered",
    ),
    (
        {"data=journal"},
        Level.HINT,
        "each byte is written twice, and direct I/O is off: saves are half as fast",
        "mount it with data=ordered",
    ),
    (
        {"sync", "dirsync"},
        Level.HINT,
        "each write waits for the disk; snapshots are lasting without it, and slower with it",
        "mount it without this option",
    ),
)


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of mountinfo: the kind of the file system, what it is made of, where, and how."""

    kind: str
    source: str
    point: str
    options: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return it for machines."""
        return {
            "kind": self.kind, "source": self.source, "point": self.point, "options": list(self.options)
        }  # fmt: skip


def find_mount(directory: int) -> Mount | None:
    """Return the mount that an open directory is on; None where /proc does not tell.

    By the descriptor's mount, not by its device number: on btrfs the two do not agree.
    """
    try:
        with open(f"/proc/self/fdinfo/{directory}", "rb") as info:
            found = re.search(rb"^mnt_id:\s*([0-9]+)$", info.read(), re.MULTILINE)
        with open("/proc/self/mountinfo", "rb") as table:
            return parse_mount(os.fsdecode(table.read()), int(found[1])) if found else None
    except OSError:
        return None


def mount_of(path: str | os.PathLike[str]) -> Mount | None:
    """Return the mount of the directory at `path`, as `find_mount`. Raises OSError where there is none."""
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return find_mount(directory)
    finally:
        os.close(directory)


def parse_mount(table: str, mount_id: int) -> Mount | None:
    """Return the mount with this number out of the text of a mountinfo; None where it has none."""
    for line in table.split("\n"):  # Other ends of lines stand in paths as they are.
        left, dash, right = line.partition(" - ")
        fields, rest = left.split(" "), right.split(" ")
        if dash and len(fields) > 5 and len(rest) > 1 and fields[0] == str(mount_id):
            options = ",".join((fields[5], *rest[2:3])).split(",")
            return Mount(
                rest[0],
                _unescaped(rest[1]),
                _unescaped(fields[4]),
                tuple(dict.fromkeys(filter(None, options))),
            )
    return None


def _unescaped(text: str) -> str:
    """A space stands there as \\040."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), text)


def judge_mount(mount: Mount | None) -> Iterator[Finding]:
    """Yield what the kind of the file system means, then what its options mean."""
    subject = "file system"
    if mount is None:
        yield Finding(
            "mount-unknown",
            subject,
            Level.HINT,
            "/proc does not tell which file system this is",
            "whether it keeps what it is given is not known",
            "mount /proc, and look again",
        )
        return
    place = f"{mount.kind}, {mount.source} on {mount.point}"
    yield _judge_kind(mount.kind, subject, place)
    for options, level, means, advice in _OPTIONS:
        for option in mount.options:
            if option in options:
                yield Finding(f"mount-{option}", subject, level, f"mounted with {option}", means, advice)


def _judge_kind(kind: str, subject: str, place: str) -> Finding:
    if kind in _TRIED:
        return Finding("mount-kind", subject, Level.OK, place)
    for kinds, level, means, advice in _KINDS:
        if kind in kinds:
            return Finding("mount-kind", subject, level, place, means, advice)
    if kind.startswith("fuse"):
        means = "what fsync means here is decided by the program that serves it"
    else:
        means = "power cuts were not tried on it"
    return Finding("mount-kind", subject, Level.HINT, place, means, "ext4, xfs and btrfs were tried")
