"""Which part of the log followers will need next: compaction waits for them, within limits.

Numbers and moments only: no store, no engine, no timers. For one thread.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

#: A follower that has its snapshot asks for the entries behind it with its next answers, and falls out
#: again if they are gone (etcd waits as long, releaseDelayAfterSnapshot).
LINGER_S = 30.0

#: A transfer that takes longer pays with another one; the log must not grow for ever.
HELD_S_MAX = 3600.0

#: Entries that are kept beyond what the node itself would keep: at 1 KiB each that is 1 GiB of log.
HELD_ENTRIES_MAX = 1_000_000


@dataclass(eq=False)
class Hold:
    """One follower's claim on the entries behind `index`, until `until_s` on the clock."""

    index: int
    until_s: float


class Holds:
    """The claims of all transfers. `monotonic` gives seconds."""

    def __init__(
        self,
        monotonic: Callable[[], float],
        *,
        linger_s: float = LINGER_S,
        held_s_max: float = HELD_S_MAX,
        held_entries_max: int = HELD_ENTRIES_MAX,
    ) -> None:
        self._monotonic = monotonic
        self._linger_s = linger_s
        self._held_s_max = held_s_max
        self._held_entries_max = held_entries_max
        self._holds: set[Hold] = set()

    def hold(self, index: int) -> Hold:
        """Keep what follows `index` for a transfer that begins now."""
        now_s = self._forget_old()
        hold = Hold(index, now_s + self._held_s_max)
        self._holds.add(hold)
        return hold

    def release(self, hold: Hold, *, finished: bool) -> None:
        """Let go: at once, or, where the follower has its snapshot, when it had time to go on."""
        if finished:
            hold.until_s = min(hold.until_s, self._monotonic() + self._linger_s)
        else:
            self._holds.discard(hold)

    def limit(self, index: int) -> int:
        """Return up to which entry the log may go when the node would compact it up to `index`.

        One less than the lowest snapshot on its way, so that `close_snap_before` spares that one too.
        """
        self._forget_old()
        held = [hold.index - 1 for hold in self._holds if index - hold.index < self._held_entries_max]
        return max(0, min([index, *held]))

    def _forget_old(self) -> float:
        now_s = self._monotonic()
        self._holds = {hold for hold in self._holds if hold.until_s > now_s}
        return now_s
