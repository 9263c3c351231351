"""Where a node's LMDB environments lie: one process, one place for each, and nothing left of it."""

import os
import resource
import sys

import pytest

from snapstore.directory import SnapshotDir
from snapstore.errors import SnapshotBusy, SnapshotCorrupt, SnapstoreError, StoreClosed
from snapstore.raft.places import LmdbPlaces
from snapstore.stream import SnapshotStream


def test_places_belong_to_one_and_what_was_left_there_goes(tmp_path, nothing_lost):
    path = tmp_path / "kv"
    places = LmdbPlaces(path, map_size=1024**2)
    with pytest.raises(SnapshotBusy, match="another node that runs"):
        LmdbPlaces(path)
    kv = places(None)
    assert [place.name for place in path.iterdir()] == ["kv-00000001"]
    (path / "mine").mkdir()
    super(type(kv), kv).close()  # As a process ends that is killed: nothing is removed.
    places.close()
    LmdbPlaces(path).close()
    assert [place.name for place in path.iterdir()] == ["mine"]


def test_a_place_that_could_not_be_made_leaves_nothing(tmp_path, nothing_lost):
    places = LmdbPlaces(tmp_path, no_such_option=1)
    with pytest.raises(TypeError):
        places(None)
    assert list(tmp_path.iterdir()) == []
    places.close()


@pytest.fixture
def places(tmp_path, nothing_lost):
    places = LmdbPlaces(tmp_path / "kv", map_size=1024**2, sync=False)
    yield places
    places.close()


@pytest.fixture
def directory(tmp_path, nothing_lost):
    with SnapshotDir(tmp_path / "snapshots") as directory:
        yield directory


def names(places):
    return sorted(os.listdir(places._path))


def test_a_snapshot_becomes_an_environment_that_reads_while_another_takes_its_place(places, directory):
    with places(None) as kv:
        with kv.env.begin(write=True) as txn:
            txn.put(b"key", b"value")
        with SnapshotStream(7, kv.snapshot()) as stream:
            saved = directory.save_from(stream, 7)
        with places(saved) as restored, restored.env.begin() as txn:
            assert txn.get(b"key") == b"value"
            kv.close()
            assert txn.get(b"key") == b"value"
    assert names(places) == []


def test_a_snapshot_that_leaves_no_room_is_told_and_leaves_nothing(places, directory, tmp_path):
    with places(None) as kv:
        with kv.env.begin(write=True) as txn:
            txn.put(b"key", bytes(512 * 1024))
        with SnapshotStream(7, kv.snapshot()) as stream:
            saved = directory.save_from(stream, 7)
    small = LmdbPlaces(tmp_path / "small", map_size=256 * 1024)
    with pytest.raises(SnapstoreError, match="map_size of 262144: give LmdbPlaces a larger one"):
        small(saved)
    assert names(small) == []
    small.close()


def test_a_disk_that_fills_in_the_middle_leaves_nothing(places, directory):
    with places(None) as kv:
        with kv.env.begin(write=True) as txn:
            txn.put(b"key", bytes(512 * 1024))
        with SnapshotStream(7, kv.snapshot()) as stream:
            saved = directory.save_from(stream, 7)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (128 * 1024, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            places(saved)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert names(places) == []


def test_what_is_no_lmdb_file_is_told_and_leaves_nothing(places, directory):
    saved = directory.save_from(b"no environment" * 1000, 7)
    with pytest.raises(SnapshotCorrupt, match="no meta page of LMDB"):
        places(saved)
    assert names(places) == []


def test_places_that_were_given_up_make_nothing_where_another_node_may_be(places):
    places.close()
    with pytest.raises(StoreClosed):
        places(None)
    assert names(places) == []


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="a fork beside threads is a warning there")
def test_a_forked_child_takes_nothing_away(places):
    with places(None) as kv:
        child = os.fork()
        if child == 0:
            try:
                kv.close()
                places(None)
            except SnapstoreError:
                os._exit(0)
            os._exit(1)
        assert os.waitpid(child, 0)[1] == 0
        assert names(places) == ["kv-00000001"]
        with kv.env.begin(write=True) as txn:
            assert txn.put(b"key", b"value")
