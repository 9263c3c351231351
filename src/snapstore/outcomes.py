"""What the outcomes of the C core are called: its codes become the exceptions of `errors`.

The core decides and counts; the words stand here. Imported by the extension, and by nothing else.
"""

from __future__ import annotations

import errno
import os

from snapstore.errors import (
    KeptPrefixWrong,
    PipeClosed,
    ReceiverSilent,
    SnapshotCorrupt,
    SnapshotTooLarge,
    SnapshotTruncated,
)

#: The numbers of `_native/pulse.pxi`.
CANCELLED = -1002
TRUNCATED = -1003
TOO_LARGE = -1004
DIGEST_WRONG = -1005
FRAME_WRONG = -1006
IMAGE_CLOSED = -1009
WHOLE_WRONG = -1010
KEPT_WRONG = -1011
TARGET_SILENT = -1012


def outcome_error(code: int, size: int, chunk: int) -> Exception:
    """Return the exception for a transfer that ended with `code` after `size` bytes, in `chunk`."""
    if code == CANCELLED:
        return PipeClosed(f"the transfer was cancelled after {size} bytes")
    if code == TRUNCATED:
        return SnapshotTruncated(f"the source ended after {size} bytes, before the snapshot did", chunk)
    if code == TOO_LARGE:
        return SnapshotTooLarge(f"the source has more than was declared or allowed, after {size} bytes")
    if code == DIGEST_WRONG:
        return SnapshotCorrupt(f"the digest of chunk {chunk} (from byte {size} on) is wrong", chunk)
    if code == WHOLE_WRONG:
        return SnapshotCorrupt(f"the digest of the whole ({size} bytes) is wrong")
    if code == FRAME_WRONG:
        return SnapshotCorrupt(f"the frame of chunk {chunk} (from byte {size} on) is malformed", chunk)
    if code == KEPT_WRONG:
        words = f"chunk {chunk}, kept from an earlier attempt, is not what the sender has"
        return KeptPrefixWrong(words, chunk)
    if code == TARGET_SILENT:
        return ReceiverSilent(f"the receiver took nothing, or too little, after {size} bytes")
    if code == IMAGE_CLOSED:
        return PipeClosed("the snapshot was closed while it was read")
    if code == -errno.ETIMEDOUT:
        words = f"nothing came for the time allowed, or less than the least rate, after {size} bytes"
        return TimeoutError(errno.ETIMEDOUT, words)
    return OSError(-code, os.strerror(-code))
