"""A store's snapshot into a durable file of the same machine, against LMDB's own copy."""

from __future__ import annotations

import os

from snapstore import SnapshotDir, SnapshotStream
from snapstore.bench.lmdb_content import LmdbContent
from snapstore.bench.report import Line
from snapstore.bench.saves import INDEX, forget
from snapstore.bench.ways import Way
from snapstore.kv.lmdb import LmdbKV


def copyfd_way(kv, store, target, *, compact):
    """`env.copyfd` and an fsync; compact, it leaves free pages out, and numbers the others anew."""

    def copy():
        with open(target, "wb") as file:
            kv.env.copyfd(file.fileno(), compact)
            os.fsync(file.fileno())

    def check():
        store.check(target)
        os.unlink(target)

    return Way("copyfd, compact" if compact else "copyfd", copy, check)


def test_store_to_durable_file(race, size, tmp_path):
    store = LmdbContent(tmp_path / "store", size)
    with (
        LmdbKV(store.path, map_size=store.map_size) as kv,
        SnapshotDir(tmp_path / "snapshots") as directory,
    ):

        def save():
            with SnapshotStream(INDEX, kv.snapshot()) as stream:
                directory.save_from(stream, INDEX)

        def check():
            store.check(directory.get_snap_file_path(INDEX))
            forget(directory, INDEX)

        ours = Way("save_from", save, check)
        busy = ours.busy()
        plain, compact = (
            copyfd_way(kv, store, tmp_path / "copy", compact=compact) for compact in (False, True)
        )
        race.run([ours, busy, plain, compact])
        race.judge(
            Line("store-against-copyfd", ours.name, plain.name),
            Line("store-against-copyfd-compact", ours.name, compact.name),
            Line("store-busy-against-idle", busy.name, ours.name),
        )
