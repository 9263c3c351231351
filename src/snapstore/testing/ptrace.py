"""ptrace(2) through ctypes: hold a process, see its system calls, change them. No compiler, no strace.

One function for each request, on one thread of the held process. When to make which is tracer.py's.
All of them must come from the thread that seized the process: the kernel knows no other tracer.
"""

from __future__ import annotations

import ctypes
import os
import struct
from typing import NamedTuple

from snapstore.testing.machine import this_machine

# Requests and options, from <linux/ptrace.h>.
_CONT, _SYSCALL = 7, 24
_GETREGSET, _SETREGSET = 0x4204, 0x4205
_SEIZE, _GET_SYSCALL_INFO = 0x4206, 0x420E
_O_TRACESYSGOOD, _O_TRACEFORK, _O_TRACEVFORK, _O_TRACECLONE, _O_EXITKILL = 1, 2, 4, 8, 1 << 20
_NT_PRSTATUS, _NT_ARM_SYSTEM_CALL = 1, 0x404

#: struct ptrace_syscall_info is 88 bytes; room for what later kernels add.
_INFO_SIZE = 128
_ENTRY = struct.Struct("=B23xQ6Q")
_EXIT = struct.Struct("=B23xq")
_OP_ENTRY, _OP_EXIT = 1, 2

#: The largest register set of both machines has 34 words.
_REGISTERS_MAX = 64

#: What a call gives back that was never made: its number is none.
_NO_CALL = -1

#: waitpid: threads too, whatever made them (<linux/wait.h>).
WAIT_ALL = 0x40000000

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
_libc.ptrace.restype = ctypes.c_long


class _Vector(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class Entry(NamedTuple):
    """A call that is about to be made."""

    number: int
    arguments: tuple[int, ...]


class Exit(NamedTuple):
    """A call that was made; `result` is its value or a negative errno."""

    result: int


def seize(pid: int) -> None:
    """Hold `pid` and all threads and children it will have; they die with us."""
    options = _O_TRACESYSGOOD | _O_TRACEFORK | _O_TRACEVFORK | _O_TRACECLONE | _O_EXITKILL
    _request(_SEIZE, pid, 0, options)


def go_on(tid: int, *, to_next_call: bool, signal_number: int = 0) -> None:
    """Let a stopped thread run on, to its next call or at full speed, and give it a signal."""
    _request(_SYSCALL if to_next_call else _CONT, tid, 0, signal_number)


def call_at(tid: int) -> Entry | Exit | None:
    """What a thread stands at: the beginning of a call, or its end; None where it is neither."""
    buffer = ctypes.create_string_buffer(_INFO_SIZE)
    _request(_GET_SYSCALL_INFO, tid, _INFO_SIZE, ctypes.addressof(buffer))
    if buffer.raw[0] == _OP_ENTRY:
        _, number, *arguments = _ENTRY.unpack_from(buffer)
        return Entry(number, tuple(arguments))
    return Exit(_EXIT.unpack_from(buffer)[1]) if buffer.raw[0] == _OP_EXIT else None


def skip_call(tid: int) -> None:
    """Have the call that is about to be made not made; `set_result` at its end says what it gave."""
    machine = this_machine()
    if machine.number is not None:
        _change_register(tid, machine.number, _NO_CALL)
        return
    none = ctypes.c_int(_NO_CALL)
    vector = _Vector(ctypes.addressof(none), ctypes.sizeof(none))
    _request(_SETREGSET, tid, _NT_ARM_SYSTEM_CALL, ctypes.addressof(vector))


def set_argument(tid: int, position: int, value: int) -> None:
    """Change an argument, counted from 0, of the call that is about to be made."""
    _change_register(tid, this_machine().arguments[position], value)


def set_result(tid: int, value: int) -> None:
    """Change what the call that was made gives back: a value or a negative errno."""
    _change_register(tid, this_machine().result, value)


def _change_register(tid: int, index: int, value: int) -> None:
    words = (ctypes.c_uint64 * _REGISTERS_MAX)()
    vector = _Vector(ctypes.addressof(words), ctypes.sizeof(words))
    _request(_GETREGSET, tid, _NT_PRSTATUS, ctypes.addressof(vector))
    words[index] = value & (2**64 - 1)
    _request(_SETREGSET, tid, _NT_PRSTATUS, ctypes.addressof(vector))


def _request(request: int, tid: int, address: int, data: int) -> None:
    """Raises ProcessLookupError where the thread is gone, as it may be at any moment."""
    if _libc.ptrace(request, tid, address, data) == -1:
        code = ctypes.get_errno()
        raise OSError(code, f"ptrace: {os.strerror(code)}")
