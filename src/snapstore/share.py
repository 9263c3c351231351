"""One snapshot held by several: the pin, each stream's share in it, and the list of who holds one.

It must not know when a snapshot is created or how long it is kept: that is the store's.

Plan: a `Pin` is a KV's snapshot with what was asked of it beforehand, so that handing it out needs
no I/O. A `Share` is what a stream gets to own in its place: to the stream it is a snapshot, and
closing it says that this holder is done. `Shares` are those that holders still owe; the store guards
them by its lock.
"""

from __future__ import annotations

import logging
import weakref
from functools import partial
from typing import TYPE_CHECKING, cast

from snapstore.errors import LeaseExpired, SnapshotNotInUse
from snapstore.lease import PIN_TTL_S, Kind, Lease
from snapstore.meta import SnapshotMeta, to_meta
from snapstore.stream import SnapshotStream

if TYPE_CHECKING:
    from collections.abc import Callable

    from snapstore._fastpipe import Image
    from snapstore.protocols import KV, Clock, ImagedSnapshot, Raft, Snapshot, Timer, Writer

logger = logging.getLogger("snapstore")


class Pin:
    """A KV's snapshot, ready to be handed out, and where in raft's log it stands.

    Making one may take time: a backend prepares its image here. If that fails, the snapshot is
    closed and the error passes on. `pinned_s` is when it was made, on its maker's clock.
    """

    def __init__(self, meta: SnapshotMeta, snapshot: Snapshot, pinned_s: float = 0.0) -> None:
        self.snapshot = snapshot
        self.pinned_s = pinned_s
        try:
            self.meta = to_meta(meta)
            image = getattr(snapshot, "image", None)
            if image is not None:
                image()
            self.imaged = image is not None
            self.size = snapshot.size
        except BaseException:
            self.close()
            raise

    @classmethod
    def capture(cls, kv: KV, raft: Raft, clock: Clock) -> Pin:
        """Pin `kv` between two entries of `raft`; raises what they do."""
        # Looked up before: it is pinned at some moment of the call.
        pinned_s = clock.monotonic()
        return cls(*raft.capture(kv.snapshot), pinned_s)

    @property
    def bytes_held(self) -> int | None:
        """What of the KV's file waits for the pin to go, in bytes; None where the KV does not tell."""
        try:
            held: int | None = getattr(self.snapshot, "bytes_held", None)
        except Exception:
            logger.exception("a KV failed to say what its pin costs")
            return None
        return held

    def close(self) -> None:
        """Close the KV's snapshot. An error is logged: its owner has let go of it already."""
        try:
            self.snapshot.close()
        except Exception:
            logger.exception("closing a KV's snapshot failed; it is given up")


class Share:
    """One stream's part in a pin. Implements `Snapshot` for that stream.

    It knows its stream weakly, so that one which its holder dropped is noticed. `timer` tells the end of
    its lease, and `strict` whether it is revoked then. One that was `revoked` holds nothing any more, but
    its holder still owes it.
    """

    stream: weakref.ref[SnapshotStream]
    timer: Timer
    revoked = False

    def __init__(
        self, pin: Pin, lease: Lease, clock: Clock, release: Callable[[Share], None], *, strict: bool
    ) -> None:
        self.pin = pin
        self.lease = lease
        self.strict = strict
        self._clock = clock
        self._release = release

    @property
    def size(self) -> int | None:
        """The snapshot's length in bytes, if that is known beforehand."""
        return self.pin.size

    def write_to(self, writer: Writer) -> int:
        """Write the whole snapshot."""
        return self.pin.snapshot.write_to(writer)

    def close(self) -> None:
        """Say that this holder is done."""
        self._release(self)

    def tell_overdue(self) -> None:
        """Log that its time is up; where it was revoked, its reader hears it too."""
        index, ttl_s = self.lease.index, self.lease.ttl_s
        self.lease.report("it is revoked" if self.revoked else "it pins the KV until its stream is closed")
        if self.revoked and (stream := self.stream()) is not None:
            stream.revoke(LeaseExpired(f"snapshot {index} was lent for {ttl_s:g} s, which are over"))

    def close_later(self) -> None:
        """Close in the background: a finalizer may have interrupted a thread that has the locks."""
        self._clock.run_soon(self.close)


class ImagedShare(Share):
    """A share in a pin whose bytes can be read at random."""

    def image(self) -> Image:
        """Return the image, which all shares in the pin read."""
        return cast("ImagedSnapshot", self.pin.snapshot).image()


class Shares:
    """All shares that are still owed, oldest first, those in pins that are gone included.

    Not thread-safe: the store holds its lock.
    """

    def __init__(
        self, clock: Clock, release: Callable[[Share], None], lapse: Callable[[Share], None]
    ) -> None:
        """`release` is called when a stream is closed, `lapse` when the time of a lease is up."""
        self._clock = clock
        self._release = release
        self._lapse = lapse
        self._owed: list[Share] = []

    def lend(self, pin: Pin, owner: str | None, ttl_s: float | None) -> SnapshotStream:
        """Return a stream that owns a new share in `pin`."""
        lease = Lease(
            Kind.PIN,
            pin.meta.index,
            owner=owner,
            ttl_s=PIN_TTL_S if ttl_s is None else ttl_s,
            monotonic=self._clock.monotonic,
            cost=lambda: pin.bytes_held,
        )
        kind = ImagedShare if pin.imaged else Share
        share = kind(pin, lease, self._clock, self._release, strict=ttl_s is not None)
        share.timer = self._clock.call_later(lease.ttl_s, partial(self._lapse, share))
        stream = SnapshotStream(pin.meta, share)
        share.stream = weakref.ref(stream)
        self._owed.append(share)
        return stream

    def find(self, stream: SnapshotStream | None) -> Share:
        """Return the share of `stream`, or the oldest; raises SnapshotNotInUse where none is owed."""
        for share in self._owed:
            if stream is None or share.stream() is stream:
                return share
        which = "no snapshot" if stream is None else f"{stream!r}"
        raise SnapshotNotInUse(f"{which} is in use here; was it released already?")

    def holding(self, pin: Pin | None) -> list[Share]:
        """Return those that keep `pin` from being closed."""
        return [share for share in self._owed if share.pin is pin and not share.revoked]

    def settle(self, share: Share) -> bool:
        """Strike `share` off; whether it was still owed."""
        if share not in self._owed:
            return False
        self._owed.remove(share)
        share.timer.cancel()
        return True

    def streams(self, pin: Pin | None = None) -> list[SnapshotStream]:
        """Return the streams of those that hold `pin`, or of all that are owed."""
        shares = self._owed if pin is None else self.holding(pin)
        # One that is being finalised just now is missing: it closes itself.
        return [stream for share in shares if (stream := share.stream()) is not None]

    def __len__(self) -> int:
        return len(self._owed)
