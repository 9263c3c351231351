"""The SyncObj that has our hooks, from inside: its log, and what it must not believe.

It must not know tickets or KVs. All that is used of PySyncObj beyond its manual stands here.

Until a snapshot is installed, PySyncObj does two things that raft forbids, for a moment with its own dumps,
for as long as the fetch takes with ours. With each message that belongs to a snapshot it takes its whole log
as committed; and when it has been shown the dump it says that its whole log is the leader's. A leader that
was deposed would apply what it could never commit, and tell its clients of success.
"""

from __future__ import annotations

import logging
import weakref
from functools import partial
from typing import TYPE_CHECKING, Any

from snapstore.errors import SnapshotTemporarilyUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


class AttachedNode:
    """One SyncObj, held weakly. For PySyncObj's thread; ReferenceError when it is gone."""

    def __init__(self, node: Any) -> None:
        self._node = weakref.proxy(node)
        logging.getLogger("pysyncobj.syncobj").addFilter(_drop_later)
        transport = node._SyncObj__transport
        transport._onMessageReceivedCallback = partial(_receive, transport._onMessageReceivedCallback)

    @property
    def _log(self) -> Any:
        return self._node._SyncObj__raftLog

    @property
    def first_index(self) -> int:
        """The first entry of its log: the one before the snapshot that it went on from last."""
        return int(self._log[0][1])

    @property
    def applied(self) -> int:
        """The entry that was applied last."""
        return int(self._node.raftLastApplied)

    @property
    def status(self) -> Mapping[str, Any]:
        """What a leader knows of the others; nothing of one that does not lead."""
        # `_isLeader` has its underscore from long ago; it is in PySyncObj's manual.
        return self._node.getStatus() if self._node._isLeader() else {}

    def needs(self, index: int, term: int) -> bool:
        """Whether only a snapshot gives it the entry `index`, which is committed with `term`."""
        at = index - self.first_index
        known = 0 <= at < len(self._log) and self._log[at][2] == term
        return self.applied < index and not (known and self.first_index <= self.applied + 1)

    def drop_uncommitted(self) -> None:
        """Shorten its log to what is committed, so that whatever it says of its log is true.

        Only while it needs a snapshot: then others are a majority with all that is committed, and what
        it has beyond is the leader's no more. Membership changes that were dropped are undone.
        """
        node, log = self._node, self._log
        kept = max(self.first_index, node.raftCommitIndex, self.applied) + 1 - self.first_index
        if node.conf.dynamicMembershipChange:
            for command, _index, _term in reversed(log[kept:]):
                change = node._SyncObj__parseChangeClusterRequest(command)
                if change is not None:
                    node._SyncObj__doChangeCluster(change, reverse=True)
        if len(log) > kept:
            log.deleteEntriesFrom(kept)

    def begin_with(self, index: int) -> None:
        """Let its log begin with `index`, where it began before: else PySyncObj drops all of it.

        It does so, rightly, where that entry is another one than its dump says.
        """
        if index > self.first_index:
            self._log.deleteEntriesTo(index - self.first_index)


def _receive(receive: Callable[[Any, Any], None], sender: Any, message: Mapping[str, Any]) -> None:
    """Pass `message` on; one that belongs to a snapshot says nothing of what is committed."""
    if message["type"] == "append_entries" and "prevLogIdx" not in message:
        message = {**message, "commit_index": 0}
    receive(sender, message)


def _drop_later(record: logging.LogRecord) -> bool:
    """Whether PySyncObj may log this: "later" comes with each message of the leader, and is no failure."""
    return not (record.exc_info and isinstance(record.exc_info[1], SnapshotTemporarilyUnavailable))
