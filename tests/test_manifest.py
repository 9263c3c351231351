"""The manifest: any spelling but the one that was written is refused, whatever it says."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapstore import _fastpipe
from snapstore.errors import SnapshotCorrupt
from snapstore.manifest import Manifest, digest_text
from snapstore.meta import ConfState, SnapshotMeta
from test_meta import METAS

DIGESTS = st.integers(0, 2**32 - 1)
CHUNK_SIZE = _fastpipe.CHUNK_SIZE_MIN
GOOD = Manifest(SnapshotMeta(9, 4, ConfState((1, 2), (3,)), b"data"), CHUNK_SIZE + 1, 7, CHUNK_SIZE, (8, 9))


@st.composite
def manifests(draw):
    chunk_digests = tuple(draw(st.lists(DIGESTS, max_size=20)))
    last = draw(st.integers(1, CHUNK_SIZE))
    size = (len(chunk_digests) - 1) * CHUNK_SIZE + last if chunk_digests else 0
    return Manifest(draw(METAS), size, draw(DIGESTS), CHUNK_SIZE, chunk_digests)


def sealed(**changes):
    """The manifest `GOOD` with other fields, under a seal that is right for them."""
    fields = json.loads(GOOD.to_bytes())
    del fields["seal"]
    fields = {name: value for name, value in {**fields, **changes}.items() if value is not ...}
    fields["seal"] = f"{_fastpipe.crc32c(canonical(fields)):08x}"
    return canonical(fields)


def canonical(fields):
    return json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()


@given(manifests())
def test_a_manifest_is_read_as_it_was_written(manifest):
    data = manifest.to_bytes()
    assert Manifest.from_bytes(data) == manifest
    assert manifest.to_bytes() == data


def test_the_seal_made_here_is_the_real_one():
    assert sealed() == GOOD.to_bytes()


def test_every_flipped_bit_is_noticed():
    data = GOOD.to_bytes()
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(SnapshotCorrupt, match="the manifest is broken"):
            Manifest.from_bytes(bytes(flipped))


def test_every_truncation_and_any_addition_is_noticed():
    data = GOOD.to_bytes()
    for length in range(len(data)):
        with pytest.raises(SnapshotCorrupt):
            Manifest.from_bytes(data[:length])
    for more in (b"\n", b" ", b"\0", data):
        with pytest.raises(SnapshotCorrupt):
            Manifest.from_bytes(data + more)


@given(st.binary(max_size=100))
def test_bytes_of_any_kind_are_refused_by_name(data):
    with pytest.raises(SnapshotCorrupt):
        Manifest.from_bytes(data)


@pytest.mark.parametrize(
    "data",
    [
        b"null",
        b"[]",
        b"{}",
        b"[" * 100_000,
        b'{"size":' + b"9" * 5000 + b"}",
        GOOD.to_bytes().decode().encode("utf-16"),
        b"\xef\xbb\xbf" + GOOD.to_bytes(),
        json.dumps(json.loads(GOOD.to_bytes())).encode(),
        GOOD.to_bytes().replace(b'"term":4', b'"term":4,"term":4'),
    ],
)
def test_other_json_is_refused(data):
    with pytest.raises(SnapshotCorrupt):
        Manifest.from_bytes(data)


@pytest.mark.parametrize(
    "changes",
    [
        {"format": "snapstore-manifest/2"},
        {"algorithm": "md5"},
        {"size": -1},
        {"size": 1.0},
        {"size": True},
        {"size": None},
        {"size": 2 * CHUNK_SIZE + 1},
        {"size": CHUNK_SIZE},
        {"size": 2**64 - 1},
        {"chunk_size": 0},
        {"chunk_size": CHUNK_SIZE - 1},
        {"chunk_size": CHUNK_SIZE + 1},
        {"chunk_size": 2**40},
        {"chunk_size": "4096"},
        {"chunks": ""},
        {"chunks": 5},
        {"chunks": ["00000008", "00000009"]},
        {"chunks": "0000000800000"},
        {"chunks": "-0000008+0000009"},
        {"chunks": "0x0000080x000009"},
        {"chunks": "0000000A0000000B"},
        {"chunks": " 0000008 0000009"},
        {"chunks": "0000_0080000_009"},
        {"digest": ""},
        {"digest": 7},
        {"digest": "-0000007"},
        {"digest": "000000007"},
        {"digest": "0000000700000008"},
        {"index": "9"},
        {"index": 2**64},
        {"data": "?"},
        {"conf_state": []},
        {"chunks": ...},
        {"format": ...},
        {"term": ...},
        {"more": 1},
    ],
    ids=str,
)
def test_a_right_seal_does_not_make_wrong_fields_right(changes):
    with pytest.raises(SnapshotCorrupt, match="the manifest is broken"):
        Manifest.from_bytes(sealed(**changes))


def test_a_digest_names_its_algorithm():
    assert digest_text(0xAB) == "crc32c:000000ab"
