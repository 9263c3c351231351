"""Manifests: what is taken says the same when it is written again, and all else is SnapshotCorrupt."""

from __future__ import annotations

import json

from snapstore import _fastpipe
from snapstore.errors import SnapshotCorrupt
from snapstore.manifest import Manifest
from snapstore.meta import ConfState, SnapshotMeta


def check(data: bytes) -> bool:
    """The first byte says whether the rest is brought into canonical form and sealed beforehand."""
    text = _sealed(data[1:]) if data[:1] == b"\1" else data[1:]
    try:
        manifest = Manifest.from_bytes(text)
    except SnapshotCorrupt:
        return False
    assert Manifest.from_bytes(manifest.to_bytes()) == manifest
    assert len(manifest.chunk_digests) == -(-manifest.size // manifest.chunk_size)
    return True


def _sealed(text: bytes) -> bytes:
    """What no fuzzer guesses: the right seal, so that it gets behind it."""
    try:
        fields = json.loads(text)
        fields.pop("seal", None)
        seal = _fastpipe.crc32c(json.dumps(fields, sort_keys=True, separators=(",", ":")).encode("ascii"))
        fields["seal"] = f"{seal:08x}"
        return json.dumps(fields, sort_keys=True, separators=(",", ":")).encode("ascii")
    except (ValueError, AttributeError, TypeError, RecursionError):
        return text


def seeds() -> dict[str, bytes]:
    """Manifests of a snapshot with a meta of every kind, and of an empty one."""
    meta = SnapshotMeta(7, 3, ConfState((1, 2**64 - 1), (3,), (4,), (5,), auto_leave=True), b"data")
    full = Manifest(meta, 5000, 1, 4096, (2, 0xFFFFFFFF)).to_bytes()
    empty = Manifest(SnapshotMeta(0), 0, 0, 4096, ()).to_bytes()
    return {
        "good-full": b"\1" + full,
        "good-empty": b"\0" + empty,
        "bad-seal": b"\0" + full.replace(b'"index":7', b'"index":8'),
        "bad-chunks": b"\1" + full.replace(b'"size":5000', b'"size":9000'),
    }
