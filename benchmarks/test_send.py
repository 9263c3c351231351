"""A store's snapshot over HTTP into a durable file, against the seed's way in Go and the disk in C."""

from __future__ import annotations

import pytest

from built import build_disk_writer, build_seed
from seed import seed_way
from snapstore.bench.lmdb_content import LmdbContent
from snapstore.bench.report import Line
from snapstore.bench.walks import Follower
from snapstore.bench.ways import Way
from snapstore.kv.lmdb import LmdbKV


@pytest.fixture(scope="module")
def seed(tmp_path_factory):
    return build_seed(tmp_path_factory.mktemp("seed"))


@pytest.fixture(scope="module")
def write_direct(tmp_path_factory):
    return build_disk_writer(tmp_path_factory.mktemp("disk"))


def test_store_to_a_follower(race, stage, seed, write_direct):
    store = LmdbContent(stage.directory / "store", stage.content.size)
    data = store.path / "data.mdb"
    with (
        LmdbKV(store.path, map_size=store.map_size) as kv,
        seed_way(seed, data, stage.directory / "seed", store.check) as go,
    ):
        ours = Follower(stage).pinned_way(store, kv)
        disk = Way("disk, in C", lambda: write_direct(stage.target, stage.content.size), stage.target.unlink)
        wire = stage.wire()
        comparison = race.run([ours, go, disk, wire])
        limit = comparison.slowest(disk.name, wire.name)
        race.judge(
            Line("lmdb-against-go", ours.name, go.name),
            Line("lmdb-against-go-cpu", ours.name, go.name, "cpu"),
            Line("lmdb-against-slower-of-c-disk-and-wire", ours.name, limit),
        )
