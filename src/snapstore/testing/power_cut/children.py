"""Calls in processes of their own, which end with the one that made them, and never outlive a `with`.

Forks, so that a call may be any function at all, closures included; knows nothing of what it does.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import select
import signal
import traceback
import warnings
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeVar

from snapstore.testing.power_cut import kernel
from snapstore.testing.power_cut.errors import PowerCutUnavailable, WorkloadFailed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from typing_extensions import Self

T = TypeVar("T")

#: What a child may take to unmount and to end its own children, before it is killed.
ENDING_S_MAX = 10.0

_READ_SIZE = 65536


class Ended(BaseException):
    """Raised in a child that is to end, so that it leaves its `with` blocks. Nobody should catch it."""


class Child(Generic[T]):
    """Computes `call()` in a forked process; `result` waits for it. Ended at the end of the `with`.

    It has a session of its own, so that Ctrl-C reaches the parent alone, which ends it in order; and
    it is killed when the thread that made it ends, so that nothing outlives a parent that was killed.
    """

    def __init__(self, call: Callable[[], T]) -> None:
        parent = os.getpid()
        self._pipe, answer = os.pipe()
        self._answered = False
        with warnings.catch_warnings():
            # From 3.12 on, where there are other threads. A child needs nothing that they could hold.
            warnings.simplefilter("ignore", DeprecationWarning)
            self._pid = os.fork()
        if self._pid == 0:
            _be_child(call, answer, parent)
        self._pidfd = os.pidfd_open(self._pid)
        os.close(answer)

    def fileno(self) -> int:
        """Return a descriptor that is readable when the child has an answer, or is dead."""
        return self._pipe

    def result(self, timeout_s: float) -> T:
        """Return what the call returned.

        Raises PowerCutUnavailable if the call did, WorkloadFailed with the child's traceback for any
        other exception, and when it takes longer than `timeout_s` or dies without an answer.
        """
        received = bytearray()
        while True:
            if not select.select([self._pipe], [], [], timeout_s)[0]:
                raise WorkloadFailed(f"no answer within {timeout_s} s")
            data = os.read(self._pipe, _READ_SIZE)
            if not data:
                break
            received += data
        if not received:
            raise WorkloadFailed("the process died without an answer")
        self._answered = True
        kind, value = pickle.loads(received)  # Our own child's.
        if kind is not None:
            raise kind(value)
        return value  # type: ignore[no-any-return]

    def close(self) -> None:
        """End it: it leaves its `with` blocks, or is killed if that takes too long."""
        if not self._answered:
            signal.pidfd_send_signal(self._pidfd, signal.SIGTERM)
        if not select.select([self._pidfd], [], [], ENDING_S_MAX)[0]:
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        os.close(self._pidfd)
        os.close(self._pipe)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def in_parallel(calls: Iterable[Callable[[], T]], at_once: int, timeout_s: float) -> Iterator[T]:
    """Yield what the calls return, in the order in which they end; `at_once` of them run at a time.

    WorkloadFailed when none ends for `timeout_s`. All are ended when the generator is closed.
    """
    waiting = iter(calls)
    running: list[Child[T]] = []
    try:
        while True:
            while len(running) < at_once and (call := next(waiting, None)) is not None:
                running.append(Child(call))
            if not running:
                return
            ready = select.select(running, [], [], timeout_s)[0]
            if not ready:
                raise WorkloadFailed(f"no process ended within {timeout_s} s")
            result = ready[0].result(timeout_s)
            running.remove(ready[0])
            ready[0].close()
            yield result
    finally:
        for child in running:
            child.close()


def _be_child(call: Callable[[], object], answer: int, parent: int) -> NoReturn:
    outcome: tuple[Any, object]
    try:
        os.setsid()
        signal.signal(signal.SIGTERM, _end)
        kernel.die_with_parent(signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
        outcome = (None, call())
    except PowerCutUnavailable as error:
        outcome = (PowerCutUnavailable, str(error))
    except BaseException:  # noqa: BLE001 - whatever it is, the parent is told of it
        outcome = (WorkloadFailed, traceback.format_exc())
    with contextlib.suppress(BaseException), os.fdopen(answer, "wb") as pipe:
        pickle.dump(outcome, pipe)
    os._exit(0)


def _end(number: int, frame: object) -> NoReturn:
    raise Ended
