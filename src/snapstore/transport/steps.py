"""The node's own step after a save, `on_saved`: its peer waits so long for it, and the step goes on.

Knows no sockets and no directory: who is told is a function, and what was saved goes through. It ends
no step, since nobody can end what a node does; it ends the waiting.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from http import HTTPStatus
from typing import TYPE_CHECKING

from snapstore.errors import PeerRejected

if TYPE_CHECKING:
    from collections.abc import Callable

    from snapstore.stored import SavedSnapshot

logger = logging.getLogger("snapstore.transport")

#: What a peer is told to wait for a node that is still at it: it had minutes already.
RETRY_AFTER_S = 10.0


class Steps:
    """The steps of one node, from any number of threads. `step(saved)` raises PeerRejected or nothing."""

    def __init__(self, step: Callable[[SavedSnapshot], object], timeout_s: float) -> None:
        self._step = step
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        # How many steps of an index go on of which nobody waits for the end.
        self._late: Counter[int] = Counter()

    def take(self, saved: SavedSnapshot, refuse: Callable[[PeerRejected], object]) -> None:
        """Let the node step `saved`; raises what it raises.

        After `timeout_s` seconds `refuse` is called, on a thread of its own, with what the peer is to be
        told; then, whatever the step comes to, ConnectionAbortedError is raised. An index whose step
        goes on so is refused without another step.
        """
        still = PeerRejected(
            HTTPStatus.SERVICE_UNAVAILABLE, "saved, and the node is still at it", RETRY_AFTER_S
        )
        with self._lock:
            if self._late[saved.index]:
                raise still
        ended = late = False

        def leave() -> None:
            nonlocal late
            with self._lock:
                if ended:
                    return
                late = True
                self._late[saved.index] += 1
            refuse(still)

        timer = threading.Timer(self._timeout_s, leave)
        timer.name, timer.daemon = "snapstore-step", True
        timer.start()
        failure: PeerRejected | None = None
        try:
            self._step(saved)
        except PeerRejected as rejected:
            failure = rejected
        finally:
            timer.cancel()
            with self._lock:
                ended = True
                if late:
                    self._late[saved.index] -= 1
            timer.join()  # It may be in the middle of the answer.
        if late:
            logger.warning("snapshot %d: the node came to its end late: %s", saved.index, failure or "done")
            raise ConnectionAbortedError("the peer was told to come again")
        if failure is not None:
            raise failure
