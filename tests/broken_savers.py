"""Savers in plain Python: two that keep what they promise, and five broken on purpose, one way each.

They prove the harnesses, not snapstore: a harness that lets a broken one pass, or blames a good one,
is wrong itself. Knows nothing of snapstore, nor of any harness; one system call per step, in the
order in which it stands here.

    save(path, index, content)    # puts content under path / "%016x.db"; raises OSError, leaves no temp

All raise FileExistsError for a name that is taken. A kill may leave a `.tmp-...` file of the named ones.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import secrets

#: So many bytes go into one write, so that a file takes several.
WRITE_SIZE = 64 * 1024

RENAME_NOREPLACE = 1

_libc = ctypes.CDLL(None, use_errno=True)


def named(path, index, content):
    """Right: temporary name, fsync, rename without replacing, fsync of the directory."""
    with _directory(path) as directory, _temp(directory, index) as (fd, temp):
        _write(fd, content)
        os.fsync(fd)
        _rename(directory, temp, _name(index))
        os.fsync(directory)


def nameless(path, index, content):
    """Right: no name at all until it is complete and synced; O_TMPFILE and linkat."""
    with _directory(path) as directory, _closing(os.open(path, os.O_TMPFILE | os.O_WRONLY, 0o600)) as fd:
        _write(fd, content)
        os.fsync(fd)
        try:
            # With a descriptor for the target this is linkat, which follows the link in /proc.
            os.link(f"/proc/self/fd/{fd}", _name(index), dst_dir_fd=directory, follow_symlinks=True)
        except FileExistsError:
            os.fsync(directory)
            raise
        os.fsync(directory)


def no_fsync(path, index, content):
    """Broken as etcd's store of 2015 was: the name may last, and no byte of the file."""
    with _directory(path) as directory, _temp(directory, index) as (fd, temp):
        _write(fd, content)
        _rename(directory, temp, _name(index))


def no_directory_fsync(path, index, content):
    """Broken as etcd's was until 2026: the bytes last, the name may not."""
    with _directory(path) as directory, _temp(directory, index) as (fd, temp):
        _write(fd, content)
        os.fsync(fd)
        _rename(directory, temp, _name(index))


def rename_before_fsync(path, index, content):
    """Broken: right when it returns, but the name may last before the bytes do."""
    with _directory(path) as directory, _temp(directory, index) as (fd, temp):
        _write(fd, content)
        _rename(directory, temp, _name(index))
        os.fsync(fd)
        os.fsync(directory)


def in_place(path, index, content):
    """Broken: right when it returns, but the name is there before the bytes are."""
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY
    with _directory(path) as directory, _closing(os.open(_name(index), flags, 0o600, dir_fd=directory)) as fd:
        try:
            _write(fd, content)
            os.fsync(fd)
        except BaseException:
            os.unlink(_name(index), dir_fd=directory)
            raise
        os.fsync(directory)


def fsync_too_early(path, index, content):
    """Broken: what comes after the fsync is not covered by it; here the second half."""
    half = len(content) // 2
    with _directory(path) as directory, _temp(directory, index) as (fd, temp):
        _write(fd, content[:half])
        os.fsync(fd)
        _write(fd, content[half:])
        _rename(directory, temp, _name(index))
        os.fsync(directory)


GOOD = {"named": named, "nameless": nameless}
BROKEN = {
    "no_fsync": no_fsync,
    "no_directory_fsync": no_directory_fsync,
    "rename_before_fsync": rename_before_fsync,
    "in_place": in_place,
    "fsync_too_early": fsync_too_early,
}


def _name(index):
    return f"{index:016x}.db"


def _write(fd, content):
    view = memoryview(content)
    while view:
        view = view[os.write(fd, view[:WRITE_SIZE]) :]


def _rename(directory, temp, name):
    """Rename without replacing; where the name is taken, it lasts when FileExistsError is raised."""
    status = _libc.renameat2(directory, temp.encode(), directory, name.encode(), RENAME_NOREPLACE)
    if status:
        code = ctypes.get_errno()
        if code == errno.EEXIST:
            os.fsync(directory)
        raise OSError(code, os.strerror(code), name)


@contextlib.contextmanager
def _closing(fd):
    try:
        yield fd
    finally:
        os.close(fd)


def _directory(path):
    return _closing(os.open(path, os.O_RDONLY | os.O_DIRECTORY))


@contextlib.contextmanager
def _temp(directory, index):
    """A new file and its temporary name, which is gone afterwards: renamed, or removed after a failure."""
    temp = f".tmp-{index:016x}-{secrets.token_hex(8)}"
    flags = os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_WRONLY
    with _closing(os.open(temp, flags, 0o600, dir_fd=directory)) as fd:
        try:
            yield fd, temp
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temp, dir_fd=directory)
            raise
