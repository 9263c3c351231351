"""The whole walk: a snapshot of this process, over HTTP on loopback, to a follower that saves it for good.

The leader is this process, so that a busy neighbour stands in its way, and the follower one of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from snapstore.bench.lmdb_content import LmdbContent
from snapstore.bench.ways import Way
from snapstore.disk import snapshot_name
from snapstore.kv.lmdb import LmdbKV
from snapstore.meta import SnapshotMeta
from snapstore.stream import SnapshotStream
from snapstore.transport.http import SnapshotClient

if TYPE_CHECKING:
    from pathlib import Path

    from snapstore.bench.stage import Stage
    from snapstore.directory import SnapshotDir
    from snapstore.protocols import Snapshot

#: Of the snapshots that are sent, verified and removed in each round: a stored one, and a store's.
STORED, PINNED = SnapshotMeta(1, 1), SnapshotMeta(2, 1)


@contextmanager
def walk_ways(stage: Stage, leader: SnapshotDir) -> Iterator[Sequence[Way]]:
    """Yield a stored snapshot sent to a follower, and an LMDB store pinned and sent to it.

    Both lie in the directory of the stage; the first is saved in `leader` to begin with.
    """
    follower = Follower(stage)
    store = LmdbContent(stage.directory / "store", stage.content.size)
    with LmdbKV(store.path, map_size=store.map_size) as kv:
        yield [follower.stored_way(leader), follower.pinned_way(store, kv)]


class Follower:
    """A follower in the stage's receiver, which saves in the stage's directory; it ends with the stage."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._directory = stage.directory / "followed"
        self._url = stage.receiver.ask("follow", path=str(self._directory))
        self._client = SnapshotClient()

    def stored_way(self, leader: SnapshotDir) -> Way:
        """Return the way of the stage's content, which is saved in `leader` for it, from there to here."""
        content = self._stage.content
        leader.save_from(content.memory, STORED)
        take = partial(leader.open, STORED.index, verify=False)
        return self.way("stored snapshot, HTTP", STORED, take, content.check)

    def pinned_way(self, store: LmdbContent, kv: LmdbKV) -> Way:
        """Return the way of a snapshot of `store`, which is open as `kv`: pinned, sent, saved."""
        with kv.snapshot() as pinned:
            size = pinned.size
        return self.way("LMDB, HTTP", PINNED, kv.snapshot, store.check, size=size)

    def way(
        self,
        name: str,
        meta: SnapshotMeta,
        take: Callable[[], Snapshot],
        check: Callable[[Path], None],
        *,
        size: int | None = None,
    ) -> Way:
        """Return the way of what `take` gives, sent as `meta`; `check` verifies what is saved here."""

        def send() -> None:
            with SnapshotStream(meta, take()) as stream:
                self._client.send_snapshot(self._url, stream)

        def check_saved() -> None:
            check(self._directory / snapshot_name(meta.index))
            self._stage.receiver.ask("forget", index=meta.index)

        return Way(name, send, check_saved, size=size, processes=[self._stage.receiver.pid])
