"""When a transfer that failed is tried again, and when it is given up: one policy for the whole package.

Decides, and waits where it is asked to; no threads, no sockets, and nothing of what is tried. Time,
chance and sleep come in through the constructor.
"""

from __future__ import annotations

import logging
import random
import time
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, TypeVar

from snapstore.errors import PeerRejected, PeerUntrusted, TransportError

if TYPE_CHECKING:
    from collections.abc import Callable

    from snapstore._fastpipe import Progress

logger = logging.getLogger("snapstore.retry")

T = TypeVar("T")

#: Attempts in a row that got no further. With the delays below the last comes about a minute after
#: the first: a follower that restarts is back by then.
ATTEMPTS_MAX = 8

#: The first wait. A connection that broke by chance is there again at once.
DELAY_S_FIRST = 0.5

#: The longest wait; a raft cluster has a handful of nodes, so this is no load for anybody.
DELAY_S_MAX = 15.0

#: A pinned KV cannot reuse its pages, so that it grows with each write: nobody may pin it for ever.
ELAPSED_S_MAX = 3600.0

#: An attempt that passed the furthest one before it by so many bytes got on. Less may be what lay in
#: the buffers of the line, which the follower never saw.
PROGRESS_SIZE_MIN = 16 * 1024 * 1024

#: Between two looks at whether a wait was cancelled: as the waits of the C core have it.
WAIT_SLICE_S = 0.05

#: What a follower says no with for the moment. All other refusals stand until somebody changes something.
PASSING_STATUSES = frozenset(
    {
        HTTPStatus.REQUEST_TIMEOUT,
        HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE,
        HTTPStatus.UNPROCESSABLE_ENTITY,
        HTTPStatus.TOO_MANY_REQUESTS,
        HTTPStatus.INTERNAL_SERVER_ERROR,
        HTTPStatus.BAD_GATEWAY,
        HTTPStatus.SERVICE_UNAVAILABLE,
        HTTPStatus.GATEWAY_TIMEOUT,
    }
)


@dataclass(frozen=True)
class RetryPolicy:
    """How patient one is with a transfer. Immutable; shared by all of them, from any thread.

    An attempt that got further than all before it counts as the first one again: a transfer that
    comes on is not given up, however often its line breaks. After `elapsed_s_max` seconds none begins.
    `random` gives numbers in 0..1, `monotonic` seconds, and `sleep` takes them.
    """

    attempts_max: int = ATTEMPTS_MAX
    delay_s_first: float = DELAY_S_FIRST
    delay_s_max: float = DELAY_S_MAX
    elapsed_s_max: float = ELAPSED_S_MAX
    progress_size_min: int = PROGRESS_SIZE_MIN
    random: Callable[[], float] = random.random
    monotonic: Callable[[], float] = time.monotonic
    sleep: Callable[[float], object] = time.sleep

    def __post_init__(self) -> None:
        # Not the other way round: a NaN is no number of seconds either.
        if self.attempts_max < 1 or not 0 < self.delay_s_first <= self.delay_s_max:
            raise ValueError("attempts_max is 1 or more, the delays above 0 seconds and in their order")
        if not self.elapsed_s_max > 0 or self.progress_size_min < 1:
            raise ValueError("elapsed_s_max is above 0 seconds, and progress_size_min 1 byte or more")

    def begin(self, passing: Callable[[BaseException], bool] | None = None) -> Retries:
        """Return the account of a transfer that begins now; `passing` stands in for `is_passing`."""
        return Retries(self, passing or is_passing)

    def run(
        self,
        attempt: Callable[[], T],
        progress: Progress,
        what: str,
        passing: Callable[[BaseException], bool] | None = None,
    ) -> T:
        """Call `attempt` until it succeeds; raises what the last one did when there is no use in more.

        `progress` counts the bytes of all attempts together. Whoever cancels it ends a wait, too: the
        failure before it is raised then. `what` names the transfer in the log, which tells of each
        failure that is not raised. Blocks the calling thread; Ctrl-C ends it at once.
        """
        retries = self.begin(passing)
        while True:
            begun_size = progress.bytes
            try:
                return attempt()
            except Exception as error:
                delay_s = retries.delay_s(error, progress.bytes - begun_size)
                if delay_s is None or progress.cancelled:
                    raise
                logger.warning("%s goes on in %.1f s: %s", what, delay_s, error)
                if not self._wait(delay_s, progress):
                    raise

    def _wait(self, delay_s: float, progress: Progress) -> bool:
        """Wait so long; False where it was cancelled meanwhile."""
        until_s = self.monotonic() + delay_s
        while (left_s := until_s - self.monotonic()) > 0 and not progress.cancelled:
            self.sleep(min(left_s, WAIT_SLICE_S))
        return not progress.cancelled

    def delay_s(self, failures: int, advised_s: float | None = None) -> float:
        """How long to wait after so many failures, in seconds; never less than the peer advised.

        Half of it is chance, so that those who failed together do not come back together.
        """
        longest_s = min(self.delay_s_max, self.delay_s_first * 2.0 ** min(failures - 1, 32))
        return (advised_s or 0.0) + longest_s * (0.5 + 0.5 * self.random())


class Retries:
    """The account of one transfer. One thread at a time."""

    def __init__(self, policy: RetryPolicy, passing: Callable[[BaseException], bool]) -> None:
        self._policy = policy
        self._passing = passing
        self._until_s = policy.monotonic() + policy.elapsed_s_max
        self._furthest_size = 0
        self._failures = 0

    def delay_s(self, error: BaseException, reached_size: int) -> float | None:
        """How many seconds to wait before the next attempt; None to give up.

        `error` is what the last attempt failed with, and `reached_size` how many bytes into the
        snapshot it came.
        """
        if reached_size >= self._furthest_size + self._policy.progress_size_min:
            self._furthest_size, self._failures = reached_size, 0
        self._failures += 1
        if not self._passing(error) or self._failures >= self._policy.attempts_max:
            return None
        delay_s = self._policy.delay_s(self._failures, advice_of(error))
        return None if self._policy.monotonic() + delay_s > self._until_s else delay_s


def is_passing(error: BaseException) -> bool:
    """Whether the same attempt may succeed a little later: it was the line, or the peer's moment."""
    if isinstance(error, PeerRejected):
        # Who says when to come again means it, whatever the no is called.
        return error.status in PASSING_STATUSES or error.retry_after_s is not None
    return isinstance(error, TransportError) and not isinstance(error, PeerUntrusted)


def advice_of(error: BaseException | None) -> float | None:
    """How long the peer asked to be left alone, in seconds; None where it did not."""
    return error.retry_after_s if isinstance(error, PeerRejected) else None
