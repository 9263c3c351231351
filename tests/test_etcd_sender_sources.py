"""What is sent on to etcd: sources that are not sound, or break on the way, never reach it whole."""

import os
import socket

import pytest

import etcd_peers as etcd
from etcd_peers import DB, META, Member
from etcd_sending import LARGE, Stored, message_of, send, uncalled
from nodes import UNIT, ImagedSnapshot, Impostor, read_head, written
from rotten import rot
from snapstore.directory import SnapshotDir
from snapstore.errors import SnapshotCorrupt, SnapshotTruncated
from snapstore.etcd import messages
from snapstore.meta import SnapshotMeta
from snapstore.stream import SnapshotStream
from snapstore.transport.http import SnapshotClient


@pytest.fixture
def member(nothing_lost, tmp_path):
    with Member(tmp_path / "member") as member:
        yield member


@pytest.fixture
def stored(nothing_lost, tmp_path):
    with Stored(tmp_path) as stored:
        yield stored


@pytest.fixture
def nobody(nothing_lost):
    with uncalled() as url:
        yield url


@pytest.mark.parametrize("place", [64 * UNIT, len(LARGE) - 1], ids=["in the midst", "in the last byte"])
def test_a_bit_that_flipped_on_the_disk_is_never_in_a_whole_body(member, stored, place):
    snapshot = stored(LARGE)
    rot(snapshot.path, 8 * place)
    chunk = place // snapshot.saved.manifest.chunk_size
    with pytest.raises(SnapshotCorrupt, match=f"snapshot 6505: the digest of chunk {chunk} ") as raised:
        send(member.url, snapshot)
    assert raised.value.chunk == chunk
    member.assert_nothing_saved()


def test_a_bit_that_flips_on_the_way_is_noticed(stored):
    """The first bytes have gone out, and were right, when the last one is spoilt."""
    snapshot, taken = stored(LARGE), []

    def behave(connection):
        read_head(connection)
        taken.append(len(connection.recv(UNIT, socket.MSG_WAITALL)))
        rot(snapshot.path, 8 * (len(LARGE) - 1))
        while data := connection.recv(65536):
            taken.append(len(data))

    with Impostor(behave) as peer, pytest.raises(SnapshotCorrupt, match="the digest of chunk 3 "):
        send(peer.url, snapshot)
    assert UNIT < sum(taken) < len(etcd.snapshot()) + len(LARGE)


def test_unverified_it_goes_out_as_it_is_and_a_member_cannot_tell(member, stored):
    snapshot = stored(LARGE)
    rot(snapshot.path, 8 * (len(LARGE) - 1))
    send(member.url, snapshot, verify=False)
    assert member.bytes_of(META.index) == LARGE[:-1] + bytes([LARGE[-1] ^ 1])


@pytest.mark.parametrize("place", [16, 4096 + 16 + 48], ids=["the magic number", "the second's transaction"])
def test_a_meta_page_that_is_wrong_calls_nobody(nobody, stored, place):
    """Saved as it is, so that its manifest finds nothing wrong."""
    broken = bytearray(DB)
    broken[place] ^= 1
    with pytest.raises(SnapshotCorrupt, match="meta page"):
        send(nobody, stored(bytes(broken)))


@pytest.mark.parametrize(
    ("database", "error", "words"),
    [
        (DB[:-1], SnapshotTruncated, "has 262143 bytes of 262144"),
        (DB + bytes(32), SnapshotCorrupt, "32 more than its pages"),
        (DB[:100], SnapshotTruncated, "more than 100 bytes"),
        (b"", SnapshotTruncated, "more than 0 bytes"),
    ],
)
@pytest.mark.parametrize("as_stream", [False, True])
def test_a_database_that_is_not_whole_calls_nobody(
    nobody, stored, tmp_path, database, error, words, as_stream
):
    if as_stream:
        (tmp_path / "db").write_bytes(database)
        source = SnapshotStream(META, ImagedSnapshot(tmp_path / "db"))
    else:
        source = stored(database)
    with pytest.raises(error, match=words):
        send(nobody, source)
    source.close()


def test_one_without_a_manifest_is_sent_only_unverified(member, stored):
    snapshot = stored(meta=SnapshotMeta(9))
    with SnapshotDir(snapshot.path.parent) as directory:
        (manifest,) = directory.path.glob("*.json")
        manifest.unlink()
        with directory.open(9, verify=False) as bare:
            message = message_of(SnapshotMeta(9))
            with pytest.raises(SnapshotCorrupt, match="no manifest"):
                send(member.url, bare, message=message)
            member.assert_nothing_saved()
            send(member.url, bare, message=message, verify=False)
    assert member.bytes_of(9) == DB


def test_a_file_that_is_cut_on_the_way_is_never_a_whole_body(tmp_path):
    (tmp_path / "db").write_bytes(LARGE)
    taken = []

    def behave(connection):
        read_head(connection)
        os.truncate(tmp_path / "db", len(LARGE) - 1)
        size = 0
        while data := connection.recv(65536):
            size += len(data)
        taken.append(size)

    stream = SnapshotStream(META, ImagedSnapshot(tmp_path / "db"))
    with Impostor(behave) as peer, stream, pytest.raises(OSError, match="Input/output error"):
        send(peer.url, stream)
    assert 0 < taken[0] < len(etcd.snapshot()) + len(LARGE)


def test_a_stream_that_is_closed_on_the_way_tells_why(member, tmp_path):
    (tmp_path / "db").write_bytes(LARGE)
    stream = SnapshotStream(META, ImagedSnapshot(tmp_path / "db"))
    taken = []

    def behave(connection):
        read_head(connection)
        stream.close(SnapshotCorrupt("compacted"))
        while data := connection.recv(65536):
            taken.append(len(data))

    with Impostor(behave) as peer, pytest.raises(SnapshotCorrupt, match="compacted"):
        send(peer.url, stream)
    assert sum(taken) < len(LARGE)


def test_a_stream_that_passes_once_calls_nobody(nobody):
    with written(DB, META) as stream, pytest.raises(ValueError, match="save it first"):
        send(nobody, stream)


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (message_of(SnapshotMeta(6504, 2)), "of index 6504 and term 2, the snapshot of 6505 and 2"),
        (message_of(SnapshotMeta(6505, 3)), "of index 6505 and term 3, the snapshot of 6505 and 2"),
        (messages.raft_message(messages.MSG_APP, to=1, sender=2, term=2), "not 3"),
    ],
)
def test_a_message_of_another_snapshot_calls_nobody(nobody, stored, message, words):
    with pytest.raises(ValueError, match=words):
        send(nobody, stored(), message=message)


def test_a_client_of_tls_speaks_to_no_other_machine_without(stored, node):
    with pytest.raises(ValueError, match="https"):
        send("http://192.0.2.1:2380", stored(), client=SnapshotClient(tls=node.client))
