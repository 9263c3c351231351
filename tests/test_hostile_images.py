"""Hostile servers against a fetch: manifests and images that lie are never taken, and nothing is saved."""

from __future__ import annotations

import json

import pytest

from impostors import (
    CHUNKED,
    Impostors,
    answer,
    assert_distinct,
    hanging,
    impatient,
    leaving,
    no_answers,
    outcome,
    saying,
    table,
    without_end,
)
from nodes import CONTENT, META, UNIT, stored_names
from snapstore import _fastpipe
from snapstore.directory import SnapshotDir
from snapstore.errors import SnapshotCorrupt, TransportError
from snapstore.manifest import Manifest, digest_text, sealed
from snapstore.transport.http import SnapshotClient

pytestmark = pytest.mark.usefixtures("nothing_lost")

#: What an honest server would say of CONTENT.
MANIFEST = Manifest(
    META,
    len(CONTENT),
    _fastpipe.crc32c_portable(CONTENT),
    UNIT,
    tuple(_fastpipe.crc32c_portable(CONTENT[at : at + UNIT]) for at in range(0, len(CONTENT), UNIT)),
)


def bent(**changes):
    """A manifest with other fields and a right seal."""
    fields = {**json.loads(MANIFEST.to_bytes()), **changes}
    del fields["seal"]
    return sealed({name: value for name, value in fields.items() if value is not None})


def bad_manifests():
    """(name, the manifest's bytes)."""
    sound = MANIFEST.to_bytes()
    for name, body in {
        "empty": b"",
        "an object": b"{}",
        "brackets": b"[" * 100_000,
        "a byte less": sound[:-1],
        "a byte more": sound + b"\n",
        "turned": sound[:40] + bytes((sound[40] ^ 1,)) + sound[41:],
        "twice": sound * 2,
        "in UTF-16": sound.decode().encode("utf-16-le"),
    }.items():
        yield name, body
    for name, changes in {
        "of another index": {"index": 8},
        "of index 2^64": {"index": 2**64},
        "of a negative index": {"index": -7},
        "of index true": {"index": True},
        "of size 0": {"size": 0},
        "of another number of chunks": {"size": len(CONTENT) + UNIT},
        "of size -1": {"size": -1},
        "of size 2^64": {"size": 2**64},
        "of size 1e400": {"size": "1e400"},
        "of a broken size": {"size": 12301.0},
        "of chunk size 0": {"chunk_size": 0},
        "of chunk size -4096": {"chunk_size": -UNIT},
        "of chunk size 1": {"chunk_size": 1},
        "of chunk size 2^40": {"chunk_size": 2**40, "chunks": "00000000"},
        "without chunks": {"chunks": ""},
        "with chunks that are none": {"chunks": "x" * 32},
        "with chunks in a list": {"chunks": [1, 2, 3, 4]},
        "of a later format": {"format": "snapstore-manifest/2"},
        "of another algorithm": {"algorithm": "none"},
        "with a field too many": {"news": 1},
        "without a term": {"term": None},
        "of term 2^64": {"term": 2**64},
        "with data that is no base64": {"data": "?"},
        "with another chunk digest": {"chunks": "00000000" * 4},
    }.items():
        yield name, bent(**changes)


def bad_images():
    """(name, what it does): images that are not those of a sound manifest."""
    turned = bytearray(CONTENT)
    turned[UNIT + 5] ^= 1
    for name, body in {
        "empty": b"",
        "a byte short": CONTENT[:-1],
        "a byte long": CONTENT + b"x",
        "a bit turned": bytes(turned),
        "zeros": bytes(len(CONTENT)),
        "twice": CONTENT * 2,
        "chunks swapped": CONTENT[UNIT : 2 * UNIT] + CONTENT[:UNIT] + CONTENT[2 * UNIT :],
        "JSON": b"{}",
    }.items():
        yield f"{name}, sized", saying(answer(200, body))
        coded = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
        yield f"{name}, unsized", saying(CHUNKED + coded + b"0\r\n\r\n")
    yield "a part", saying(answer(206, CONTENT[:UNIT], "Content-Range: bytes 0-4095/12301"))
    yield "moved", saying(answer(302, b"", "Location: http://127.0.0.1:1/"))
    yield "gone meanwhile", saying(answer(404, b'{"error": "purged"}'))
    yield "silent in the middle", hanging(answer(200, CONTENT[:5000], length=len(CONTENT)))
    yield "silent before the last byte", hanging(answer(200, CONTENT[:-1], length=len(CONTENT)))
    yield "leaves in the middle", leaving(answer(200, CONTENT[:5000], length=len(CONTENT)))
    yield "resets in the middle", leaving(answer(200, CONTENT[:5000], length=len(CONTENT)), reset=True)
    yield "of 2^62", without_end(answer(200, length=2**62), CONTENT)
    yield "without an end", without_end(CHUNKED, b"%x\r\n%b\r\n" % (len(CONTENT), CONTENT))


@pytest.fixture
def target(tmp_path):
    """A directory to fetch into; nothing is in it afterwards."""
    with SnapshotDir(tmp_path / "target") as target:
        yield target
        assert stored_names(target.path) == []


@table(*no_answers())
def test_a_manifest_of_a_hostile_server_is_never_taken(target, behave):
    assert isinstance(outcome(lambda url: impatient().fetch(url, 7, target), behave), TransportError)


@pytest.mark.parametrize("body", [pytest.param(body, id=name) for name, body in bad_manifests()])
def test_a_manifest_that_lies_is_never_taken(target, body):
    """Where only the bytes tell, they are sent: sound ones, which the manifest then contradicts."""
    error = outcome(
        lambda url: impatient().fetch(url, 7, target), saying(answer(200, body)), saying(answer(200, CONTENT))
    )
    assert isinstance(error, SnapshotCorrupt)


@table(*no_answers(), *bad_images())
def test_an_image_of_a_hostile_server_is_never_saved(target, behave):
    manifest = saying(answer(200, MANIFEST.to_bytes()))
    outcome(lambda url: impatient().fetch(url, 7, target), manifest, behave)


def test_a_manifest_larger_than_the_disk_takes_no_room(target):
    chunk_size = _fastpipe.CHUNK_SIZE_MAX
    chunks = 2**45 // chunk_size
    body = bent(size=2**45, chunk_size=chunk_size, chunks="00000000" * chunks)
    with Impostors(saying(answer(200, body)), saying(answer(200, length=2**45))) as server:
        with pytest.raises(OSError, match=r"No space|too large"):
            SnapshotClient().fetch(server.url, 7, target)
        server.done.set()


def test_a_sound_snapshot_that_is_not_the_one_asked_for_is_refused_before_its_bytes(target):
    other = pytest.raises(SnapshotCorrupt, match="another snapshot 7")
    with Impostors(saying(answer(200, MANIFEST.to_bytes()))) as server, other:
        SnapshotClient().fetch(server.url, 7, target, digest="crc32c:00000000")


def test_the_lies_are_refused_for_themselves_alone(tmp_path):
    """What the tables bend is taken when it is not bent."""
    assert bent() == MANIFEST.to_bytes()
    with SnapshotDir(tmp_path / "target") as target:
        with Impostors(saying(answer(200, bent())), saying(answer(200, CONTENT))) as server:
            wanted = digest_text(MANIFEST.digest)
            assert impatient().fetch(server.url, 7, target, digest=wanted).manifest == MANIFEST
        assert target.verify(7).size == len(CONTENT)


def test_the_tables_name_each_server_once():
    assert_distinct(*bad_images(), *bad_manifests())
