"""What etcd sends in Maintenance.Snapshot, checked message by message.

Messages in, bytes out. No gRPC, no files, no threads; what the bytes are of is not looked at.

The database comes in blobs of 32 KiB, each with how much of it remains; then its SHA-256, in a message
like the others with nothing remaining. So the first message tells the size, all others have to agree
with it, and nothing but the end of the stream ends it. etcdctl writes all of it into one file, the
database and the 32 bytes of its digest behind it; what is handed on here is that file.
"""

from __future__ import annotations

import hashlib
from typing import Any

from snapstore.errors import SnapshotCorrupt, SnapshotTruncated

#: SHA-256, the bytes as they are.
TRAILER_SIZE = 32

#: Offsets in a file are signed numbers of 64 bits.
_FILE_SIZE_MAX = 2**63 - 1


class Blobs:
    """The bytes of one call, counted and digested as they pass. One thread at a time."""

    def __init__(self) -> None:
        #: Bytes of the database, by the first message; None before it.
        self.database_size: int | None = None
        #: Bytes that came, those of the trailer too.
        self.received = 0
        self._digest = hashlib.sha256()
        self._trailer = b""

    def take(self, message: Any) -> bytes:
        """Return the bytes that a SnapshotResponse brings, which may be none.

        Raises SnapshotCorrupt where they do not go with what came before.
        """
        blob: bytes = message.blob
        if self.database_size is None:
            self.database_size = message.remaining_bytes + len(blob)
            if self.database_size + TRAILER_SIZE > _FILE_SIZE_MAX:
                raise SnapshotCorrupt(f"etcd promises {self.database_size} bytes; no file has so many")
        missing = max(0, self.database_size - self.received)
        self.received += len(blob)
        if message.remaining_bytes != max(0, missing - len(blob)):
            raise SnapshotCorrupt(
                f"after {self.received} bytes of {self.database_size} etcd says that"
                f" {message.remaining_bytes} remain"
            )
        if self.received > self.database_size + TRAILER_SIZE:
            raise SnapshotCorrupt(f"etcd sent more than the {self.database_size} bytes that it promised")
        self._digest.update(memoryview(blob)[:missing])
        self._trailer += blob[missing:]
        return blob

    def end(self) -> None:
        """Take note that nothing follows; raises SnapshotTruncated and SnapshotCorrupt."""
        if self.database_size is None or self.received < self.database_size + TRAILER_SIZE:
            promised = "nothing" if self.database_size is None else f"{self.database_size} bytes"
            raise SnapshotTruncated(
                f"etcd promised {promised} and a digest, and ended after {self.received} bytes"
            )
        if self._digest.digest() != self._trailer:
            raise SnapshotCorrupt("the SHA-256 that etcd sent is not that of its database: it was damaged")
