"""A callable in a process of its own, held before each of its system calls.

`trace` forks, lets the child run at full speed until it says `begin`, and from there asks the tester
before every call of every thread what shall become of it: nothing, `KILL`, `Fail`, `Shorten`. Meanwhile
the child stands still, so that the tester may also do whatever it likes. Knows nothing of snapshots.

Plan: `Subject` is what the child has to speak with us, `Call` what the tester is asked about,
`Ended` how it came out, `_Trace` the loop between.

A fork takes only the thread that calls it: `trace` refuses a process in which other Python threads run.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import threading
import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, BinaryIO

from snapstore.testing import ptrace
from snapstore.testing.call import KILL, MARK, Call, Fail, Shorten
from snapstore.testing.raised import Raised

if TYPE_CHECKING:
    from collections.abc import Callable

    from snapstore.testing.call import Verdict

    #: Asked before each call, on which the child stands.
    OnCall = Callable[[Call], Verdict]
    #: Told of each call that was made, with its result or negative errno.
    OnReturn = Callable[[Call, int], None]

#: A child that needs longer is stuck; a save of some hundred calls takes milliseconds.
TIMEOUT_S = 30.0

#: What the kernel adds to a stop's signal when it is one at a call (PTRACE_O_TRACESYSGOOD).
_AT_CALL = signal.SIGTRAP | 0x80

#: Marks that the child makes by itself, after the tester's callable came to its end.
RETURNED, RAISED = "returned", "raised"


class Subject:
    """What the traced callable is given: the means to tell its tracer where it is."""

    def __init__(self, mark_fd: int) -> None:
        self._mark_fd = mark_fd

    def begin(self) -> None:
        """From here on every system call is seen; until here the child runs at full speed."""
        os.kill(os.getpid(), signal.SIGSTOP)  # The tracer takes the signal away.

    def mark(self, text: str) -> None:
        """Tell the tester, who sees a call named "mark" with this text at this place among the others."""
        os.write(self._mark_fd, text.encode())


@dataclass
class Ended:
    """How a traced callable ended."""

    #: It came to its end without an exception, in good time before any kill.
    returned: bool = False
    raised: Raised | None = None
    #: It was killed because it had not ended in `timeout_s`.
    hung: bool = False
    #: It ended before it came to its end, and nobody had killed it: a crash, or `os._exit`.
    died: bool = False
    #: What its process had open at the end and not at `begin`, as paths.
    descriptors_left: list[str] = field(default_factory=list)


def trace(
    act: Callable[[Subject], object],
    on_call: OnCall | None = None,
    on_return: OnReturn | None = None,
    *,
    timeout_s: float = TIMEOUT_S,
) -> Ended:
    """Run `act` in a forked child under the eyes of `on_call` and `on_return`; how it ended.

    What `on_call` or `on_return` raises ends the child and passes on. Children that the child forks are
    followed too. Raises RuntimeError where other threads run in this process.
    """
    return _Trace(on_call, on_return, timeout_s).run(act)


class _Trace:
    def __init__(self, on_call: OnCall | None, on_return: OnReturn | None, timeout_s: float) -> None:
        self._on_call, self._on_return, self._timeout_s = on_call, on_return, timeout_s
        self._watching = False
        self._was_killed = False
        self._pending: dict[int, tuple[Call, Verdict]] = {}
        self._open_before: dict[str, str] = {}
        self._ended = Ended()

    def run(self, act: Callable[[Subject], object]) -> Ended:
        if threading.active_count() > 1:
            raise RuntimeError("the child is forked, and other threads run here: use a process of its own")
        with contextlib.ExitStack() as opened:
            self._mark_fd = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
            opened.callback(os.close, self._mark_fd)
            result, told_fd = _pipe(opened)
            go, gate_fd = _pipe(opened)
            self._pid = _fork()
            if self._pid == 0:
                os.close(gate_fd)
                _be_child(act, Subject(self._mark_fd), go.fileno(), told_fd, self._timeout_s)
            os.close(told_fd)
            opened.callback(os.close, gate_fd)
            try:
                os.setpgid(self._pid, self._pid)  # `waitpid` can mean this child and no other of ours.
                ptrace.seize(self._pid)
                self._memory_fd = os.open(f"/proc/{self._pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
                opened.callback(os.close, self._memory_fd)
                os.write(gate_fd, b"go")
                self._follow()
            finally:
                self._end()
            self._take_result(result.read())
        return self._ended

    def _follow(self) -> None:
        """Until no thread of the child is left."""
        with contextlib.suppress(ChildProcessError):
            while True:
                tid, status = os.waitpid(-self._pid, ptrace.WAIT_ALL)
                if os.WIFSTOPPED(status):
                    with contextlib.suppress(ProcessLookupError):  # It was killed while it stood.
                        self._stopped(tid, os.WSTOPSIG(status), status >> 16)

    def _stopped(self, tid: int, number: int, event: int) -> None:
        deliver = 0
        if number == _AT_CALL:
            if self._watching and self._at_call(tid):
                return  # It is dead.
        elif event:
            pass  # A thread begins, or the whole stops: nothing that anybody asked about.
        elif number == signal.SIGSTOP:
            self._watching = True
            self._open_before = self._descriptors()
        else:
            self._ended.hung |= number == signal.SIGALRM
            deliver = number
        ptrace.go_on(tid, to_next_call=self._watching, signal_number=deliver)

    def _at_call(self, tid: int) -> bool:
        """A call begins or ends. Whether the child was killed."""
        at = ptrace.call_at(tid)
        if isinstance(at, ptrace.Entry):
            call = Call.of(self._pid, tid, at, self._memory_fd, self._mark_fd)
            return self._begins(call)
        if isinstance(at, ptrace.Exit) and tid in self._pending:
            call, verdict = self._pending.pop(tid)
            result = at.result
            if isinstance(verdict, Fail):
                result = -verdict.code
                ptrace.set_result(tid, result)
            if self._on_return is not None:
                self._on_return(call, result)
        return False

    def _begins(self, call: Call) -> bool:
        if call.name == MARK:
            self._ended.returned |= call.mark_text == RETURNED
        verdict = None if self._on_call is None else self._on_call(call)
        if verdict is KILL:
            self._was_killed = True
            self._kill()
            return True
        if isinstance(verdict, Fail) and not verdict.made:
            ptrace.skip_call(call.tid)
        elif isinstance(verdict, Shorten):
            ptrace.set_argument(call.tid, 2, verdict.size)
        self._pending[call.tid] = (call, verdict)
        if call.name == MARK and call.mark_text in (RETURNED, RAISED):
            self._watching = False
            after = self._descriptors()
            self._ended.descriptors_left = [
                path for fd, path in after.items() if self._open_before.get(fd) != path
            ]
        return False

    def _descriptors(self) -> dict[str, str]:
        found = {}
        for fd in os.listdir(f"/proc/{self._pid}/fd"):
            with contextlib.suppress(FileNotFoundError):
                found[fd] = os.readlink(f"/proc/{self._pid}/fd/{fd}")
        return found

    def _end(self) -> None:
        """Nothing of the child is left behind, however we came here."""
        self._kill()
        with contextlib.suppress(ChildProcessError):
            while True:
                os.waitpid(-self._pid, ptrace.WAIT_ALL)

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)

    def _take_result(self, data: bytes) -> None:
        if data:
            self._ended.raised = pickle.loads(data)
            self._ended.returned = self._ended.raised is None
        else:
            self._ended.died = not (self._was_killed or self._ended.hung)


def _pipe(opened: contextlib.ExitStack) -> tuple[BinaryIO, int]:
    """A pipe's two ends; the first is closed with `opened`."""
    read_fd, write_fd = os.pipe()
    return opened.enter_context(open(read_fd, "rb")), write_fd


def _fork() -> int:
    with warnings.catch_warnings():
        # From 3.12 on it warns of threads. Those of Python were refused above; C's hold none of its locks.
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def _be_child(
    act: Callable[[Subject], object], subject: Subject, go_fd: int, told_fd: int, timeout_s: float
) -> None:
    """Run `act` and tell how it went; never returns."""
    try:
        if not os.read(go_fd, 1):  # Until the tracer holds us; it may have failed to.
            return
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, timeout_s)
        raised = None
        try:
            act(subject)
        except BaseException as error:  # noqa: BLE001 - the tracer has to hear of it, whatever it was.
            raised = Raised.of(error)  # Without its frames, which would keep files open.
        subject.mark(RAISED if raised else RETURNED)
        os.write(told_fd, pickle.dumps(raised))
    finally:
        # Nothing that the parent registered for its own end may run here.
        os.kill(os.getpid(), signal.SIGKILL)
