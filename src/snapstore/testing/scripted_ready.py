"""What one turn of a scripted node owes, what a leader knows of a follower, and how a broken rule is told.

It must not know the node: no messages are made and no log is read here.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from snapstore.testing.scripted_messages import Entry, Message, Snapshot


class NodePanic(BaseException):
    """The process would have ended here."""


class RuleBroken(AssertionError):
    """The node's author did what goes wrong later."""


class ProgressState(enum.Enum):
    """How a leader sees a follower."""

    PROBE = "probe"
    REPLICATE = "replicate"
    SNAPSHOT = "snapshot"


@dataclass
class Progress:
    """What a leader knows of one follower. `unreported` counts the snapshots that it must still hear of."""

    next: int
    match: int = 0
    state: ProgressState = ProgressState.PROBE
    pending_snapshot: int = 0
    paused: bool = False
    unreported: int = 0

    def become_probe(self, next_index: int) -> None:
        """Try from `next_index` on, one message at a time."""
        self.state, self.next = ProgressState.PROBE, max(self.match + 1, next_index)
        self.pending_snapshot, self.paused = 0, False

    @property
    def is_paused(self) -> bool:
        """Whether nothing is sent for now; in SNAPSHOT only the report, or the follower, ends that."""
        return self.paused or self.state is ProgressState.SNAPSHOT


@dataclass
class Ready:
    """What is to be saved, sent and applied before `advance`, in this order."""

    entries_: list[Entry]
    snapshot_: Snapshot
    committed: list[Entry]
    messages_: list[Message]
    persisted_messages_: list[Message]
    is_saved: Callable[[Ready], bool] = field(repr=False)

    def snapshot(self) -> Snapshot:
        """The snapshot to be installed and saved; its index is 0 where there is none."""
        return self.snapshot_

    def entries(self) -> list[Entry]:
        """What is to be appended to the log, behind the snapshot."""
        return list(self.entries_)

    def take_committed_entries(self) -> list[Entry]:
        """What is to be applied."""
        taken, self.committed = self.committed, []
        return taken

    def take_messages(self) -> list[Message]:
        """What may be sent at once."""
        taken, self.messages_ = self.messages_, []
        return taken

    def take_persisted_messages(self) -> list[Message]:
        """What may be sent when the rest is saved."""
        if not self.is_saved(self):
            raise RuleBroken("a response was taken before the log had what it responds to")
        taken, self.persisted_messages_ = self.persisted_messages_, []
        return taken
