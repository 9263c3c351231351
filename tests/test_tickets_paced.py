"""A node's own work around its snapshots keeps to its throttle: the KV made of one, and a dump of its own."""

from __future__ import annotations

import lmdb
import pytest

from nodes import META, ImagedSnapshot
from paced import DATA, assert_shared
from snapstore._fastpipe import Throttle
from snapstore.directory import SnapshotDir
from snapstore.kv.lmdb import LmdbKV
from snapstore.raft.places import LmdbPlaces
from snapstore.raft.pysyncobj.dump_file import DumpFile
from snapstore.raft.pysyncobj.own_dump import OwnDump, Saver
from snapstore.stream import SnapshotStream

pytestmark = pytest.mark.usefixtures("nothing_lost")


def test_a_kv_is_made_at_the_node_s_pace(tmp_path):
    throttle = Throttle()
    with lmdb.open(str(tmp_path / "kv")) as env, env.begin(write=True) as txn:
        txn.put(b"key", b"value")
    with SnapshotDir(tmp_path / "d") as directory, LmdbKV(tmp_path / "kv") as kv:
        with SnapshotStream(META, kv.snapshot()) as stream:
            saved = directory.save_from(stream, META)
        places = LmdbPlaces(tmp_path / "places", throttle=throttle)
        places(saved).close()
        places.close()
    assert throttle.bytes == saved.size


@pytest.mark.slow
def test_a_dump_of_its_own_yields_to_what_is_urgent(tmp_path, background):
    (tmp_path / "image").write_bytes(DATA * 2)

    def save(throttle, progress):
        dump = OwnDump()
        dump.progress = progress
        with SnapshotDir(tmp_path / "d", throttle=throttle) as directory:
            saver = Saver(directory, DumpFile(tmp_path / "dump"), "http://127.0.0.1:1", keep=1)
            saver.save(dump, META, ImagedSnapshot(tmp_path / "image"))
            dump.result.result().discard()
            saver.close()

    assert_shared(background, save)
