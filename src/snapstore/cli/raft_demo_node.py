"""One of the raft demo's nodes, a process of its own: PySyncObj on LMDB, told what to do in lines.

`python -m snapstore.cli.raft_demo_node SETUP` with a `Setup` in JSON. Events: joined, installed and
ready, when a leader was heard of, when something was applied, and when all was that is committed; then
one for each command, which is named after it. `at_s` is the time of the monotonic clock, which is one
for all processes of a machine.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from snapstore._fastpipe import Throttle
from snapstore.cli.demo_child import Parent
from snapstore.cli.demo_machine import MemoryWatch
from snapstore.cli.demo_store import content_of
from snapstore.cli.raft_demo_dumps import Setup, open_dumps
from snapstore.cli.raft_demo_store import TICK_PERIOD_S, DemoStore, Flow, fill, writes
from snapstore.cli.raft_demo_ticks import TickWatch

if TYPE_CHECKING:
    from snapstore.cli.raft_demo_store import Dumps

#: What was submitted comes back within some rounds of messages, or was lost with a leader.
REST_TIMEOUT_S = 20.0

#: An empty node's last applied index, in PySyncObj: that of its log's first entry.
_NOTHING_APPLIED = 1


class Node:
    """The node and its commands: each method but `serve` is one, and what it returns is told as its event."""

    def __init__(self, parent: Parent, dumps: Dumps, store: DemoStore, throttle: Throttle) -> None:
        self._parent = parent
        self._dumps = dumps
        self._store = store
        self._throttle = throttle
        self._flow: Flow | None = None
        self._expected: list[tuple[Callable[[], bool], str]] = []
        self._ticks = TickWatch(TICK_PERIOD_S)
        self._begin_span()
        self._expect(lambda: self._store._getLeader() is not None, "joined")
        self._expect(lambda: self._store.raftLastApplied > _NOTHING_APPLIED, "installed")
        self._expect(self._store.isReady, "ready")
        self._store.addOnTickCallback(self._on_tick)

    def serve(self) -> None:
        """Do what the parent says. It ends this process by ending its input."""
        while True:
            command = self._parent.await_command()
            name = command.pop("command")
            answer = getattr(self, name)(**command)
            if answer is not None:
                self._parent.tell(name, **answer)

    def _expect(self, condition: Callable[[], bool], event: str) -> None:
        """Tell `event` in the first tick in which `condition` holds."""
        self._expected.append((condition, event))

    def _on_tick(self) -> None:
        self._ticks()
        for expected in list(self._expected):
            condition, event = expected
            if condition():
                self._expected.remove(expected)
                self._parent.tell(event, at_s=time.monotonic())

    def status(self) -> dict[str, Any]:
        """Tell who leads, and how far this node is. `size` is that of the store, in bytes."""
        with self._dumps.kv.reading() as kv:
            size = (kv.env.info()["last_pgno"] + 1) * kv.env.stat()["psize"]
        return {
            "leads": self._store._isLeader(),
            "term": self._store.raftCurrentTerm,
            "applied": self._store.raftLastApplied,
            "size": size,
        }

    def fill(self, steps: int) -> dict[str, Any]:
        """Fill the stores of all nodes, by entries of the log."""
        fill(self._store, steps, self._parent.report)
        return {}

    def flush(self) -> dict[str, Any]:
        """Write out what the page cache holds of the store, so that nothing measured later pays for it."""
        with self._dumps.kv.reading() as kv:
            kv.env.sync(True)
        return {}

    def write(self) -> dict[str, Any]:
        """Begin to write as clients do, without an end."""
        self._flow = writes(self._store)
        return {}

    def rest(self) -> dict[str, Any]:
        """End the writes; whether all that were under way have come back."""
        return {"rested": self._flow is not None and self._flow.rest(REST_TIMEOUT_S)}

    def span(self) -> dict[str, Any]:
        """Tell what was measured since the last time, or since the start."""
        elapsed_s, commits = time.monotonic() - self._begun_s, self._commits() - self._commits_before
        measured = {
            "elapsed_s": elapsed_s,
            "commits_per_s": commits / elapsed_s,
            "cpu_s": time.process_time() - self._cpu_before_s,
            "waited_s": self._throttle.waited_s - self._waited_before_s,
            "memory": asdict(self._memory.stop()),
            "stalls": asdict(self._ticks.take()),
        }
        self._begin_span()
        return measured

    def _begin_span(self) -> None:
        self._begun_s = time.monotonic()
        self._cpu_before_s = time.process_time()
        self._waited_before_s = self._throttle.waited_s
        self._commits_before = self._commits()
        self._memory = MemoryWatch()

    def _commits(self) -> int:
        return self._flow.commits if self._flow is not None else 0

    def compact(self, beyond: int) -> None:
        """Compact the log; the event comes when it begins behind the entry `beyond`."""
        self._expect(lambda: self._store.log_start > beyond, "compact")
        self._store.forceLogCompaction()

    def reach(self, index: int) -> None:
        """Wait for an index; the event comes when it was applied."""
        self._expect(lambda: self._store.raftLastApplied >= index, "reach")

    def content(self) -> dict[str, Any]:
        """Digest the store; nobody may write meanwhile."""
        with self._dumps.kv.reading() as kv, kv.env.begin() as txn:
            content = content_of(kv.env, txn, self._parent.report, databases=())
        return {"applied": self._store.raftLastApplied, **asdict(content)}


def main(setup: Setup) -> None:
    """Play the node."""
    parent = Parent()
    throttle = Throttle()
    with open_dumps(setup, throttle) as dumps:
        Node(parent, dumps, DemoStore(setup, dumps), throttle).serve()


if __name__ == "__main__":
    main(Setup(**json.loads(sys.argv[1])))
