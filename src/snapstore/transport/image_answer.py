"""What is answered to whoever asks for a stored image, or for a part of it: the head, and which bytes.

Decides by the request's Range and If-Range (RFC 9110, 13.1.5 and 14). No sockets, no files.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING

from snapstore.wire import entity_tag, meta_headers, parse_range

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from snapstore.stored import SavedSnapshot


@dataclass(frozen=True, slots=True)
class ImageAnswer:
    """`length` bytes of the image, from `start` on."""

    status: int
    headers: Sequence[tuple[str, str]]
    start: int
    length: int

    @classmethod
    def to(cls, asked: Mapping[str, str], saved: SavedSnapshot) -> ImageAnswer:
        """Return the answer to a request with the fields `asked`; ValueError for a Range beyond the image."""
        headers = [("Content-Type", "application/octet-stream"), ("Accept-Ranges", "bytes")]
        tag = None
        if saved.manifest is not None:
            digest = base64.b64encode(saved.manifest.digest.to_bytes(4, "big")).decode()
            tag = entity_tag(saved.manifest)
            headers += [("Repr-Digest", f"crc32c=:{digest}:"), ("ETag", tag), *meta_headers(saved.meta)]
        found = parse_range(asked.get("range"), saved.size) if asked.get("if-range", tag) == tag else None
        if found is None:
            headers.append(("Content-Length", str(saved.size)))
            return cls(HTTPStatus.OK, headers, 0, saved.size)
        start, length = found
        headers.append(("Content-Range", f"bytes {start}-{start + length - 1}/{saved.size}"))
        headers.append(("Content-Length", str(length)))
        return cls(HTTPStatus.PARTIAL_CONTENT, headers, start, length)
