"""A pull into a directory that has what the server has: it is kept, unless it is broken."""

import pytest

from etcd_databases import store
from etcd_server import EtcdServer, digest, nothing_left, pull, refused, sent
from snapstore.directory import SnapshotDir
from snapstore.errors import SnapshotCorrupt, SnapshotExists
from snapstore.etcd.pull import EtcdClient
from snapstore.transfer import Direction, State
from snapstore.transfers import TransferRegistry

DATABASE = store(7)


@pytest.fixture
def directory(tmp_path):
    with SnapshotDir(tmp_path / "snapshots") as directory:
        yield directory


def test_what_is_stored_is_not_fetched_again(directory):
    with EtcdServer(lambda *_: sent(DATABASE), revision=7) as server:
        client = EtcdClient(server.url)
        client.pull(directory)
        with nothing_left(directory), pytest.raises(SnapshotExists, match="stands at revision 7") as refusal:
            client.pull(directory)
        assert refusal.value.path == directory.get_snap_file_path(7)
        assert server.called.count("Snapshot") == 1


def test_pulls_are_seen(directory):
    registry, total = TransferRegistry(), len(DATABASE) + 32
    # The status says 3: writes went on until the snapshot was taken.
    with EtcdServer(lambda *_: sent(DATABASE), revision=3) as server:
        client = EtcdClient(server.url, registry=registry)
        client.pull(directory)
        with pytest.raises(SnapshotExists):
            client.pull(directory)
    torn = EtcdServer(lambda *_: sent(DATABASE, trailer=bytes(32)), revision=9)
    with torn as server, pytest.raises(SnapshotCorrupt):
        EtcdClient(server.url, registry=registry).pull(directory)
    broken, had, done = registry.transfers()
    assert {it.direction for it in (broken, had, done)} == {Direction.IN}
    assert (done.state, done.index, done.bytes, done.total) == (State.DONE, 7, total, total)
    assert (had.state, had.index, had.moved, had.peer) == (State.EXISTED, 7, total, done.peer)
    assert (broken.state, broken.index, broken.peer) == (State.FAILED, 9, server.url)


def test_what_turns_out_to_be_stored_is_kept(directory):
    # The status says 1: writes went on until the snapshot was taken.
    saved = pull(directory, sent(DATABASE))
    inode = saved.path.stat().st_ino
    other = store(7, filler=b"others")
    refused(directory, sent(other), SnapshotExists, "exists")
    assert saved.path.stat().st_ino == inode
    assert directory.verify(7).size == len(DATABASE) + 32


@pytest.mark.parametrize("revision", [1, 7], ids=["known at the end", "known beforehand"])
def test_a_broken_one_makes_way_once_there_is_a_good_one(directory, revision):
    path = pull(directory, sent(DATABASE)).path
    path.write_bytes(b"broken")
    refused(directory, sent(DATABASE, trailer=bytes(32)), SnapshotCorrupt, "SHA-256", revision=revision)
    assert path.read_bytes() == b"broken"
    pull(directory, sent(DATABASE), revision=revision)
    assert path.read_bytes() == DATABASE + digest(DATABASE)
    assert [entry.index for entry in directory.broken()] == [7]
