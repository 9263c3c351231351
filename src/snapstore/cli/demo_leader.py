"""The demo's leader process: a store, an apply loop that goes on, and a snapshot sent meanwhile.

`python -m snapstore.cli.demo_leader DIRECTORY SIZE`. Events: filled; then, after a command with
the url of the follower, baseline, pinned, sent, content; each with what was measured.
"""

from __future__ import annotations

import sys
import threading
import time
from dataclasses import asdict
from typing import TYPE_CHECKING

from snapstore import _fastpipe
from snapstore.capture import CaptureQueue
from snapstore.cli.demo_child import Parent, reported
from snapstore.cli.demo_machine import MemoryWatch
from snapstore.cli.demo_store import ApplyLoop, content_of, fill, open_store
from snapstore.errors import SnapshotTemporarilyUnavailable
from snapstore.kv.lmdb import LmdbKV
from snapstore.manifest import digest_text
from snapstore.store import SnapshotStore
from snapstore.transport.http import SnapshotClient

if TYPE_CHECKING:
    import lmdb

    from snapstore.kv.lmdb import LmdbSnapshot
    from snapstore.stream import SnapshotStream

#: How long the writer is watched before the snapshot: some hundred commits on a slow disk.
BASELINE_S = 2.0

#: Between two calls of `get_snap`. A raft asks once a heartbeat; here somebody is watching.
RETRY_AFTER_S = 0.005


class WatchedKV:
    """An LmdbKV that remembers its snapshot, to compare the pinned content at the end."""

    def __init__(self, kv: LmdbKV) -> None:
        self._kv = kv
        self.taken: LmdbSnapshot | None = None

    def snapshot(self) -> LmdbSnapshot:
        """Pin the store."""
        self.taken = self._kv.snapshot()
        return self.taken

    def restore(self, source: object, /) -> None:
        """Refuse: a leader is not restored."""
        raise NotImplementedError


def main(directory: str, size: int) -> None:
    """Play the leader."""
    parent = Parent()
    parent.tell("filled", size=fill(directory, size, parent.report))
    url = parent.await_command()["url"]
    captures = CaptureQueue()
    with open_store(directory, size) as env, LmdbKV(env) as kv, ApplyLoop(env, captures) as loop:
        threading.Event().wait(BASELINE_S)
        loop.check()
        parent.tell("baseline", commits_per_s=loop.applied / BASELINE_S)
        watched = WatchedKV(kv)
        memory, asked_s = MemoryWatch(), time.monotonic()
        with SnapshotStore(watched, captures) as store, _snapshot_of(store, loop) as stream:
            pin_s = time.monotonic() - asked_s
            parent.tell("pinned", index=stream.meta.index, size=stream.size, pin_s=pin_s)
            _send(parent, url, stream, loop, memory)
            loop.stop()
            _digest(parent, env, watched, stream)
    # The parent ends us by ending our input; it may still ask the system about us until then.
    parent.await_command()


def _snapshot_of(store: SnapshotStore, loop: ApplyLoop) -> SnapshotStream:
    """Do as raft does: ask, and ask again when there is none yet."""
    while True:
        loop.check()
        try:
            return store.get_snap()
        except SnapshotTemporarilyUnavailable:
            threading.Event().wait(RETRY_AFTER_S)


def _send(parent: Parent, url: str, stream: SnapshotStream, loop: ApplyLoop, memory: MemoryWatch) -> None:
    progress = _fastpipe.Progress()
    applied_before, started_s = loop.applied, time.monotonic()
    with reported(progress, parent.report):
        sent = SnapshotClient(cluster="demo").send_snapshot(url, stream, progress=progress)
    elapsed_s, commits = time.monotonic() - started_s, loop.applied - applied_before
    parent.tell(
        "sent",
        elapsed_s=elapsed_s,
        sync_s=sent.sync_s,
        commits=commits,
        commits_per_s=commits / elapsed_s,
        memory=asdict(memory.stop()),
    )


def _digest(parent: Parent, env: lmdb.Environment, watched: WatchedKV, stream: SnapshotStream) -> None:
    """Digest what is pinned, image and content: the loop has applied many entries since."""
    if watched.taken is None:
        raise AssertionError("a stream was handed out of no snapshot")
    image = _fastpipe.digest(watched.taken.image(), size=stream.size)
    content = content_of(env, watched.taken.txn, parent.report)
    parent.tell("content", image_digest=digest_text(image.digest), **asdict(content))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
