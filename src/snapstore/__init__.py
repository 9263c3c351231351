"""Point-in-time snapshots of a raft node's key-value store: streamed at wire speed, saved durably.

The leader's side: a `SnapshotStore` decides when a snapshot of a KV (`snapstore.kv`) exists and
hands it out as a `SnapshotStream`. The follower's: a `SnapshotDir` keeps what arrives, whole or not
at all. Between them: `snapstore.transport.http`, or any transport of the node's own.

Names are imported when they are asked for (PEP 562): `import snapstore` itself loads nothing, neither the C
core nor a module of the standard library.
"""

import sys

if sys.platform != "linux":
    raise ImportError(
        f"snapstore needs Linux, this is {sys.platform}: O_TMPFILE, linkat, fallocate and direct I/O, "
        "on which its promise of durable saves rests, have no twin here"
    )

#: What type checkers take for true. Not typing's: that alone would take longer than all else here.
TYPE_CHECKING = False

if TYPE_CHECKING:
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
else:

    def __getattr__(name):
        import importlib

        if name == "errors" or name in _HOMES.values():
            return importlib.import_module(f"{__name__}.{name}")
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        found = getattr(importlib.import_module(f"{__name__}.{_HOMES.get(name, 'errors')}"), name)
        globals()[name] = found  # Asked once.
        return found

    def __dir__():
        return sorted({*globals(), *__all__})


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

#: The modules that have them. What is not listed here is an error, and in snapstore.errors.
_HOMES = {
    "CaptureQueue": "capture",
    "ConfState": "meta",
    "Lease": "lease",
    "Pacer": "pacing",
    "SavedSnapshot": "stored",
    "SnapshotDir": "directory",
    "SnapshotMeta": "meta",
    "SnapshotStore": "store",
    "SnapshotStream": "stream",
    "StoredSnapshot": "stored",
    "Throttle": "_fastpipe",
    "Transfer": "transfer",
    "TransferRegistry": "transfers",
}
