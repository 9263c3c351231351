"""What lies beside a snapshot: who it is, how long, and the digest of each of its chunks.

Values and bytes only; no files. One JSON object in canonical form (keys sorted, no spaces), which
carries a seal, the CRC32C of itself without the seal. Since any other spelling is refused, a single
flipped bit anywhere in it is noticed.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from snapstore import _fastpipe
from snapstore.errors import SnapshotCorrupt
from snapstore.meta import SnapshotMeta

FORMAT = "snapstore-manifest/1"

#: The only algorithm so far. Manifest and wire name it, so that a stronger one can come.
DIGEST_ALGORITHM = "crc32c"

#: Enough for 32 TiB in the usual chunks of 4 MiB.
MANIFEST_CHUNKS_MAX = 8 * 1024 * 1024

#: A manifest names 8 hexadecimal digits per chunk, and a meta of up to 16 MiB in base64.
MANIFEST_SIZE_MAX = 128 * 1024 * 1024

_DIGESTS = re.compile(r"(?:[0-9a-f]{8})*")


def digest_text(digest: int) -> str:
    """Return a digest as manifests and tables show it: `crc32c:` and 8 hexadecimal digits."""
    return f"{DIGEST_ALGORITHM}:{digest:08x}"


@dataclass(frozen=True, slots=True)
class Manifest:
    """A snapshot's meta, its size in bytes, and its digests: CRC32C of the whole and of each chunk.

    Chunks have `chunk_size` bytes, the last one what is left.
    """

    meta: SnapshotMeta
    size: int
    digest: int
    chunk_size: int
    chunk_digests: tuple[int, ...]

    def to_bytes(self) -> bytes:
        """Return the sealed JSON."""
        fields = {
            "format": FORMAT,
            **self.meta.to_json(),
            "size": self.size,
            "algorithm": DIGEST_ALGORITHM,
            "digest": f"{self.digest:08x}",
            "chunk_size": self.chunk_size,
            "chunks": "".join(f"{digest:08x}" for digest in self.chunk_digests),
        }
        return sealed(fields)

    @classmethod
    def from_bytes(cls, data: bytes) -> Manifest:
        """Read what `to_bytes` wrote; raises SnapshotCorrupt for anything else."""
        try:
            fields = json.loads(data)
            if not isinstance(fields, dict):
                raise ValueError("not an object")
            seal = fields.pop("seal", None)
            manifest = cls._from_fields(fields)
            # There is one way to write it, seal included: whatever else says the same is refused.
            if manifest.to_bytes() != data:
                raise ValueError(f"the seal {seal!r} is wrong, or it is not in canonical form")
            return manifest
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise SnapshotCorrupt(f"the manifest is broken: {error}") from error

    @classmethod
    def _from_fields(cls, fields: dict[str, Any]) -> Manifest:
        if fields.pop("format") != FORMAT:
            raise ValueError(f"its format is not {FORMAT}")
        if fields.pop("algorithm") != DIGEST_ALGORITHM:
            raise ValueError(f"its algorithm is not {DIGEST_ALGORITHM}")
        size, chunk_size = fields.pop("size"), fields.pop("chunk_size")
        chunks, digest = fields.pop("chunks"), fields.pop("digest")
        if type(size) is not int or type(chunk_size) is not int or size < 0:
            raise ValueError("its sizes are not whole numbers")
        unit = _fastpipe.CHUNK_SIZE_MIN
        if not unit <= chunk_size <= _fastpipe.CHUNK_SIZE_MAX or chunk_size % unit:
            raise ValueError(f"its chunk size is {chunk_size}")
        if not _DIGESTS.fullmatch(chunks) or not _DIGESTS.fullmatch(digest) or len(digest) != 8:
            raise ValueError("its digests are not groups of 8 hexadecimal digits")
        chunk_digests = tuple(int(chunks[at : at + 8], 16) for at in range(0, len(chunks), 8))
        if len(chunk_digests) != -(-size // chunk_size):
            raise ValueError(f"it has {len(chunk_digests)} chunk digests for {size} bytes")
        return cls(SnapshotMeta.from_json(fields), size, int(digest, 16), chunk_size, chunk_digests)


def sealed(fields: dict[str, Any]) -> bytes:
    """Return `fields` as JSON in canonical form, with a seal: its own CRC32C."""
    return _canonical({**fields, "seal": _seal(fields)})


def _canonical(fields: dict[str, Any]) -> bytes:
    return json.dumps(fields, sort_keys=True, separators=(",", ":")).encode("ascii")


def _seal(fields: dict[str, Any]) -> str:
    return f"{_fastpipe.crc32c(_canonical(fields)):08x}"
