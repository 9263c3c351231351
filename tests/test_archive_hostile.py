"""What an object store may hold, and say, that is not ours: refused, in words that help."""

from __future__ import annotations

import json
import os
import socket

import pytest

from archive_places import CHUNK_SIZE, CONTENT, META, archive_on, archived, stored
from archive_server import obstore
from nodes import stored_names
from snapstore.archive import Archive, bucket, layout
from snapstore.archive.layout import PART_SIZE_MAX, PART_SIZE_MIN, PARTS_MAX, Inventory, inventory_name
from snapstore.directory import SnapshotDir
from snapstore.errors import (
    PeerRejected,
    PeerUnreachable,
    SnapshotCorrupt,
    SnapshotNotFound,
    SnapshotTooLarge,
    SnapshotTruncated,
    TransportError,
)
from snapstore.manifest import Manifest, sealed

GIB = 1024**3


@pytest.fixture
def server(tmp_path):
    """One that has a snapshot."""
    with archived(tmp_path / "d") as server:
        yield server


@pytest.fixture
def target(tmp_path):
    with SnapshotDir(tmp_path / "target") as directory:
        yield directory


def part_name(server, number):
    return next(name for name in server.names() if name.endswith(f"part-{number:05d}"))


def inventory(server):
    return bytes(obstore.get(server.objects, inventory_name(7)).bytes())


def refused(server, target, kind, words):
    """A pull is refused with these words, and leaves nothing that counts."""
    with pytest.raises(kind, match=words) as raised:
        archive_on(server).pull(7, target)
    assert stored_names(target.path) == []
    assert list(target.list()) == []
    return raised.value


def test_a_damaged_part_is_named_by_its_chunk(server, target):
    damaged = bytearray(CONTENT[PART_SIZE_MIN : 2 * PART_SIZE_MIN])
    damaged[CHUNK_SIZE + 3] ^= 1
    obstore.put(server.objects, part_name(server, 1), damaged)
    chunk = PART_SIZE_MIN // CHUNK_SIZE + 1
    error = refused(server, target, SnapshotCorrupt, rf"s3://.*, index 7: the digest of chunk {chunk} ")
    assert error.chunk == chunk


def test_parts_in_each_others_place(server, target):
    last = part_name(server, 4)
    obstore.put(server.objects, last, bytes(CHUNK_SIZE + 1))
    refused(server, target, SnapshotCorrupt, "the digest of chunk 80 ")


def test_a_part_that_is_shorter(server, target):
    obstore.put(server.objects, part_name(server, 1), CONTENT[: PART_SIZE_MIN - 1])
    refused(server, target, SnapshotTruncated, "part-00001 ends 1 bytes early")


def test_a_part_that_is_missing(server, target):
    obstore.delete(server.objects, part_name(server, 1))
    refused(server, target, SnapshotTruncated, "part-00001 any more")


def test_parts_without_an_inventory_are_no_snapshot(server, target):
    obstore.delete(server.objects, inventory_name(7))
    assert archive_on(server).list() == []
    for index in (7, None):
        with pytest.raises(SnapshotNotFound):
            archive_on(server).pull(index, target)


def test_an_inventory_under_another_name(server, target):
    obstore.put(server.objects, inventory_name(8), inventory(server))
    listed = archive_on(server).list()
    assert [(found.index, found.problem is None) for found in listed] == [(7, True), (8, False)]
    with pytest.raises(SnapshotCorrupt, match="that of index 7, under the name of 8"):
        archive_on(server).pull(None, target)
    assert archive_on(server).pull(7, target).path.read_bytes() == CONTENT


def changed(**changes):
    """A function that makes these changes in an inventory, and seals it anew."""

    def change(data):
        fields = json.loads(data)
        del fields["seal"]
        return sealed({**fields, **changes})

    return change


def resized(size):
    """A manifest, sound in itself, of a snapshot with so many bytes."""

    def change(data):
        manifest = Inventory.from_bytes(data, 7).manifest
        chunks = -(-size // (16 * 1024**2))
        manifest = Manifest(manifest.meta, size, manifest.digest, 16 * 1024**2, (0,) * chunks)
        return changed(snapshot=json.loads(manifest.to_bytes()), part_size=16 * 1024**2)(data)

    return change


HOSTILE = {
    "empty": (lambda data: b"", "inventory is broken"),
    "no JSON": (lambda data: b"\xff" + data, "inventory is broken"),
    "a list": (lambda data: b"[]", "inventory is broken"),
    "deep": (lambda data: b'{"snapshot":' + b"[" * 100_000, "inventory is broken"),
    "cut": (lambda data: data[:-1], "inventory is broken"),
    "a flipped bit": (
        lambda data: data.replace(b'"term":3', b'"term":2'),
        "in its inventory the manifest is broken",
    ),
    "a bare manifest": (
        lambda data: Inventory.from_bytes(data, 7).manifest.to_bytes(),
        "inventory is broken",
    ),
    "a field more": (changed(parts="../../secrets"), "not canonical"),
    "another format": (changed(format="snapstore-archive/2"), "its format is not"),
    "spaces": (lambda data: data + b"\n", "not canonical"),
    "no part size": (changed(part_size=None), "parts have None bytes"),
    "true": (changed(part_size=True), "parts have True bytes"),
    "small parts": (changed(part_size=CHUNK_SIZE), "its parts have"),
    "zero": (changed(part_size=0), "parts have 0 bytes"),
    "negative": (changed(part_size=-PART_SIZE_MIN), "its parts have"),
    "huge parts": (changed(part_size=PART_SIZE_MAX + CHUNK_SIZE), "its parts have"),
    "odd parts": (changed(part_size=PART_SIZE_MIN + 1), "no whole chunks"),
    "too many parts": (resized(16 * 1024**2 * PARTS_MAX + 1), "more than 10000 parts"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_inventory_is_refused_and_listed_as_broken(server, target, case, tmp_path):
    change, words = HOSTILE[case]
    obstore.put(server.objects, inventory_name(7), change(inventory(server)))
    refused(server, target, SnapshotCorrupt, rf"s3://.*, index 7: .*{words}")
    (found,) = archive_on(server).list()
    assert (found.index, words in (found.problem or "")) == (7, True)
    kept = pytest.raises(SnapshotCorrupt, match=words)  # It may be worth a look.
    with SnapshotDir(tmp_path / "d") as directory, directory.open(7) as snapshot, kept:
        archive_on(server).push(snapshot)


def test_an_inventory_without_an_end_is_not_read(server, target, monkeypatch):
    monkeypatch.setattr("snapstore.archive.archive.INVENTORY_SIZE_MAX", 512)
    refused(server, target, SnapshotCorrupt, "index 7: .* bytes, more than 512")


def test_a_snapshot_larger_than_the_directory_takes(server, tmp_path):
    with SnapshotDir(tmp_path / "small", size_max=CHUNK_SIZE) as small:
        with pytest.raises(SnapshotTooLarge):
            archive_on(server).pull(7, small)
        assert stored_names(small.path) == []


def test_what_others_put_there_is_left_alone(server):
    strangers = ["README", "0000000000000007.json.bak", "7.json", "000000000000000G.json", "x/part-00000"]
    for name in strangers:
        obstore.put(server.objects, name, b"theirs")
    archive = archive_on(server)
    assert [found.index for found in archive.list()] == [7]
    assert archive.purge(keep=1) == []
    assert set(strangers) <= set(server.names())


def test_parts_are_as_large_as_the_limits_ask():
    mib = 1024**2
    assert layout.part_size_for(0, 4 * mib) == 16 * mib
    assert layout.part_size_for(GIB, 4 * mib, 1) == 8 * mib  # At least 5 MiB, in whole chunks.
    assert layout.part_size_for(GIB, 12 * mib) == 24 * mib
    for size in (160_000 * mib, 160_000 * mib + 1, 32 * 1024 * GIB):
        part_size = layout.part_size_for(size, 4 * mib)
        assert -(-size // part_size) <= PARTS_MAX
        assert (part_size % (4 * mib), part_size <= PART_SIZE_MAX) == (0, True)
    with pytest.raises(SnapshotTooLarge, match="10000 parts of 5368709120 bytes"):
        layout.part_size_for(PARTS_MAX * PART_SIZE_MAX + 1, 4 * mib)


@pytest.mark.parametrize("start", [0, 1, layout.READ_SIZE_MAX, 20 * CHUNK_SIZE, 99 * CHUNK_SIZE])
def test_reads_cover_every_byte_once_and_stay_small(start):
    size, part_size = 100 * CHUNK_SIZE + 7, 80 * CHUNK_SIZE
    manifest = Manifest(META, size, 0, CHUNK_SIZE, (0,) * 101)
    at = start
    for read in Inventory(manifest, part_size).reads(start):
        assert (read.part.offset + read.start, 0 < read.size <= layout.READ_SIZE_MAX) == (at, True)
        assert read.start + read.size <= read.part.size
        at += read.size
    assert at == size


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(bucket, "RETRIES_MAX", 0)


def test_a_bucket_that_is_not_there(server, target, impatient, tmp_path):
    archive = Archive("s3://no-such-bucket/x", endpoint=server.endpoint)
    with SnapshotDir(tmp_path / "d") as directory, directory.open(7) as snapshot:
        for ask in (archive.list, lambda: archive.pull(7, target), lambda: archive.push(snapshot)):
            with pytest.raises(PeerRejected, match=r"NoSuchBucket: .*; make the bucket") as raised:
                ask()
            assert raised.value.status == 404


REFUSALS = [
    ("403 InvalidAccessKeyId", 403, "InvalidAccessKeyId: as the test wants it; check AWS_ACCESS_KEY_ID"),
    ("403 AccessDenied", 403, "AccessDenied: as the test wants it; check AWS_ACCESS_KEY_ID"),
    ("403 RequestTimeTooSkewed", 403, "set this machine's clock"),
    ("401 Unauthorized", 401, "check AWS_ACCESS_KEY_ID"),
    ("400 AuthorizationHeaderMalformed", 400, "set AWS_REGION"),
    ("400 ExpiredToken", 400, "get a new AWS_SESSION_TOKEN"),
    ("503 SlowDown", 503, "(SlowDown: as the test wants it|Service Unavailable)$"),
]


@pytest.mark.parametrize(("fault", "status", "words"), REFUSALS)
def test_refusals_say_what_to_do_and_no_secret(server, target, impatient, fault, status, words):
    server.fault = lambda request: fault
    for ask in (archive_on(server).list, lambda: archive_on(server).pull(7, target)):
        with pytest.raises(PeerRejected, match=words) as raised:
            ask()
        assert (raised.value.status, "\n" in str(raised.value)) == (status, False)
        assert os.environ["AWS_SECRET_ACCESS_KEY"] not in str(raised.value)


def test_nobody_at_the_endpoint(server, target, impatient):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # And does not listen.
        archive = Archive(server.url, endpoint=f"http://127.0.0.1:{nobody.getsockname()[1]}")
        for ask in (archive.list, lambda: archive.pull(7, target)):
            with pytest.raises(PeerUnreachable, match="s3://bucket"):
                ask()


def test_without_credentials_the_error_says_which(server, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    server.fault = lambda request: "403 Forbidden"  # It is the service for credentials, too.
    with pytest.raises(TransportError, match="no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET"):
        archive_on(server).list()
    assert server.requests


def test_what_a_file_system_refuses_is_an_os_error(tmp_path):
    place = tmp_path / "a"
    place.mkdir()
    (place / f"{7:016x}").write_bytes(b"a file where the parts have their folder")
    with stored(tmp_path / "d") as snapshot, pytest.raises(NotADirectoryError):
        Archive(place.as_uri()).push(snapshot)
