"""The directory as the file system sees it: how it is opened, what its names mean, what is swept.

Once per snapshot, in Python; the bytes, and the order of fsync and naming, are the C core's. Knows
nothing of manifests' content, of raft, or of the network. Everything is relative to one descriptor
of the directory, so that a rename of its path changes nothing.

Names: `%016x.db` a snapshot, `%016x.json` its manifest, `.tmp-...` a file whose saver lives as long
as it holds the file's lock; `%016x.broken-N` and `%016x.broken-N.json` are broken.py's, `.part-...`
reception.py's, `.poisoned-...` poison.py's. All other names belong to somebody else and are left alone.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from snapstore import _fastpipe

if TYPE_CHECKING:
    from collections.abc import Iterator

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
    return f".tmp-{index:016x}-{os.urandom(8).hex()}"


def open_directory(path: Path) -> int:
    """Open the directory at `path`, made with all its parents where missing; its descriptor.

    Each new level is made lasting by an fsync of the one above (POSIX). Raises NotADirectoryError,
    and PermissionError where another user could put files of his own in it: it must be ours or
    root's (root may use anybody's), and not every user may write to it.
    """
    make_directories(path, 0o700)
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        status = os.fstat(fd)
        if not _is_trusted(status.st_uid):
            raise PermissionError(errno.EPERM, f"it belongs to user {status.st_uid}", str(path))
        if status.st_mode & stat.S_IWOTH:
            raise PermissionError(
                errno.EPERM, "every user can write to it; take that away with chmod o-w", str(path)
            )
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


def regular_status(directory: int, name: str) -> os.stat_result | None:
    """Return the status of the file `name`; None where there is none, or none of ours. One stat."""
    status = _status(directory, name)
    return None if status is None or _strangeness(status, name) is not None else status


def regular_size(directory: int, name: str) -> int | None:
    """Return the size in bytes of the regular file `name`; None where there is none."""
    status = regular_status(directory, name)
    return None if status is None else status.st_size


def name_taken(directory: int, name: str) -> bool:
    """Whether anything at all has this name: a dangling link or a FIFO must not be replaced either."""
    return _status(directory, name) is not None


def stranger_named(directory: int, name: str) -> bool:
    """Whether something has this name that is no file of ours."""
    status = _status(directory, name)
    return status is not None and _strangeness(status, name) is not None


def open_regular(directory: int, name: str) -> int:
    """Open the file `name` for reading; OSError that says why where it is none of ours.

    Ours is a regular file without a second name that belongs to us or to root (to anybody, for root).
    Never follows a link, never waits on a FIFO, never opens a device.
    """
    _check_ours(os.stat(name, dir_fd=directory, follow_symlinks=False), name)
    fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    try:
        _check_ours(os.fstat(fd), name)  # Another one may have come in its place meanwhile.
    except BaseException:
        os.close(fd)
        raise
    return fd


def _status(directory: int, name: str) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return None


def _check_ours(status: os.stat_result, name: str) -> None:
    strangeness = _strangeness(status, name)
    if strangeness is not None:
        raise OSError(*strangeness, name)


def _strangeness(status: os.stat_result, name: str) -> tuple[int, str] | None:
    """Why what has this name is no file of ours: an errno and words."""
    if stat.S_ISLNK(status.st_mode):
        return errno.ELOOP, "symbolic links are not followed"
    if not stat.S_ISREG(status.st_mode):
        return errno.EINVAL, "not a regular file"
    # A saver that was killed between giving the lasting name and taking the hidden one leaves both;
    # where the file system knows no rename without replacing, that is the way. The sweep ends it.
    if status.st_nlink > (2 if name.startswith(".") else 1):
        return errno.EMLINK, "a file with a second name (a hard link) is not ours"
    if not _is_trusted(status.st_uid):
        return errno.EPERM, f"it belongs to user {status.st_uid}"
    return None


def _is_trusted(user: int) -> bool:
    """Whether what belongs to `user` may be read as ours."""
    return user in (0, os.geteuid()) or os.geteuid() == 0


def drop_cache(fd: int) -> None:
    """Let the next read of the file ask the disk, not the page cache; what is not synced stays there."""
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


def read_small(directory: int, name: str, size_max: int, *, from_disk: bool = False) -> bytes:
    """Return the content of a small regular file; OSError with EFBIG beyond `size_max` bytes.

    `from_disk` passes the page cache by.
    """
    with open(name, "rb", opener=lambda path, _: open_regular(directory, path)) as file:
        if from_disk:
            drop_cache(file.fileno())
        # No more than there is: what is asked for is taken from memory before it is read.
        data = file.read(min(os.fstat(file.fileno()).st_size, size_max) + 1)
    if len(data) > size_max:
        raise OSError(errno.EFBIG, f"longer than {size_max} bytes", name)
    return data


def list_names(directory: int) -> list[str]:
    """Return all names, in any order.

    Through a descriptor of its own: threads that list through one share its position, and each would
    miss what the other has seen.
    """
    fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory)
    try:
        return os.listdir(fd)
    finally:
        os.close(fd)


def snapshot_indexes(directory: int, *, above: int = -1) -> list[int]:
    """Return the indexes that have a snapshot's name and are higher than `above`, ascending."""
    # Names stand in the order of their indexes: most are passed over by a look at their text.
    passed = snapshot_name(above) if above >= 0 else ""
    return sorted(
        int(found[1], 16)
        for name in list_names(directory)
        if name > passed and (found := _SNAPSHOT_NAME.match(name))
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
    """Remove the manifest of `index`, unless it is gone or none of ours; whether it was removed."""
    if regular_status(directory, manifest_name(index)) is None:
        return False
    with contextlib.suppress(FileNotFoundError):
        os.unlink(manifest_name(index), dir_fd=directory)
        return True
    return False


@contextlib.contextmanager
def unless_read_only() -> Iterator[None]:
    """Leave a change undone where the directory cannot be changed by us."""
    try:
        yield
    except OSError as error:
        if error.errno not in _READ_ONLY:
            raise


def sweep(directory: int) -> list[str]:
    """Remove what dead savers left: their temporary files, and manifests without a snapshot.

    Returns the names; what is gone needs `sync_directory` to stay so. In a directory that we cannot
    change nothing is removed.
    """
    removed = []
    with unless_read_only():
        names = list_names(directory)
        removed += [name for name in names if _TEMP_NAME.match(name) and unlink_unused(directory, name)]
        manifests = {int(found[1], 16) for name in names if (found := _MANIFEST_NAME.match(name))}
        if manifests - set(snapshot_indexes(directory)):
            with _fastpipe.DirectoryLock(directory):
                for index in sorted(manifests - set(snapshot_indexes(directory))):
                    if unlink_manifest(directory, index):
                        removed.append(manifest_name(index))
    return removed
