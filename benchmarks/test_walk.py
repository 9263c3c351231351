"""A stored snapshot and an LMDB store, over HTTP to a follower that saves them for good."""

from __future__ import annotations

import pytest

from snapstore import SnapshotDir
from snapstore.bench.content import Content
from snapstore.bench.python_ways import asyncio_way, sendfile_way
from snapstore.bench.report import Line
from snapstore.bench.stage import Stage
from snapstore.bench.walks import Follower, walk_ways

#: As much as asyncio's streams move in some seconds beside a busy thread.
STREAMED_SIZE_MAX = 64 * 1024 * 1024


@pytest.fixture
def walks(stage, tmp_path):
    with SnapshotDir(tmp_path / "leader") as leader, walk_ways(stage, leader) as walks:
        yield walks


def test_to_a_follower(race, neighbour, stage, walks):
    disk, wire, sendfile = stage.disk(), stage.wire(), sendfile_way(stage)
    stored, store = walks
    comparison = race.run([disk, wire, *walks, sendfile])
    limit = comparison.slowest(disk.name, wire.name)
    race.judge(
        Line("stored-against-disk-or-wire", stored.name, limit),
        Line("lmdb-against-disk-or-wire", store.name, limit),
        Line("stored-against-sendfile", stored.name, sendfile.name),
    )


def test_to_a_follower_with_asyncio(race, neighbour, size, tmp_path):
    """Both move less: beside the busy thread the streams need a minute for what takes others a second."""
    content = Content(min(size, STREAMED_SIZE_MAX))
    with Stage(tmp_path, content) as stage, SnapshotDir(tmp_path / "leader") as leader:
        stored, streams = Follower(stage).stored_way(leader), asyncio_way(stage)
        race.run([stored, streams], size=content.size)
        race.judge(Line("stored-against-asyncio", stored.name, streams.name))


def test_walks_beside_a_busy_thread(race, walks):
    """Against themselves in a leader that is otherwise idle."""
    stored, store = walks
    race.run([stored, stored.busy(), store, store.busy()])
    race.judge(
        Line("stored-busy-against-idle", stored.busy().name, stored.name),
        Line("lmdb-busy-against-idle", store.busy().name, store.name),
    )
