"""Compaction held back while a follower fetches: else it would fall out of the log again at once.

It must not know snapshots or tickets, only what PySyncObj's status tells, and the two settings of its
conf that say when it compacts. PySyncObj reads them in each tick.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

logger = logging.getLogger("snapstore.raft")

#: A member that confirmed nothing for so long, in seconds, while others did, may be fetching. Much more
#: than the interval of PySyncObj's messages, much less than a compaction is worth.
STALLED_S = 0.5

_MATCH = "match_idx_server_"
_NEXT = "next_node_idx_server_"
_STATE = "partner_node_status_server_"

#: Of a member's state: connected.
_CONNECTED = 2


class CompactionHold:
    """Keeps the log of one node while members have not caught up with what it begins with.

    Limits: no member is waited for longer than `held_s_max` seconds, and with more than
    `held_entries_max` entries the log is compacted all the same. For PySyncObj's thread.
    """

    def __init__(
        self, conf: Any, monotonic: Callable[[], float], *, held_s_max: float, held_entries_max: int
    ) -> None:
        self._conf = conf
        self._monotonic = monotonic
        self._held_s_max = held_s_max
        self._held_entries_max = held_entries_max
        # While the log is held: each setting as it was, and as it was set.
        self._raised: dict[str, tuple[float, float]] = {}
        self._members: dict[str, _Member] = {}

    def update(self, status: Mapping[str, Any], first_index: int) -> None:
        """Look at the members of the node with this status, and hold or let go; it is empty but for a leader.

        Its log begins with `first_index`. For each tick: some microseconds.
        """
        now_s = self._monotonic()
        matches = {
            who: index
            for name, index in status.items()
            if name.startswith(_MATCH)
            and status.get(_STATE + (who := name.removeprefix(_MATCH))) == _CONNECTED
        }
        self._members = {
            who: self._members.get(who) or _Member(match, now_s) for who, match in matches.items()
        }
        for who, member in self._members.items():
            # Nor is a match below the log's beginning needed to need a snapshot: a member that lost its
            # disk matched more before, and PySyncObj does not forget that.
            member.note(matches[who], status["commit_idx"], now_s)
            if status[_NEXT + who] <= first_index or now_s - member.moved_s > STALLED_S:
                member.wait(now_s + self._held_s_max)
            else:
                member.let_go_at(status["commit_idx"])
        self._set([who for who, member in self._members.items() if now_s < member.until_s])

    def _set(self, waited_for: list[str]) -> None:
        if bool(waited_for) == bool(self._raised):
            return
        if waited_for:
            logger.info("the log is kept for %s", ", ".join(waited_for))
            limits = {
                "logCompactionMinEntries": self._held_entries_max,
                "logCompactionMinTime": self._held_s_max,
            }
            for name, limit in limits.items():
                own = getattr(self._conf, name)
                self._raised[name] = (own, max(own, limit))
                setattr(self._conf, name, max(own, limit))
        else:
            self.let_go()

    def let_go(self) -> None:
        """Give the conf its own settings back; what was changed meanwhile stays as it was changed."""
        for name, (own, raised) in self._raised.items():
            if getattr(self._conf, name) == raised:
                setattr(self._conf, name, own)
        self._raised.clear()


class _Member:
    """What is seen of one member: what it has, and until when the log is kept for it."""

    def __init__(self, match: int, now_s: float) -> None:
        self.match = match
        #: When it last confirmed something, or had all there was.
        self.moved_s = now_s
        #: It is waited for until then; 0 where it is not.
        self.until_s = 0.0
        # What it has to reach, known when it is on its way.
        self._target: int | None = None

    def note(self, match: int, committed: int, now_s: float) -> None:
        if match != self.match or match >= committed:
            self.match, self.moved_s = match, now_s

    def wait(self, until_s: float) -> None:
        self.until_s = self.until_s or until_s
        self._target = None

    def let_go_at(self, committed: int) -> None:
        if self._target is None:
            self._target = committed
        if self.match >= self._target:
            self.until_s = 0.0
