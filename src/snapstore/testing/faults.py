"""What can go wrong at a system call: which errors the kernel may give there, and which parts of a write.

A table with the errors of the man pages, and of file systems in trouble, and the one function that
looks at a call's arguments too: only who writes can be told that the disk is full. Tracing and
counting are elsewhere.
"""

from __future__ import annotations

import errno
import fcntl
import os
from typing import TYPE_CHECKING

from snapstore.testing.call import KILL, Fail, Shorten

if TYPE_CHECKING:
    from snapstore.testing.call import Call, Verdict

#: The names of the faults that are no errors.
SIGKILL, ONE_BYTE, HALF = "SIGKILL", "one byte", "half"

#: The least that a direct write or read can be cut to, in bytes; less the kernel refuses as a whole.
_DIRECT_SIZE = 4096

#: A file system that cannot take a change: worn out, full, over quota, gone read-only (ext4's
#: errors=remount-ro turns up in the middle of anything).
_CHANGE = (errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS)
_LOOK = (errno.EIO, errno.ENOMEM)
_MEMORY = (errno.ENOMEM,)
_FILES_MAX = (errno.EMFILE, errno.ENFILE)
_SIGNAL = (errno.EINTR,)
_LOCK = (errno.ENOLCK, *_SIGNAL)


def _each(names: str, *errors: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(code for group in errors for code in group) for name in names.split()}


ERRORS = {
    **_each("open openat openat2 creat", _CHANGE, _FILES_MAX, _MEMORY, _SIGNAL),
    **_each("write pwrite64 writev pwritev pwritev2 sendfile splice copy_file_range", _CHANGE, _SIGNAL),
    **_each("fsync fdatasync sync_file_range syncfs msync ftruncate truncate fallocate", _CHANGE, _SIGNAL),
    **_each("link linkat symlink symlinkat rename renameat renameat2 unlink unlinkat", _CHANGE, _MEMORY),
    **_each("mkdir mkdirat rmdir mknod mknodat", _CHANGE, _MEMORY),
    **_each("chmod fchmod fchmodat fchmodat2 chown fchown fchownat lchown utimensat", _CHANGE),
    **_each("setxattr lsetxattr fsetxattr removexattr lremovexattr fremovexattr", _CHANGE),
    **_each("close", _CHANGE, _SIGNAL),
    **_each("read pread64 readv preadv preadv2 getdents getdents64", (errno.EIO,), _SIGNAL),
    **_each("stat fstat lstat newfstatat statx access faccessat faccessat2 statfs fstatfs", _LOOK),
    **_each("readlink readlinkat getxattr lgetxattr fgetxattr", _LOOK),
    **_each("dup dup2 dup3 pipe pipe2 memfd_create epoll_create1 eventfd2", _FILES_MAX),
    **_each("mmap mremap mprotect", _MEMORY),
    **_each("clone clone3 fork vfork", (errno.EAGAIN,), _MEMORY),
    **_each("poll ppoll select pselect6 nanosleep clock_nanosleep getrandom epoll_wait", _SIGNAL),
}

#: Calls with a count of bytes in the third argument, which may be done in part.
_IN_PARTS = {"write", "pwrite64", "read", "pread64"}

#: Opens that change nothing cannot be refused for want of room.
_CHANGING_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC

#: Where the flags of an open stand. openat2 has them in a struct: taken as one that changes.
_OPEN_FLAGS = {"open": 1, "openat": 2}

#: A futex call that waits may be interrupted; one that wakes others always does it (futex(2)).
_FUTEX_COMMAND, _FUTEX_WAITS = 0x7F, {0, 9}

_DUPLICATING = {fcntl.F_DUPFD, fcntl.F_DUPFD_CLOEXEC}

#: Interruptions pass; a fault that lasts is never one of them.
PASSING = {errno.errorcode[code] for code in (errno.EINTR, errno.EAGAIN)} | {ONE_BYTE, HALF}


def faults_of(call: Call) -> tuple[str, ...]:
    """Return the names of all faults that `call` can meet, but for SIGKILL, which every one can."""
    if call.name == "fcntl":
        return _names(_fcntl_errors(call))
    if call.name == "flock":
        return _names(() if call.int_argument(1) & fcntl.LOCK_UN else _LOCK)
    if call.name == "futex":
        return _names(_SIGNAL if call.int_argument(1) & _FUTEX_COMMAND in _FUTEX_WAITS else ())
    errors = ERRORS.get(call.name, ())
    flags_at = _OPEN_FLAGS.get(call.name)
    if flags_at is not None and not call.int_argument(flags_at) & _CHANGING_FLAGS:
        errors = tuple(code for code in errors if code not in _CHANGE or code == errno.EIO)
    if call.name not in _IN_PARTS or not 0 < _half(call) < call.arguments[2]:
        return _names(errors)
    return (*_names(errors), ONE_BYTE, HALF)


def verdict_of(fault: str, call: Call) -> Verdict:
    """Return what is to become of `call` for this fault."""
    if fault == SIGKILL:
        return KILL
    if fault == ONE_BYTE:
        return Shorten(_unit(call))
    if fault == HALF:
        return Shorten(_half(call))
    # A close that fails has closed the descriptor all the same (close(2)).
    return Fail(getattr(errno, fault), made=call.name == "close")


def _fcntl_errors(call: Call) -> tuple[int, ...]:
    command = call.int_argument(1)
    if command in _DUPLICATING:
        return (errno.EMFILE,)
    return (errno.EINVAL,) if command == fcntl.F_SETFL else ()


def _unit(call: Call) -> int:
    return _DIRECT_SIZE if call.descriptor_state(0)[1] & os.O_DIRECT else 1


def _half(call: Call) -> int:
    unit = _unit(call)
    return call.arguments[2] // 2 // unit * unit


def _names(errors: tuple[int, ...]) -> tuple[str, ...]:
    return tuple(errno.errorcode[code] for code in errors)
