"""Which system calls work in a directory: each of those that a save leans on is tried.

On a file without a name, which is gone with its descriptor, a kill included. `linkat` is tried on a
nameless file that was opened with O_EXCL and can never have a name (open(2)): the kernel asks the file
system whether it knows links, and refuses then with ENOENT. Where a name cannot be done without, the
call is tried only when told to change things, on a `.tmp-...` that the next opening would sweep.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from snapstore import _fastpipe, disk
from snapstore.doctor.finding import Finding, Level

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

#: As much as is written to see how fast it is: what room and quota have to give for a look.
PROBE_SIZE = 64 * 1024 * 1024

#: Memory, offset and length of the first direct write.
_DIRECT_SIZE = 4096

_RENAME_NOREPLACE = 1
_FALLOC_FL_KEEP_SIZE = 1

#: What a system says that does not have a call, or not here; EBADE is `System.lock`'s own.
_ABSENT = {
    errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT, errno.ENOSYS, errno.EPERM, errno.ENOLCK,
    errno.EBADE,
}  # fmt: skip

#: What is said to a user who may not write here, whatever works for others.
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}

_libc = ctypes.CDLL(None, use_errno=True)


class System:
    """The calls that are tried, each as the kernel has it: OSError where it refuses."""

    def open_nameless(self, directory: int) -> int:
        """Open a new file that has no name and will never have one."""
        flags = os.O_RDWR | os.O_TMPFILE | os.O_EXCL | os.O_CLOEXEC
        return os.open(".", flags, 0o600, dir_fd=directory)

    def link(self, file: int, directory: int) -> None:
        """Ask for a name for such a file. ENOENT is the answer of a file system that has links."""
        source, name = f"/proc/self/fd/{file}", disk.temp_name(0)
        os.stat(source)  # Its own ENOENT would be taken for the answer.
        with contextlib.suppress(FileNotFoundError):
            os.link(source, name, dst_dir_fd=directory, follow_symlinks=True)
            os.unlink(name, dir_fd=directory)  # A kernel that breaks its word.

    def write_direct(self, file: int) -> None:
        """Write past the page cache, and leave the file so."""
        fcntl.fcntl(file, fcntl.F_SETFL, fcntl.fcntl(file, fcntl.F_GETFL) | os.O_DIRECT)
        with mmap.mmap(-1, _DIRECT_SIZE) as page:
            os.pwrite(file, page, 0)

    def reserve(self, file: int, size: int) -> None:
        """Take room; not posix_fallocate, which writes zeros where the file system cannot."""
        _call("fallocate", file, _FALLOC_FL_KEEP_SIZE, ctypes.c_int64(0), ctypes.c_int64(size))

    def sync_directory(self, directory: int) -> None:
        """Make names last."""
        os.fsync(directory)

    def lock(self, file: int) -> None:
        """Hold a lock twice, which must not be possible; EBADE where it was."""
        second = os.open(f"/proc/self/fd/{file}", os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
                raise OSError(errno.EBADE, "the lock keeps nobody out")
        finally:
            os.close(second)

    def rename_new(self, directory: int, name: str, target: str) -> None:
        """Rename, and never replace."""
        source, wanted = os.fsencode(name), os.fsencode(target)
        _call("renameat2", directory, source, directory, wanted, ctypes.c_uint(_RENAME_NOREPLACE))


def _call(name: str, *arguments: object) -> None:
    try:
        function = getattr(_libc, name)
    except AttributeError:  # A C library that knows it not is a system that cannot do it.
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS)) from None
    if function(*arguments) < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


@dataclass(frozen=True, slots=True)
class Probe:
    """A call that was tried, or was not: `failure` says why it does not work, `untried` why it is unknown."""

    name: str
    failure: str | None = None
    untried: str | None = None
    code: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return it for machines."""
        works = None if self.untried else self.failure is None
        return {"name": self.name, "works": works, "why_not": self.failure or self.untried}


#: What it means when a call does not work: how bad it is, the words, and what to do.
_MEANINGS: dict[str, tuple[Level, str, str]] = {
    "O_TMPFILE": (
        Level.HINT,
        "a saver that is killed leaves a `.tmp-...` file, until the directory is opened next",
        "none needed; ext4, xfs and btrfs can do it",
    ),
    "linkat": (
        Level.PROBLEM,
        "a finished file cannot be given its name, so saves fail at their end",
        "use another file system",
    ),
    "O_DIRECT": (
        Level.HINT,
        "snapshots pass through the page cache: their fsync takes longer, and other files are pushed out",
        "none needed; a disk with ext4, xfs or btrfs can do it",
    ),
    "fallocate": (
        Level.HINT,
        "room cannot be taken before the bytes come: a full disk is noticed in the middle of a transfer",
        "none needed; keep more room free",
    ),
    "fsync of the directory": (
        Level.PROBLEM,
        "a name is as certain to outlive a power cut as this file system makes it by itself",
        "use a local disk with ext4, xfs or btrfs",
    ),
    "flock": (
        Level.PROBLEM,
        "nothing keeps a sweep from what another process is saving, or a purge from what it reads",
        "use a local file system, or let one process at a time use the directory",
    ),
    "renameat2": (
        Level.HINT,
        "names are given by linkat and unlink in its place, which is as safe",
        "none needed",
    ),
}  # fmt: skip

_NO_ROOM: tuple[Level, str, str] = (
    Level.PROBLEM,
    f"up to {PROBE_SIZE // 2**20} MiB were refused for lack of room, or by a quota; so will the next save be",
    "free some space, or have the quota raised (`quota`, `repquota`, `btrfs qgroup show`)",
)

_FAILED: tuple[Level, str, str] = (
    Level.PROBLEM,
    "saves fail so, too; of a failed fsync the kernel tells only once, so what was saved before may be lost",
    "look into the kernel's log (dmesg); with the disk mended, `snapstore verify DIR` reads all of it back",
)


def try_calls(directory: int, file: int | None, system: System, *, has_room: bool) -> Iterator[Probe]:
    """Yield how each call does on `file`, nameless, and on the open directory; nothing lasts.

    `has_room`: PROBE_SIZE may be taken for a moment. Without a file most are left untried.
    """
    yield _tried("fsync of the directory", lambda: system.sync_directory(directory))
    if file is None:
        nameless = "there is no nameless file to try it on"
        yield from (Probe(name, untried=nameless) for name in ("linkat", "fallocate", "O_DIRECT", "flock"))
        return
    yield _tried("linkat", lambda: system.link(file, directory))
    yield _tried("flock", lambda: system.lock(file))
    yield (
        _tried("fallocate", lambda: system.reserve(file, PROBE_SIZE))
        if has_room
        else Probe("fallocate", untried="there is too little room")
    )
    yield _tried("O_DIRECT", lambda: system.write_direct(file))


def try_names(directory: int, system: System) -> Probe:
    """Return how renaming does, for which a file has a name for a moment: a `.tmp-...`, locked."""
    name, target = disk.temp_name(0), disk.temp_name(0)

    def rename() -> None:
        with _fastpipe.SaveFile(directory, name.encode(), nameless=False):
            try:
                system.rename_new(directory, name, target)
            finally:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(target, dir_fd=directory)

    return _tried("renameat2", rename)


def open_nameless(directory: int, system: System) -> tuple[int | None, Probe]:
    """Open a nameless file to try things on; None where there is none, and the probe says why."""
    opened: list[int] = []
    probe = _tried("O_TMPFILE", lambda: opened.append(system.open_nameless(directory)))
    if probe.code in _FORBIDDEN:
        probe = Probe(probe.name, untried=f"this user cannot write here ({probe.failure})")
    return (opened[0] if opened else None), probe


def _tried(name: str, call: Callable[[], object]) -> Probe:
    try:
        call()
    except OSError as error:
        code = error.errno or 0
        return Probe(name, f"{errno.errorcode.get(code, code)}: {error.strerror}", code=code)
    return Probe(name)


def judge_probe(probe: Probe) -> Finding:
    """Return what a call that works, or does not, means for snapshots."""
    kind = f"call-{probe.name.split()[0]}"
    if probe.untried:
        return Finding(kind, probe.name, Level.OK, f"not tried: {probe.untried}")
    if probe.failure is None:
        return Finding(kind, probe.name, Level.OK, "works")
    if lacks_room(probe):
        return Finding("refused-room", probe.name, _NO_ROOM[0], probe.failure, *_NO_ROOM[1:])
    level, means, advice = _MEANINGS.get(probe.name, _FAILED) if probe.code in _ABSENT else _FAILED
    return Finding(kind, probe.name, level, probe.failure, means, advice)


def lacks_room(probe: Probe) -> bool:
    """Whether it was a full disk, or a quota, that refused."""
    return probe.code in (errno.ENOSPC, errno.EDQUOT)
