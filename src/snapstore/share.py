"""One snapshot held by several: the pin, and each stream's share in it.

It must not know when a snapshot is created or how long it is kept: that is the store's.

Plan: a `Pin` is a KV's snapshot with what was asked of it beforehand, so that handing it out needs
no I/O. A `Share` is what a stream gets to own in its place: to the stream it is a snapshot, and
closing it says that this holder is done. Who is still a holder is counted by the store.
"""

from __future__ import annotations

import logging
import weakref
from typing import TYPE_CHECKING, cast

from snapstore.meta import SnapshotMeta, to_meta
from snapstore.stream import SnapshotStream

if TYPE_CHECKING:
    from collections.abc import Callable

    from snapstore._fastpipe import Image
    from snapstore.protocols import Clock, ImagedSnapshot, Snapshot, Writer

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

    def lend(self, clock: Clock, release: Callable[[Share], None]) -> tuple[Share, SnapshotStream]:
        """Return a share in it, and the stream that owns the share."""
        share = (ImagedShare if self.imaged else Share)(self, clock, release)
        stream = SnapshotStream(self.meta, share)
        share.stream = weakref.ref(stream)
        return share, stream

    def close(self) -> None:
        """Close the KV's snapshot. An error is logged: its owner has let go of it already."""
        try:
            self.snapshot.close()
        except Exception:
            logger.exception("closing a KV's snapshot failed; it is given up")


class Share:
    """One stream's part in a pin. Implements `Snapshot` for that stream.

    It knows its stream weakly, so that one which its holder dropped is noticed.
    """

    stream: weakref.ref[SnapshotStream]

    def __init__(self, pin: Pin, clock: Clock, release: Callable[[Share], None]) -> None:
        self.pin = pin
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

    def close_later(self) -> None:
        """Close in the background: a finalizer may have interrupted a thread that has the locks."""
        self._clock.run_soon(self.close)


class ImagedShare(Share):
    """A share in a pin whose bytes can be read at random."""

    def image(self) -> Image:
        """Return the image, which all shares in the pin read."""
        return cast("ImagedSnapshot", self.pin.snapshot).image()
