"""One transfer, as it is seen from outside: who, what, how far, how fast, and what came of it.

It must not know how bytes are moved: it reads the `Progress` that the C core counts in, and the clock.

Plan: while a transfer is under way everything is worked out anew at each `look`, from the Progress and
from what the looks before it have seen; nothing is done between two looks, so that being watched costs
nothing. When it ends, the last look is kept.
"""

from __future__ import annotations

import enum
import threading
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple

from snapstore.errors import NoRoom, PeerRejected, PipeClosed, SnapshotBusy, SnapshotExists, StoreClosed

if TYPE_CHECKING:
    from collections.abc import Callable

    from snapstore._fastpipe import Progress

#: A transfer in which nothing has moved so long is shown as stalled: the upper limit of a heartbeat's
#: interval, and well before `Deadlines.idle_timeout_s` ends it.
STALLED_AFTER_S = 5.0

#: The rate is that of about so long: longer than a disk's write-out swings, short enough to be "now".
RATE_WINDOW_S = 5.0

#: No look nearer to the one before is remembered, so that the memory of a window has a bound.
_MARK_INTERVAL_S = RATE_WINDOW_S / 10

#: What is kept of an error's words, in characters: they may be a peer's.
ERROR_SIZE_MAX = 500


class Direction(enum.Enum):
    """Which way the bytes go."""

    IN = "in"
    OUT = "out"


class State(enum.Enum):
    """How far a transfer is; the last five are ends."""

    #: No byte has moved: the other side decides, or is asked.
    OFFERED = "offered"
    MOVING = "moving"
    #: All bytes have moved: fsync, and the node's own step.
    SETTLING = "settling"
    DONE = "done"
    #: Whoever was to have it had it already.
    EXISTED = "existed"
    #: Somebody said no before a byte moved.
    REFUSED = "refused"
    #: Somebody on this side ended it.
    CANCELLED = "cancelled"
    FAILED = "failed"


#: How a transfer ends: the values of the label `outcome`.
OUTCOMES = (State.DONE, State.EXISTED, State.REFUSED, State.CANCELLED, State.FAILED)

#: Who raises these ended it on this side.
_CANCELLATIONS = (PipeClosed, StoreClosed, KeyboardInterrupt)

#: Before a byte these are a no: a peer's, or what this node would tell a peer that asks.
_REFUSALS = (PeerRejected, SnapshotBusy, NoRoom)


class Look(NamedTuple):
    """What a transfer is at one moment. Sizes in bytes, the rate in bytes/s, times in seconds."""

    state: State
    bytes: int
    rate: float
    eta_s: float | None
    stalled: bool
    elapsed_s: float
    error: str | None


class Transfer:
    """A snapshot on its way, or what came of it. Every property may be read from any thread.

    `peer` is its URL, or what the log calls it; `index` is 0 until it is known, where only the other side
    knows it; `total` is in bytes, None where only the end tells;
    `started_s` is in seconds of the epoch. `bytes` is how far the attempt has come, with what was kept of
    an earlier one. `rate` is that of the last `RATE_WINDOW_S` or since the look before, whichever is
    longer, and of the whole when it has ended. `stalled` means that nothing has moved for
    `STALLED_AFTER_S`, as far as anybody looked. Cancel it by `progress`.
    """

    def __init__(
        self,
        direction: Direction,
        peer: str,
        index: int,
        *,
        total: int | None,
        progress: Progress,
        started_s: float,
        monotonic: Callable[[], float],
    ) -> None:
        self.direction = direction
        self.peer = peer
        self.index = index
        self.total = total
        self.progress = progress
        self.started_s = started_s
        #: Whether the other side had it: whoever moves the bytes says so.
        self.existed = False
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._begun_s = self._moved_s = monotonic()
        self._begun_bytes = self._attempt_bytes = self._seen_bytes = progress.bytes
        self._marks = deque([(self._begun_s, self._begun_bytes)])
        self._end: Look | None = None
        self._moved = 0

    @property
    def state(self) -> State:
        """How far it is."""
        return self.look().state

    @property
    def bytes(self) -> int:
        """How many bytes its attempt has come to."""
        return self.look().bytes

    @property
    def rate(self) -> float:
        """In bytes/s."""
        return self.look().rate

    @property
    def eta_s(self) -> float | None:
        """Seconds left; None where nobody knows."""
        return self.look().eta_s

    @property
    def stalled(self) -> bool:
        """Whether nothing moves any more."""
        return self.look().stalled

    @property
    def error(self) -> str | None:
        """Why it did not end well, in words; None where it did."""
        return self.look().error

    @property
    def moved(self) -> int:
        """The bytes that all its attempts have moved, which may be more than `total`."""
        with self._lock:
            return self._moved if self._end else self.progress.bytes - self._begun_bytes

    def begin_attempt(self, kept: int = 0) -> None:
        """Say that the bytes begin anew, behind `kept` of them that need not move: after a break."""
        with self._lock:
            self._attempt_bytes = self.progress.bytes - kept

    def look(self) -> Look:
        """Return what it is now, all at the same moment."""
        with self._lock:
            return self._end or self._measure()

    def end(self, error: BaseException | None) -> Look:
        """Be over, with `error` or well; for the registry. Returns what is kept of it."""
        with self._lock:
            last = self._measure()
            self._moved = self._seen_bytes - self._begun_bytes
            self._end = last._replace(
                state=self._outcome(error),
                rate=self._moved / last.elapsed_s if last.elapsed_s > 0 else 0.0,
                eta_s=None,
                stalled=False,
                error=None if error is None else f"{type(error).__name__}: {error}"[:ERROR_SIZE_MAX],
            )
            return self._end

    def to_json(self) -> dict[str, Any]:
        """Return what is told of it to machines, in the log too."""
        look = self.look()
        return {
            "direction": self.direction.value,
            "peer": self.peer,
            "index": self.index,
            "bytes": look.bytes,
            "total": self.total,
            "rate": round(look.rate, 1),
            "eta_s": None if look.eta_s is None else round(look.eta_s, 3),
            "stalled": look.stalled,
            "state": look.state.value,
            "error": look.error,
            "started_s": round(self.started_s, 3),
            "elapsed_s": round(look.elapsed_s, 6),
        }

    def _measure(self) -> Look:
        now_s, seen = self._monotonic(), self.progress.bytes
        if seen != self._seen_bytes:
            self._seen_bytes, self._moved_s = seen, now_s
        marks = self._marks
        while len(marks) > 1 and marks[1][0] <= now_s - RATE_WINDOW_S:
            marks.popleft()
        since_s, since_bytes = marks[0]
        rate = (seen - since_bytes) / (now_s - since_s) if now_s > since_s else 0.0
        if now_s - marks[-1][0] >= _MARK_INTERVAL_S:
            marks.append((now_s, seen))
        done = seen - self._attempt_bytes
        state, eta_s = State.MOVING if done else State.OFFERED, None
        if self.total is not None:
            if done and done >= self.total:
                state = State.SETTLING
            elif done and rate > 0:
                eta_s = (self.total - done) / rate
        stalled = state is not State.SETTLING and now_s - self._moved_s >= STALLED_AFTER_S
        return Look(state, done, rate, eta_s, stalled, now_s - self._begun_s, None)

    def _outcome(self, error: BaseException | None) -> State:
        if error is None:
            return State.EXISTED if self.existed else State.DONE
        # What a peer is told of a cancelled save is a refusal, and who waits for a peer and is cancelled
        # finds a broken line: what happened stands behind it, or in the progress.
        causes = (error, error.__cause__)
        ended_here = self.progress.cancelled or any(isinstance(cause, _CANCELLATIONS) for cause in causes)
        # The disk that fills up ends a save of unknown size in the same way, and is nobody's wish.
        if ended_here and not any(isinstance(cause, NoRoom) for cause in causes):
            return State.CANCELLED
        if isinstance(error, SnapshotExists):
            return State.EXISTED
        return State.REFUSED if isinstance(error, _REFUSALS) and not self._moved else State.FAILED

    def __repr__(self) -> str:
        look = self.look()
        way = "from" if self.direction is Direction.IN else "to"
        return f"<Transfer {self.index} {way} {self.peer} {look.state.value} {look.bytes} of {self.total}>"
