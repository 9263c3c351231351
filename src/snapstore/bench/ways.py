"""One way to do the work that is measured: what is timed, and what happens before and after."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

from snapstore.bench.neighbour import busy_thread


def nothing() -> None:
    """Do nothing: for a way that has nothing to prepare, or nothing to verify."""


@dataclass(frozen=True)
class Way:
    """A way to do the work.

    `run` is what is timed, with its last fsync. It may return seconds that it measured itself, where what
    counts is only a part of it. `prepare` comes before it and `check` after it, neither timed: `check`
    verifies the content, raises where it is wrong, and removes what was made, so that all rounds start
    alike. `beside` is entered before the clock starts and left after it stopped. `size` in bytes, where it
    is not that of the whole comparison; `processes` are the ids of other processes that work for it and
    live on: their CPU time counts. Children that end within `run` count by themselves. `tells_cpu` is False
    where the CPU time of all that is no measure of the bytes: then none is told.
    """

    name: str
    run: Callable[[], float | None]
    check: Callable[[], None] = nothing
    prepare: Callable[[], None] = nothing
    beside: Callable[[], AbstractContextManager[object]] = nullcontext
    size: int | None = None
    processes: Sequence[int] = ()
    tells_cpu: bool = True

    def busy(self) -> Way:
        """Return the same way, in a process that has a thread computing all the time besides."""
        return replace(self, name=f"{self.name}, busy", beside=busy_thread)
