"""A snapshot that somebody holds: who, since when, for how long, and what it costs meanwhile.

It must not know how anything is held, nor what happens at the end of the time: that is for whoever
lends. A stored file's lease keeps purges off, a pin's keeps a KV from using its pages again.
"""

from __future__ import annotations

import enum
import logging
import sys
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

logger = logging.getLogger("snapstore")

#: A day. A stored snapshot costs nothing but its place on the disk, and even 1 TiB has come through a link
#: of 100 Mbit/s in a day: what is held for longer was more likely forgotten than slow.
STORED_TTL_S = 24 * 3600.0

#: An hour, which carries 450 GB over a link of 1 Gbit/s. Meanwhile the KV's file grows with every write.
PIN_TTL_S = 3600.0

#: Whose calls are not the holder's own: they stand between him and us, or began one of our threads.
_BETWEEN = frozenset({"snapstore", "asyncio", "concurrent", "contextlib", "threading"})


class Kind(enum.Enum):
    """What is held."""

    STORED = "stored"
    PIN = "pin"


class Lease:
    """One holder's claim on a snapshot. From any thread.

    `owner` is what the holder calls itself, else the thread's name; `taken_at` is the file, the line and
    the function from which it was asked for. `ttl_s`, above 0, is how long it may be held, in seconds of
    `monotonic`; what it costs is asked of `cost` each time, in bytes, or None where nobody knows.
    """

    def __init__(
        self,
        kind: Kind,
        index: int,
        *,
        owner: str | None,
        ttl_s: float,
        monotonic: Callable[[], float],
        cost: Callable[[], int | None],
    ) -> None:
        self.kind = kind
        self.index = index
        self.owner = threading.current_thread().name if owner is None else owner
        self.taken_at = _caller()
        self.ttl_s = check_ttl(ttl_s)
        self._monotonic = monotonic
        self._since_s = monotonic()
        self._cost = cost
        self._reported = False

    @property
    def age_s(self) -> float:
        """How long it has been held, in seconds."""
        return self._monotonic() - self._since_s

    @property
    def left_s(self) -> float:
        """How long it may still be held, in seconds; below 0 once overdue."""
        return self.ttl_s - self.age_s

    @property
    def overdue(self) -> bool:
        """Whether its time is up."""
        return self.left_s <= 0

    @property
    def bytes_held(self) -> int | None:
        """What it costs now: of a stored file its size, of a pin what the KV must not use again."""
        return self._cost()

    def report(self, consequence: str) -> None:
        """Log once that its time is up, and what comes of it."""
        if not self._reported:
            self._reported = True
            # As it is now: a handler may look at it later, when it has been given back.
            logger.warning("forgotten? %s; %s", str(self), consequence)

    def to_json(self) -> dict[str, Any]:
        """Return what is told of it to machines. A time without end is None, as JSON knows no infinity."""
        endless = self.ttl_s == float("inf")
        return {
            "kind": self.kind.value,
            "index": self.index,
            "owner": self.owner,
            "taken_at": self.taken_at,
            "age_s": round(self.age_s, 3),
            "left_s": None if endless else round(self.left_s, 3),
            "overdue": self.overdue,
            "bytes_held": self.bytes_held,
        }

    def __str__(self) -> str:
        held = self.bytes_held
        cost = "" if held is None else f", at a cost of {held} bytes"
        return f"snapshot {self.index} ({self.kind.value}) held for {self.age_s:.0f} s{cost} by {self.holder}"

    @property
    def holder(self) -> str:
        """Who holds it, and where it was taken: for people."""
        return f"{self.owner!r}, taken at {self.taken_at}"

    def __repr__(self) -> str:
        return f"<Lease of {self}>"


def check_ttl(ttl_s: float) -> float:
    """Return `ttl_s`; raises ValueError unless it is a number of seconds above 0."""
    if not ttl_s > 0:  # Said this way round, NaN is refused too.
        raise ValueError(f"ttl_s must be above 0 seconds, not {ttl_s!r}")
    return ttl_s


def _caller() -> str:
    """File, line and function of the nearest call that is not ours, else of our outermost."""
    frame: FrameType | None = sys._getframe(2)
    told = sys._getframe(2)
    while frame is not None:
        package = frame.f_globals.get("__name__", "").partition(".")[0]
        if package not in _BETWEEN:
            told = frame
            break
        if package == "snapstore":
            told = frame
        frame = frame.f_back
    return f"{told.f_code.co_filename}:{told.f_lineno} in {told.f_code.co_name}"
