"""The demo's follower process: receives a snapshot, saves it durably, restores it.

`python -m snapstore.cli.demo_follower DIRECTORY`. Events: listening, saved, restored, content; each
with what was measured.
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import asdict
from queue import SimpleQueue
from typing import TYPE_CHECKING

import lmdb

from snapstore.cli.demo_child import Parent
from snapstore.cli.demo_machine import MemoryWatch
from snapstore.cli.demo_store import DATABASES, content_of
from snapstore.directory import SnapshotDir
from snapstore.kv.lmdb import restore_lmdb
from snapstore.transport.http import SnapshotServer

if TYPE_CHECKING:
    from snapstore.cli.demo_machine import Memory
    from snapstore.stored import SavedSnapshot
    from snapstore.wire import Offer


class Arrivals:
    """Notes what arrives, on the server's threads, with the memory that it took; one at a time."""

    def __init__(self) -> None:
        self._watch: MemoryWatch | None = None
        self._saved: SimpleQueue[tuple[SavedSnapshot, Memory]] = SimpleQueue()

    def on_offer(self, _offer: Offer) -> None:
        """Begin to watch."""
        self._watch = MemoryWatch()

    def on_saved(self, saved: SavedSnapshot) -> None:
        """Hand over what was saved; a node would step its raft here."""
        if self._watch is None:
            raise AssertionError("a snapshot was saved that nobody offered")
        self._saved.put((saved, self._watch.stop()))

    def wait(self) -> tuple[SavedSnapshot, Memory]:
        """Wait for the next one."""
        return self._saved.get()


def main(directory: str) -> None:
    """Play the follower."""
    parent = Parent()
    arrivals = Arrivals()
    with (
        SnapshotDir(os.path.join(directory, "snapshots")) as snapshots,
        SnapshotServer(
            snapshots, cluster="demo", on_offer=arrivals.on_offer, on_saved=arrivals.on_saved
        ) as server,
    ):
        parent.tell("listening", url=server.url)
        saved, memory = arrivals.wait()
        parent.tell("saved", image_digest=saved.digest, size=saved.size, memory=asdict(memory))
        started_s = time.monotonic()
        restored = os.path.join(directory, "restored")
        restore_lmdb(saved.path, restored)
        parent.tell("restored", elapsed_s=time.monotonic() - started_s)
        with lmdb.open(restored, readonly=True, max_dbs=len(DATABASES)) as env, env.begin() as txn:
            parent.tell("content", **asdict(content_of(env, txn, parent.report)))
        # The parent ends us by ending our input.
        parent.await_command()


if __name__ == "__main__":
    main(sys.argv[1])
