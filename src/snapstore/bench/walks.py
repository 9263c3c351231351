"""The whole walk: a snapshot of this process, over HTTP on loopback, to a follower that saves it for good.

The leader is this process, so that a busy neighbour stands in its way, and the follower one of its own.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from snapstore.bench.lmdb_content import LmdbContent
from snapstore.bench.ways import Way
from snapstore.disk import snapshot_name
from snapstore.kv.lmdb import LmdbKV
from snapstore.meta import SnapshotMeta
from snapstore.stream import SnapshotStream
from snapstore.transport.http import SnapshotClient

if TYPE_CHECKING:
    from snapstore.bench.stage import Stage
    from snapstore.directory import SnapshotDir

#: Of the snapshots that are sent, verified and removed in each round: a stored one, and a store's.
STORED, PINNED = SnapshotMeta(1, 1), SnapshotMeta(2, 1)


@contextmanager
def walk_ways(stage: Stage, leader: SnapshotDir) -> Iterator[Sequence[Way]]:
    """Yield a stored snapshot sent to a follower, and an LMDB store pinned and sent to it.

    Both lie in the directory of the stage; the first is saved in `leader` to begin with.
    """
    saved = stage.directory / "followed"
    url = stage.receiver.ask("follow", path=str(saved))
    leader.save_from(stage.content.memory, STORED)
    client = SnapshotClient()
    store = LmdbContent(stage.directory / "store", stage.content.size)
    with LmdbKV(store.path, map_size=store.map_size) as kv:
        with kv.snapshot() as pinned:
            size = pinned.size

        def send_stored() -> None:
            stored = leader.open(STORED.index, verify=False)
            with SnapshotStream(STORED, stored) as stream:
                client.send_snapshot(url, stream)

        def send_pinned() -> None:
            with SnapshotStream(PINNED, kv.snapshot()) as stream:
                client.send_snapshot(url, stream)

        def check_stored() -> None:
            stage.content.check(_path(saved, STORED))
            stage.receiver.ask("forget", index=STORED.index)

        def check_pinned() -> None:
            store.check(_path(saved, PINNED))
            stage.receiver.ask("forget", index=PINNED.index)

        pids = (stage.receiver.pid,)
        yield [
            Way("stored snapshot, HTTP", send_stored, check_stored, processes=pids),
            Way("LMDB, HTTP", send_pinned, check_pinned, size=size, processes=pids),
        ]


def _path(directory: Path, meta: SnapshotMeta) -> str:
    return os.path.join(directory, snapshot_name(meta.index))
