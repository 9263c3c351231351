"""The SyncObj that has our hooks, from inside: its log, and what it must not believe.

It must not know tickets or KVs. All that is used of PySyncObj beyond its manual stands here.

PySyncObj deletes from its log all that lies behind the place where a message begins, and its leader sends
some entries twice when it learns where a restarted follower stands. So that one would lose, for a moment,
entries that it has confirmed, and applied perhaps: were the leader gone then, they would be lost for good.
Raft deletes only what differs from the leader's log (section 5.3 of its paper), and so it is done here.

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
        transport._onMessageReceivedCallback = partial(self._receive, transport._onMessageReceivedCallback)

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

    def _receive(self, receive: Callable[[Any, Any], None], sender: Any, message: Mapping[str, Any]) -> None:
        """Pass `message` on, so that PySyncObj does nothing with it that raft forbids."""
        if message["type"] == "append_entries":
            if "prevLogIdx" in message:
                message = self._behind_shared(message)
            else:  # It belongs to a snapshot, and says nothing of what is committed.
                message = {**message, "commit_index": 0}
        receive(sender, message)

    def _behind_shared(self, message: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return `message`, begun behind all of its sender's log that is known to be here.

        As it is where it differs from what must be the same: PySyncObj then says so, and how grave it is.
        """
        if message["prevLogIdx"] is None:  # Its sender has nothing where this one said that it goes on.
            return message
        log, at = self._log, message["prevLogIdx"] - self.first_index
        shared = len(log) - 1
        if log[shared][2] != message["term"]:  # The last entry is not from this leader.
            shared = min(shared, max(self._node.raftCommitIndex, self.applied) - self.first_index)
        if not 0 <= at < shared:
            return message
        entries = message.get("entries", [])
        terms = [message["prevLogTerm"], *(term for _command, _index, term in entries[: shared - at])]
        if terms != [term for _command, _index, term in log[at : at + len(terms)]]:
            return message
        _command, index, term = log[shared]
        begun = {"prevLogIdx": index, "prevLogTerm": term, "entries": entries[shared - at :]}
        # A large entry comes in parts, a "transmission": it is here already, and none of them is wanted.
        return {**message, **begun, "transmission": None}


def _drop_later(record: logging.LogRecord) -> bool:
    """Whether PySyncObj may log this: "later" comes with each message of the leader, and is no failure."""
    return not (record.exc_info and isinstance(record.exc_info[1], SnapshotTemporarilyUnavailable))
