"""A snapshot's meta from JSON: ValueError or TypeError, or what says the same again."""

from __future__ import annotations

import json

from snapstore.meta import INDEX_MAX, ConfState, SnapshotMeta


def check(data: bytes) -> bool:
    """The input is the JSON."""
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError):
        return False
    try:
        meta = SnapshotMeta.from_json(fields)
    except (ValueError, TypeError):
        return False
    assert 0 <= meta.index <= INDEX_MAX
    assert 0 <= meta.term <= INDEX_MAX
    assert SnapshotMeta.from_json(json.loads(json.dumps(meta.to_json()))) == meta
    return True


def seeds() -> dict[str, bytes]:
    """A meta with everything, one with nothing, and what is refused."""
    full = SnapshotMeta(2**64 - 1, 3, ConfState((1,), (2,), (3,), (4,), auto_leave=True), b"\0data")
    text = json.dumps(full.to_json())
    return {
        "good-full": text.encode(),
        "good-empty": json.dumps(SnapshotMeta(0).to_json()).encode(),
        "bad-index": text.replace(str(2**64 - 1), str(2**64)).encode(),
        "bad-data": text.replace("AGRhdGE=", "AGRhdGE").encode(),
    }
