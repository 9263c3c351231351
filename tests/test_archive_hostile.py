"""What an object store may hold, and say, that is not ours: refused, in words that help."""

from __future__ import annotations

import json
import os
import socket

import pytest

from archive_places import CHUNK_SIZE, CONTENT, PART_SIZE, archive_on, archived, stored
from archive_server import ArchiveServer, obstore
from nodes import stored_names
from snapstore.archive import Archive, bucket
from snapstore.archive.layout import PART_SIZE_MAX, PARTS_MAX, Inventory, inventory_name
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
from snapstore.meta import SnapshotMeta

pytestmark = pytest.mark.usefixtures("small_parts")


@pytest.fixture
def server(tmp_path):
    """One that has a snapshot."""
    with archived(tmp_path / "d") as server:
        yield server


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
    damaged = bytearray(CONTENT[PART_SIZE : 2 * PART_SIZE])
    damaged[CHUNK_SIZE + 3] ^= 1
    obstore.put(server.objects, part_name(server, 1), damaged)
    chunk = PART_SIZE // CHUNK_SIZE + 1
    error = refused(server, target, SnapshotCorrupt, rf"s3://.*, index 7: the digest of chunk {chunk} ")
    assert error.chunk == chunk


def test_parts_in_each_others_place(server, target):
    last = part_name(server, 4)
    obstore.put(server.objects, last, bytes(CHUNK_SIZE + 1))
    refused(server, target, SnapshotCorrupt, "the digest of chunk 80 ")


def test_a_part_that_is_shorter(server, target):
    obstore.put(server.objects, part_name(server, 1), CONTENT[: PART_SIZE - 1])
    refused(server, target, SnapshotTruncated, "part-00001 ends 1 bytes early")


@pytest.mark.parametrize("number", [0, 4])
def test_a_part_of_which_nothing_is_left(server, target, number):
    obstore.put(server.objects, part_name(server, number), b"")
    refused(server, target, SnapshotTruncated, f"part-{number:05d} ends before byte 0")


def test_a_part_of_a_mounted_archive_of_which_nothing_is_left(tmp_path, target):
    archive = Archive((tmp_path / "a").as_uri(), part_size=PART_SIZE)
    with stored(tmp_path / "d") as snapshot:
        archive.push(snapshot)
    next((tmp_path / "a").rglob("part-00001")).write_bytes(b"")
    with pytest.raises(SnapshotTruncated, match="part-00001 ends before byte 0"):
        archive.pull(7, target)


@pytest.mark.parametrize("name", ["//x", "\x01[2J"])
def test_a_name_that_cannot_be_listed_is_told_and_an_index_still_pulled(server, target, name):
    """Tools that copy whole buckets make such names; obstore gives up at the first."""
    server.put_raw(name)
    for ask in (archive_on(server).list, lambda: archive_on(server).pull(None, target)):
        with pytest.raises(TransportError, match="has a name that no archive gives: remove it") as raised:
            ask()
        assert str(raised.value).isprintable()
    assert archive_on(server).pull(7, target).path.read_bytes() == CONTENT


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
    older = "that of index 7, under the name of 8; it is the newest, and an older one has to be named"
    with pytest.raises(SnapshotCorrupt, match=older):
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
    "long words": (changed(part_size="9" * 100_000), "its parts have"),
    "true": (changed(part_size=True), "parts have True bytes"),
    "small parts": (changed(part_size=CHUNK_SIZE), "its parts have"),
    "zero": (changed(part_size=0), "parts have 0 bytes"),
    "negative": (changed(part_size=-PART_SIZE), "its parts have"),
    "huge parts": (changed(part_size=PART_SIZE_MAX + CHUNK_SIZE), "its parts have"),
    "odd parts": (changed(part_size=PART_SIZE + 1), "no whole chunks"),
    "too many parts": (resized(16 * 1024**2 * PARTS_MAX + 1), "more than 10000 parts"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_inventory_is_refused(case, small_parts):
    change, words = HOSTILE[case]
    manifest = Manifest(
        SnapshotMeta(7, 3), len(CONTENT), 0, CHUNK_SIZE, (0,) * -(-len(CONTENT) // CHUNK_SIZE)
    )
    sound = Inventory(manifest, PART_SIZE).to_bytes()
    assert Inventory.from_bytes(sound, 7).manifest == manifest
    with pytest.raises(SnapshotCorrupt, match=words) as raised:
        Inventory.from_bytes(change(sound), 7)
    assert len(str(raised.value)) <= 200


@pytest.mark.parametrize("case", ["a flipped bit", "long words"])
def test_a_hostile_inventory_is_never_pulled_listed_as_broken_and_kept(server, target, case, tmp_path):
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
    # As AWS says that the bucket is in another region: with no word on where.
    ("301 PermanentRedirect", 301, "set AWS_REGION"),
    ("520 !", 520, "no reason was given$"),
    ("503 SlowDown", 503, "(SlowDown: as the test wants it|Service Unavailable)$"),
]


@pytest.mark.parametrize(("fault", "status", "words"), REFUSALS)
def test_refusals_say_what_to_do_and_no_secret(target, impatient, fault, status, words):
    with ArchiveServer() as server:
        server.fault = lambda request: fault
        for ask in (archive_on(server).list, lambda: archive_on(server).pull(7, target)):
            with pytest.raises(PeerRejected, match=words) as raised:
                ask()
            assert (raised.value.status, str(raised.value).isprintable()) == (status, True)
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
