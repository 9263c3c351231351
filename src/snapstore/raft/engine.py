"""What the exchange asks of a raft engine, and of the message transport. Structural types only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from snapstore._fastpipe import Progress
    from snapstore.meta import SnapshotMeta
    from snapstore.stream import SnapshotStream


class Engine(Protocol):
    """A raft engine with a Ready loop. Both are called on the raft thread, while no Ready is open."""

    def report_snapshot(self, to: int, *, finished: bool) -> None:
        """Say what became of the snapshot message to the member `to`; once for each message."""

    def step_snapshot(self, message: bytes, meta: SnapshotMeta) -> None:
        """Step `message`, whose snapshot is saved for good as `meta`.

        Raises ValueError, and steps nothing, when the message is not about this snapshot. An engine
        may pass a message over that comes late; that is no error.
        """


class SnapshotLender(Protocol):
    """A `SnapshotStore`, as far as a leader needs it."""

    def get_snap(self, *, owner: str) -> SnapshotStream:
        """Hand out the snapshot to `owner`, a name for people, or raise `SnapshotTemporarilyUnavailable`.
        Never blocks."""

    def clear_used_snap(self, stream: SnapshotStream, /) -> None:
        """Take `stream` back."""

    def close_snap_before(self, index: int, /) -> bool:
        """Close what is as old as `index`."""


class Carrier(Protocol):
    """A `SnapshotClient`, as far as a leader needs it."""

    def send_snapshot(
        self, url: str, stream: SnapshotStream, *, progress: Progress, message: bytes
    ) -> object:
        """Send all of `stream`, with `message`; return when the peer has saved and stepped it."""
