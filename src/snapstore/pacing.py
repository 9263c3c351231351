"""The closed loop over a `Throttle`: transfers yield before the node suffers, and take the room back.

It must not know what is transferred, nor what the node's health is made of. Figures in, rates out.

Plan: the node says how strained it is, asked or by itself: 1 is the most that it can bear (fsync latency
of its log over what an election allows, or heartbeats used up). Once in each period the worst that was
heard decides: strained, the rate is halved; at ease, it grows by a quarter, until it is no limit any
more. As TCP does it: quick to yield, slow to come back, and always probing.
"""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

from snapstore._fastpipe import RATE_LIMIT_MIN, Throttle
from snapstore.clock import SystemClock

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from typing_extensions import Self

    from snapstore.protocols import Clock

logger = logging.getLogger("snapstore")

#: How often it decides, in seconds: several times within the shortest election timeout in use (0.4 s,
#: PySyncObj's).
PERIOD_S = 0.1

#: From this strain on transfers yield: with 1 it would be too late already, and what they have in the
#: disk's queue by then is still to be waited for.
STRAIN_HIGH = 0.5

#: Up to this strain they take room back; between the two all stays as it is.
STRAIN_LOW = 0.25

#: What they are slowed down to at once, and sped up by in each period.
YIELD_FACTOR = 0.5
RECOVER_FACTOR = 1.25

#: The least that transfers keep, in bytes/s, however strained the node is: a follower that never gets its
#: snapshot costs the cluster more than a slow disk does.
RATE_MIN = 1024 * 1024


class Pacer:
    """Sets the rate of `throttles` by how strained the node is. For any thread.

    `strain()`, where given, is called once in each period on a thread of the clock's, and must be
    quick: 0 for a node at ease, 1 for one at the edge. A node that knows by itself calls `report`.
    What raises counts as no news, and no news as ease. Rates in bytes/s: `rate_min` is what transfers
    always have, `rate_max` what they have at most, None for no limit.
    """

    def __init__(
        self,
        throttles: Sequence[Throttle],
        strain: Callable[[], float] | None = None,
        *,
        rate_min: int = RATE_MIN,
        rate_max: int | None = None,
        period_s: float = PERIOD_S,
        clock: Clock | None = None,
    ) -> None:
        if rate_min < RATE_LIMIT_MIN or (rate_max is not None and rate_max < rate_min) or period_s <= 0:
            raise ValueError(
                f"rates are {RATE_LIMIT_MIN} bytes/s or more and in their order, period_s above 0"
            )
        self._rate_min = rate_min
        self._rate_max = rate_max
        self._strain = strain
        self._period_s = period_s
        self._lock = threading.Lock()
        self._worst = 0.0
        self._closed = False
        self._governed = [_Governed(throttle) for throttle in throttles]
        for throttle in throttles:
            throttle.rate = rate_max
        self._own_clock: SystemClock | None = None
        if clock is None:
            clock = self._own_clock = SystemClock()
        self._clock = clock
        self._timer = clock.call_later(period_s, self._decide)

    def report(self, strain: float) -> None:
        """Say how strained the node is; the worst that is said within a period counts."""
        with self._lock:
            self._worst = max(self._worst, strain)

    def close(self) -> None:
        """Leave the throttles as they are, at `rate_max`. May come twice."""
        with self._lock:
            self._closed = True
            for governed in self._governed:
                governed.throttle.rate = self._rate_max
        self._timer.cancel()
        if self._own_clock is not None:
            self._own_clock.close()

    def _decide(self) -> None:
        if self._strain is not None:
            try:
                self.report(self._strain())
            except Exception:
                logger.exception("how strained the node is could not be told")
        with self._lock:
            worst, self._worst = self._worst, 0.0
            if self._closed:
                return
            self._timer = self._clock.call_later(self._period_s, self._decide)
            # Under the lock, as in `close`: whichever comes last has the last word on the rates.
            for governed in self._governed:
                moved = governed.rate_moved(self._period_s)
                if worst >= STRAIN_HIGH:
                    self._yield(governed.throttle, moved)
                elif worst <= STRAIN_LOW:
                    self._recover(governed.throttle, moved)

    def _yield(self, throttle: Throttle, moved: int) -> None:
        """Halve what is moved, which may be less than what is allowed."""
        if moved:
            before = moved if throttle.rate is None else min(moved, throttle.rate)
            throttle.rate = max(self._rate_min, int(before * YIELD_FACTOR))

    def _recover(self, throttle: Throttle, moved: int) -> None:
        """Allow a little more, unless what is allowed is far from being used."""
        if throttle.rate is None or throttle.rate == self._rate_max:
            return
        rate = int(throttle.rate * RECOVER_FACTOR)
        if self._rate_max is not None:
            throttle.rate = min(rate, self._rate_max)
        else:
            # More than twice what is moved is no limit, and none costs nothing.
            throttle.rate = None if rate > 2 * max(moved, self._rate_min) else rate

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Pacer {[governed.throttle for governed in self._governed]}>"


class _Governed:
    """A throttle, and how much it had moved when it was last looked at."""

    def __init__(self, throttle: Throttle) -> None:
        self.throttle = throttle
        self._bytes_before = throttle.bytes

    def rate_moved(self, period_s: float) -> int:
        """Return what was moved since the last call, in bytes/s."""
        moved = self.throttle.bytes - self._bytes_before
        self._bytes_before += moved
        return int(moved / period_s)
