"""Point-in-time snapshots of a raft node's key-value store: streamed at wire speed, saved durably.

The leader's side: a `SnapshotStore` decides when a snapshot of a KV (`snapstore.kv`) exists and
hands it out as a `SnapshotStream`. The follower's: a `SnapshotDir` keeps what arrives, whole or not
at all. Between them: `snapstore.transport.http`, or any transport of the node's own.
"""

import sys

if sys.platform != "linux":
    raise ImportError(
        f"snapstore needs Linux, this is {sys.platform}: O_TMPFILE, linkat, fallocate and direct I/O, "
        "on which its promise of durable saves rests, have no twin here"
    )

from snapstore._fastpipe import Throttle
from snapstore.capture import CaptureQueue
from snapstore.directory import SnapshotDir
from snapstore.errors import (
    CaptureTimeout,
    DirectoryPoisoned,
    ForkedProcess,
    LeaseExpired,
    MissingExtra,
    NoRoom,
    PeerRejected,
    PeerUnreachable,
    PeerUntrusted,
    PipeClosed,
    SnapshotBusy,
    SnapshotCorrupt,
    SnapshotExists,
    SnapshotNotDurable,
    SnapshotNotFound,
    SnapshotNotInUse,
    SnapshotTemporarilyUnavailable,
    SnapshotTooLarge,
    SnapshotTruncated,
    SnapstoreError,
    StoreClosed,
    TransportError,
)
from snapstore.lease import Lease
from snapstore.meta import ConfState, SnapshotMeta
from snapstore.pacing import Pacer
from snapstore.store import SnapshotStore
from snapstore.stored import SavedSnapshot, StoredSnapshot
from snapstore.stream import SnapshotStream
from snapstore.transfer import Transfer
from snapstore.transfers import TransferRegistry

__version__ = "0.1.0"

__all__ = [
    "CaptureQueue",
    "CaptureTimeout",
    "ConfState",
    "DirectoryPoisoned",
    "ForkedProcess",
    "Lease",
    "LeaseExpired",
    "MissingExtra",
    "NoRoom",
    "Pacer",
    "PeerRejected",
    "PeerUnreachable",
    "PeerUntrusted",
    "PipeClosed",
    "SavedSnapshot",
    "SnapshotBusy",
    "SnapshotCorrupt",
    "SnapshotDir",
    "SnapshotExists",
    "SnapshotMeta",
    "SnapshotNotDurable",
    "SnapshotNotFound",
    "SnapshotNotInUse",
    "SnapshotStore",
    "SnapshotStream",
    "SnapshotTemporarilyUnavailable",
    "SnapshotTooLarge",
    "SnapshotTruncated",
    "SnapstoreError",
    "StoreClosed",
    "StoredSnapshot",
    "Throttle",
    "Transfer",
    "TransferRegistry",
    "TransportError",
]
