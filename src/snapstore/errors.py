"""Every way in which snapstore refuses, as names.

No logic here, and no imports of ours: the extension, the protocols and every layer above import this file.
`OSError` is never wrapped: a full disk stays `OSError` with its errno and its path.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

#: What a NoRoom tells, and a peer that has no room: all in bytes.
ROOM_NUMBERS = ("needed", "free", "reserved", "reserve")


class SnapstoreError(Exception):
    """The root of all errors that snapstore raises by its own decision."""


class SnapshotTemporarilyUnavailable(SnapstoreError):
    """No snapshot can be handed out now; ask again later.

    Raft engines know this as "later": etcd's `ErrSnapshotTemporarilyUnavailable`. The store is
    creating a snapshot, or the one it has is in use.
    """


class SnapshotNotInUse(SnapstoreError):
    """A snapshot was released that nobody holds. Nothing was changed."""


class SnapshotExists(SnapstoreError):
    """A snapshot of this index is stored already. It was kept; nothing was read from the source."""

    def __init__(self, message: str, path: Path | None = None) -> None:
        super().__init__(message)
        #: Where the stored snapshot lies.
        self.path = path


class SnapshotBusy(SnapstoreError):
    """Somebody else is at it: this index is being saved, or this store restored. Wait, then look."""


class SnapshotNotFound(SnapstoreError, LookupError):
    """No snapshot of this index is stored."""


class SnapshotCorrupt(SnapstoreError):
    """Bytes are not what was promised: a digest, a length or a frame is wrong."""

    def __init__(self, message: str, chunk: int | None = None) -> None:
        super().__init__(message)
        #: Number of the first bad chunk, counted from 0, where one can be named.
        self.chunk = chunk


class SnapshotTruncated(SnapshotCorrupt):
    """The bytes ended before the snapshot did."""


class KeptPrefixWrong(SnapshotCorrupt):
    """What an earlier attempt left is not what the sender has. `chunk` is the first that differs.

    It is thrown away from there on, so that the next attempt goes on before it.
    """


class SnapshotTooLarge(SnapstoreError):
    """The source has more bytes than were declared or than the limit allows. Nothing was saved."""


class NoRoom(SnapstoreError, OSError):
    """A save would take room that is promised to other saves, or has to stay free. Nothing was saved.

    It is an OSError with `errno` ENOSPC and the snapshot's path, as a full disk is. In bytes: `needed`
    (of a source that does not tell its size, the least), `free` on the disk, `reserved` for other saves
    under way beside what those have allocated, and the `reserve` that stays free. `for_now` tells that
    there is room enough but for those other saves, of which one may fail: ask again.
    """

    def __init__(
        self,
        reason: str,
        *,
        needed: int = 0,
        free: int = 0,
        reserved: int = 0,
        reserve: int = 0,
        for_now: bool = False,
    ) -> None:
        OSError.__init__(self, errno.ENOSPC, reason)
        #: What is missing, without the path.
        self.reason = reason
        self.needed = needed
        self.free = free
        self.reserved = reserved
        self.reserve = reserve
        self.for_now = for_now

    def __str__(self) -> str:
        return f"{self.filename}: {self.reason}" if self.filename else self.reason


class SnapshotNotDurable(SnapstoreError):
    """The snapshot has its name, but the directory's fsync failed, so a power cut may take it.

    The directory refuses further saves until it is opened anew. Never report this snapshot to
    raft; its `__cause__` is the `OSError` of the fsync.
    """


class DirectoryPoisoned(SnapstoreError):
    """An earlier fsync of this directory failed; a new `SnapshotDir` on it reads back all it has."""


class ReceiverSilent(SnapstoreError, TimeoutError):
    """Who is written to took nothing for the time allowed, or less than the least rate."""


class PipeClosed(SnapstoreError):
    """The other end of the pipe, or the snapshot behind a stream, was closed."""


class LeaseExpired(PipeClosed):
    """The stream was lent for a time that is over. It pins nothing any more; ask for a new one."""


class StoreClosed(SnapstoreError):
    """The store was closed; it hands out and creates nothing any more."""


class ForkedProcess(SnapstoreError):
    """The object was made before a fork. Its locks, threads and offsets belong to the parent."""


class CaptureTimeout(SnapstoreError, TimeoutError):
    """The apply loop did not serve the capture within its deadline; creation can be tried again."""


class TransportError(SnapstoreError):
    """A snapshot could not be carried to or from a peer."""


class PeerUnreachable(TransportError):
    """The connection could not be made, or broke, or stalled, before the peer answered."""


class PeerUntrusted(TransportError):
    """TLS failed: one side does not take what the other shows. Trying again changes nothing."""


class PeerRejected(TransportError):
    """The peer answered and said no.

    `status` is the HTTP status, `reason` the peer's own words, `retry_after_s` its advice in
    seconds, or None where it gave none. `numbers` has what it said of its room, as ROOM_NUMBERS.
    """

    def __init__(
        self,
        status: int,
        reason: str,
        retry_after_s: float | None = None,
        numbers: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__(f"{status}: {reason}")
        self.numbers = dict(numbers or {})
        self.status = status
        self.reason = reason
        self.retry_after_s = retry_after_s


class MissingExtra(SnapstoreError, ImportError):
    """An optional part was used whose dependencies are not installed; the message names the extra."""
