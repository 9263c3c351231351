"""What the kernel is asked for: a mount namespace, mounts, and loop devices.

System calls that Python does not have, each with its errno. Knows nothing of logs or of states.

Nothing can stay behind, however the process ends: mounts are in a namespace that goes with its last
process, and a loop device that nobody holds open detaches itself (LO_FLAGS_AUTOCLEAR). The context
managers here only make it happen sooner.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

# From sched.h, sys/mount.h, linux/prctl.h, linux/loop.h and linux/fs.h.
_CLONE_NEWNS = 0x00020000
_MS_REC = 0x4000
_MS_PRIVATE = 1 << 18
_MNT_DETACH = 2
_PR_SET_PDEATHSIG = 1
_LOOP_CONFIGURE = 0x4C0A
_LOOP_CTL_GET_FREE = 0x4C82
_LO_FLAGS_AUTOCLEAR = 4
_BLKFLSBUF = 0x1261

#: Others take loop devices, too: between the question for a free one and its use it may be gone.
_ATTACH_ATTEMPTS_MAX = 100

_libc = ctypes.CDLL(None, use_errno=True)


class _LoopInfo(ctypes.Structure):
    """struct loop_info64."""

    _fields_ = (
        ("lo_device", ctypes.c_uint64),
        ("lo_inode", ctypes.c_uint64),
        ("lo_rdevice", ctypes.c_uint64),
        ("lo_offset", ctypes.c_uint64),
        ("lo_sizelimit", ctypes.c_uint64),
        ("lo_number", ctypes.c_uint32),
        ("lo_encrypt_type", ctypes.c_uint32),
        ("lo_encrypt_key_size", ctypes.c_uint32),
        ("lo_flags", ctypes.c_uint32),
        ("lo_names", ctypes.c_uint8 * 160),
        ("lo_init", ctypes.c_uint64 * 2),
    )


class _LoopConfig(ctypes.Structure):
    """struct loop_config."""

    _fields_ = (
        ("fd", ctypes.c_uint32),
        ("block_size", ctypes.c_uint32),
        ("info", _LoopInfo),
        ("reserved", ctypes.c_uint64 * 8),
    )


def enter_own_namespace() -> None:
    """Let the mounts of this process, and of those it forks, be seen by nobody else."""
    _call("unshare", _libc.unshare(_CLONE_NEWNS))
    _mount("none", Path("/"), None, _MS_REC | _MS_PRIVATE, "")


def die_with_parent(signal_number: int) -> None:
    """Let this process get a signal when the thread that forked it ends."""
    _call("prctl", _libc.prctl(_PR_SET_PDEATHSIG, signal_number, 0, 0, 0))


@contextlib.contextmanager
def mounted(source: str, target: Path, kind: str, options: str = "") -> Iterator[Path]:
    """Mount a file system at `target`; EBUSY at the end if something of it is still open."""
    _mount(source, target, kind, 0, options)
    try:
        yield target
    finally:
        unmount(target)


def unmount(target: Path) -> None:
    """Take away what is mounted at `target`."""
    _call(str(target), _libc.umount2(os.fsencode(target), 0))


def forget_mount(target: Path) -> None:
    """Take `target` out of this process's namespace, without asking the file system that is there."""
    _call(str(target), _libc.umount2(os.fsencode(target), _MNT_DETACH))


@contextlib.contextmanager
def attached(path: Path) -> Iterator[LoopDevice]:
    """Make a block device of the file at `path`."""
    backing = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        device = _attach(backing)
    finally:
        os.close(backing)
    try:
        yield device
    finally:
        os.close(device.fd)


class LoopDevice:
    """A loop device; it detaches itself when `fd` is closed and nothing of it is mounted."""

    def __init__(self, fd: int, path: str) -> None:
        self.fd = fd
        self.path = path

    def forget(self) -> None:
        """Drop what the kernel keeps of its content: the file below it is about to change."""
        fcntl.ioctl(self.fd, _BLKFLSBUF, 0)


def _attach(backing: int) -> LoopDevice:
    control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    try:
        for _ in range(_ATTACH_ATTEMPTS_MAX):
            path = f"/dev/loop{fcntl.ioctl(control, _LOOP_CTL_GET_FREE)}"
            # For writing, or the device is read-only. It stays open until the end: udev looks at a
            # device that was closed after writing, and would put old bytes into the cache.
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            config = _LoopConfig(fd=backing, info=_LoopInfo(lo_flags=_LO_FLAGS_AUTOCLEAR))
            try:
                fcntl.ioctl(fd, _LOOP_CONFIGURE, config)
            except OSError as error:
                os.close(fd)
                if error.errno != errno.EBUSY:
                    raise
            else:
                return LoopDevice(fd, path)
    finally:
        os.close(control)
    raise OSError(errno.EBUSY, "no loop device stays free for long enough", "/dev/loop-control")


def _mount(source: str, target: Path, kind: str | None, flags: int, options: str) -> None:
    status = _libc.mount(
        source.encode(),
        os.fsencode(target),
        kind.encode() if kind else None,
        ctypes.c_ulong(flags),
        options.encode(),
    )
    _call(str(target), status)


def _call(what: str, status: int) -> None:
    if status < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), what)
