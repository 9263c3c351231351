"""The directory as the file system sees it: how it is opened, what its names mean, what is swept.

Once per snapshot, in Python; the bytes, and the order of fsync and naming, are the C core's. Knows
nothing of manifests' content, of raft, or of the network. Everything is relative to one descriptor
of the directory, so that a rename of its path changes nothing.

Names: `%016x.db` a snapshot, `%016x.json` its manifest, `.tmp-...` a file whose saver lives as long
as it holds the file's lock. All other names belong to somebody else and are left alone.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import secrets
import stat
from pathlib import Path

from snapstore import _fastpipe

_SNAPSHOT_NAME = re.compile(r"([0-9a-f]{16})\.db\Z")
_MANIFEST_NAME = re.compile(r"([0-9a-f]{16})\.json\Z")
_TEMP_NAME = re.compile(r"\.tmp-[0-9a-f]{16}-[0-9a-f]{16}\Z")

#: Errors that say the directory cannot be changed by us; reading it may still be wanted.
_READ_ONLY = {errno.EROFS, errno.EACCES, errno.EPERM}


def snapshot_name(index: int) -> str:
    """Return the name of the snapshot with this index, as etcd's store names it."""
    return f"{index:016x}.db"


def manifest_name(index: int) -> str:
    """Return the name of the manifest that belongs to `snapshot_name(index)`."""
    return f"{index:016x}.json"


def temp_name(index: int) -> str:
    """Return a temporary name that nobody else has: 64 random bits."""
    return f".tmp-{index:016x}-{secrets.token_hex(8)}"


def open_directory(path: Path) -> int:
    """Open the directory at `path`, made with all its parents where missing; its descriptor.

    Each new level is made lasting by an fsync of the one above (POSIX). Raises NotADirectoryError,
    and PermissionError where any user could put files of his own in it.
    """
    make_directories(path, 0o700)
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        mode = os.fstat(fd).st_mode
        if mode & stat.S_IWOTH:
            raise PermissionError(
                errno.EPERM, "every user can write to it; take that away with chmod o-w", str(path)
            )
        sync_directory(fd)
    except BaseException:
        os.close(fd)
        raise
    return fd


def make_directories(path: Path, mode: int) -> None:
    """Make the directory at `path`, and those above it that are missing, each lasting by an fsync."""
    missing = []
    level = path.absolute()
    while not level.exists() and not level.is_symlink():
        missing.append(level)
        level = level.parent
    for level in reversed(missing):
        with contextlib.suppress(FileExistsError):  # Another process makes the same one.
            level.mkdir(mode)
        parent = os.open(level.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(parent)
        finally:
            os.close(parent)


def sync_directory(fd: int) -> None:
    """Make the directory's names last.

    EINVAL is what network file systems say that need none (borg). EROFS is an error like others: a
    file system that was mounted read-only answers 0, one that gave up its journal EROFS.
    """
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise


def regular_size(directory: int, name: str) -> int | None:
    """Return the size in bytes of the regular file `name`; None where there is none. One stat."""
    try:
        status = os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def name_taken(directory: int, name: str) -> bool:
    """Whether anything at all has this name: a dangling link or a FIFO must not be replaced either."""
    try:
        os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def open_regular(directory: int, name: str) -> int:
    """Open the regular file `name` for reading; never follows a link, never waits on a FIFO."""
    fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "not a regular file", name)
    return fd


def read_small(directory: int, name: str, size_max: int) -> bytes:
    """Return the content of a small regular file; OSError with EFBIG beyond `size_max` bytes."""
    with open(open_regular(directory, name), "rb") as file:
        data = file.read(size_max + 1)
    if len(data) > size_max:
        raise OSError(errno.EFBIG, f"longer than {size_max} bytes", name)
    return data


def snapshot_indexes(directory: int) -> list[int]:
    """Return the indexes that have a snapshot's name, ascending."""
    return sorted(
        int(found[1], 16) for name in os.listdir(directory) if (found := _SNAPSHOT_NAME.match(name))
    )


def unlink_unused(directory: int, name: str) -> bool:
    """Remove `name` unless a living process holds its lock; whether it was removed."""
    try:
        fd = open_regular(directory, name)
    except OSError:  # Gone meanwhile, or not a file of ours.
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        ours, named = os.fstat(fd), os.stat(name, dir_fd=directory, follow_symlinks=False)
        if (ours.st_dev, ours.st_ino) != (named.st_dev, named.st_ino):
            return False
        os.unlink(name, dir_fd=directory)
    except (BlockingIOError, FileNotFoundError):
        return False
    finally:
        os.close(fd)
    return True


def unlink_manifest(directory: int, index: int) -> bool:
    """Remove the manifest of `index`, unless it is gone or is no file at all; whether it was removed."""
    try:
        os.unlink(manifest_name(index), dir_fd=directory)
    except (FileNotFoundError, IsADirectoryError):
        return False
    return True


def sweep(directory: int) -> list[str]:
    """Remove what dead savers left: their temporary files, and manifests without a snapshot.

    Returns the names; what is gone needs `sync_directory` to stay so. In a directory that we cannot
    change nothing is removed.
    """
    removed = []
    try:
        names = os.listdir(directory)
        removed += [name for name in names if _TEMP_NAME.match(name) and unlink_unused(directory, name)]
        manifests = {int(found[1], 16) for name in names if (found := _MANIFEST_NAME.match(name))}
        if manifests - set(snapshot_indexes(directory)):
            with _fastpipe.DirectoryLock(directory):
                for index in sorted(manifests - set(snapshot_indexes(directory))):
                    if unlink_manifest(directory, index):
                        removed.append(manifest_name(index))
    except OSError as error:
        if error.errno not in _READ_ONLY:
            raise
    return removed
