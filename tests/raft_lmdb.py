"""A raft member's KV in LMDB, for the tests of the exchange: what a node's author writes around one."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from snapstore.kv.lmdb import LmdbKV, restore_lmdb

MAP_SIZE = 256 * 1024 * 1024

_APPLIED = b"applied"


class AppliedKV(LmdbKV):
    """One environment at a place of its own; knows its applied index, and how often it was pinned."""

    def __init__(self, place):
        super().__init__(place, map_size=MAP_SIZE, sync=False)
        self.place = Path(place)
        self.pins = 0

    @property
    def applied(self):
        with self.env.begin() as txn:
            return int(txn.get(_APPLIED, b"0"))

    @property
    def entries(self):
        with self.env.begin() as txn:
            return {key: value for key, value in txn.cursor() if key != _APPLIED}

    def apply(self, index, data):
        with self.env.begin(write=True) as txn:
            applied = int(txn.get(_APPLIED, b"0"))
            if index > applied:
                assert index == applied + 1, "entries were left out"
                txn.put(b"%016x" % index, data)
                txn.put(_APPLIED, b"%d" % index)

    def put(self, key, value):
        with self.env.begin(write=True) as txn:
            txn.put(key, value)

    def snapshot(self):
        self.pins += 1
        return super().snapshot()


class Places:
    """Where a member's environments are, below one directory."""

    def __init__(self, path):
        self._path = path
        path.mkdir(exist_ok=True)

    def open_kv(self, saved):
        place = tempfile.mkdtemp(dir=self._path)
        restore_lmdb(saved.path, place)
        return AppliedKV(place)

    def begin(self):
        """What a node serves at its start: the KV that stands furthest, or an empty one."""
        *others, furthest = sorted(map(AppliedKV, self.all()), key=lambda kv: kv.applied) or [
            AppliedKV(tempfile.mkdtemp(dir=self._path))
        ]
        for other in others:
            other.close()
            shutil.rmtree(other.place)
        return furthest

    def all(self):
        return sorted(self._path.iterdir())
