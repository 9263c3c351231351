"""PySyncObj's messages, without those that a follower cannot use yet.

PySyncObj takes a dump that it has sent for one that has arrived, and sends all of its log behind it, in
the same tick. A follower that has only been shown a ticket refuses that, at each heartbeat anew, and a
leader with a long log does little else meanwhile: of 500 ms of its tick thread 450 were seen to go there.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from pysyncobj.transport import TCPTransport

if TYPE_CHECKING:
    from collections.abc import Callable


class EntriesHeldBack:
    """For a class of PySyncObj's transports, to stand before it among the bases.

    Between a ticket and the follower's next word, entries for it are left unsent, as if they were lost.
    Raft is made for that: with its word, or after the next heartbeat, the follower says where to go on.
    """

    def __init__(self, *arguments: Any) -> None:
        #: Those who were shown a ticket and have not answered.
        self._shown: set[Any] = set()
        super().__init__(*arguments)

    def send(self, node: Any, message: Any) -> bool:
        """Send a message, or leave it unsent."""
        if isinstance(message, dict) and message.get("type") == "append_entries":
            piece = message.get("serialized")
            if piece is not None and piece[2]:  # The last one of a dump.
                self._shown.add(node)
            elif node in self._shown and (message.get("entries") or "transmission" in message):
                return True
        return bool(super().send(node, message))  # type: ignore[misc]

    def setOnMessageReceivedCallback(self, callback: Callable[[Any, Any], None] | None) -> None:  # noqa: N802 - PySyncObj's name.
        """Hear of answers before PySyncObj does."""
        heard = None if callback is None else partial(self._hear, callback)
        super().setOnMessageReceivedCallback(heard)  # type: ignore[misc]

    def _hear(self, callback: Callable[[Any, Any], None], node: Any, message: Any) -> None:
        if isinstance(message, dict) and message.get("type") == "next_node_idx":
            self._shown.discard(node)
        callback(node, message)


class TicketTransport(EntriesHeldBack, TCPTransport):  # type: ignore[misc] # It has no types.
    """PySyncObj's transport for nodes with tickets: `SyncObj(..., transportClass=TicketTransport)`."""
