"""A directory that is looked at: by the doctor alone, and by a test that wants to see every change."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time

from nodes import CONTENT, UNIT
from residue import names
from snapstore.directory import SnapshotDir
from snapstore.doctor import Level
from snapstore.doctor.contents import look_into
from snapstore.meta import SnapshotMeta


def two_saved(path):
    """A directory with the snapshots 7 and 8, made at `path`."""
    with SnapshotDir(path, chunk_size=UNIT) as directory:
        directory.save_from(CONTENT, SnapshotMeta(7, 3))
        directory.save_from(CONTENT, 8)
    return path


def fingerprint(path):
    """All that can change in a directory, of it and of each name in it, but for the times of reading."""
    found = {}
    for name in (".", *names(path)):
        status = os.lstat(path / name)
        regular = not (path / name).is_dir() and not (path / name).is_symlink()
        content = (path / name).read_bytes() if regular else b""
        found[name] = (
            status.st_ino, status.st_mode, status.st_nlink, status.st_uid, status.st_gid, status.st_size,
            status.st_mtime_ns, status.st_ctime_ns, content,
        )  # fmt: skip
    return found


@contextlib.contextmanager
def held(path):
    """A saver lives that has this file."""
    with open(path, "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def looked(path, **options):
    """Only what lies there: no call is tried, nothing measured."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return look_into(fd, path, now_s=time.time(), **options)
    finally:
        os.close(fd)


def found_in(examination, subject):
    """The kind and the level of what was found of one thing."""
    return [(found.kind, found.level) for found in examination.findings if found.subject == subject]


def assert_told(examination, subject, kind, level):
    """It is told once, as what it is, with what it means and what to do."""
    (found,) = [found for found in examination.findings if (found.subject, found.kind) == (subject, kind)]
    assert found.level is level
    assert bool(found.means) == bool(found.advice) == (level is not Level.OK)
