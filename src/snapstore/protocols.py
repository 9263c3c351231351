"""The faces of the outside: what a KV, a raft node, a transport and a clock must offer.

Structural types only, so that a node's own classes fit without importing anything from here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, TypeAlias, TypeVar

if TYPE_CHECKING:
    import os

    from typing_extensions import Buffer

    from snapstore._fastpipe import Body, Frames, Image, PipeReader
    from snapstore.meta import SnapshotMeta
    from snapstore.stream import SnapshotStream

S = TypeVar("S")


class Writer(Protocol):
    """Where `Snapshot.write_to` puts bytes: a `PipeWriter`, a binary file, anything alike."""

    def write(self, data: Buffer, /) -> object:
        """Take all of `data`; blocks while there is no room."""


class Reader(Protocol):
    """Where bytes come from when they are neither a descriptor nor in memory."""

    def read(self, size: int, /) -> Buffer:
        """Return 1 to `size` bytes, or none at the end."""


class Snapshot(Protocol):
    """A KV as of one moment, pinned: writers go on and change nothing here.

    One thread at a time may call `write_to`; `close` may come from any thread, at any moment, and
    may come twice. It may tell what it costs by `bytes_held`: how many bytes of its store's files could be
    used again if it were closed. Operators are shown that, so it must be quick.
    """

    @property
    def size(self) -> int | None:
        """Its length in bytes, or None where only writing it out tells."""

    def write_to(self, writer: Writer, /) -> int:
        """Write the whole image, in order, and return how many bytes it has."""

    def close(self) -> None:
        """Give the pin back. Reads under way end with an error, later ones too."""


#: What the C core reads from; a descriptor is an int, and a `Reader` is asked chunk by chunk.
CoreSource: TypeAlias = "int | Buffer | Reader | PipeReader | Image | Body | Frames"


class ImagedSnapshot(Snapshot, Protocol):
    """A snapshot whose bytes stand still where they can be read at random."""

    def image(self) -> Image:
        """Return the image: the same bytes at each call, without a copy. Closed by `close`."""


class KV(Protocol):
    """A key-value store that can be pinned and replaced."""

    def snapshot(self) -> Snapshot:
        """Pin the store as it is now. Quick (no bytes are moved): it runs on the apply loop."""

    def restore(self, source: str | os.PathLike[str] | Reader, /) -> None:
        """Replace the whole content by a snapshot's; a crash leaves the old or the new, whole."""


class Raft(Protocol):
    """The node's apply loop, as far as a snapshot needs it."""

    def capture(self, take: Callable[[], S], /) -> tuple[SnapshotMeta, S]:
        """Call `take` between two applied entries and say where that was.

        Called on the store's background thread; may block, but not for ever. Raises when the loop
        cannot serve; the store then tries again at the next `get_snap`.
        """


class SnapshotTransport(Protocol):
    """A transport that wants to know as soon as a snapshot is handed out."""

    def snapshot_ready(self, stream: SnapshotStream, index: int, /) -> None:
        """Take note of `stream`; called by `get_snap`'s thread, so it must not block."""


class Timer(Protocol):
    """A call that stands in the future."""

    def cancel(self) -> None:
        """Never make the call, unless it has begun. May come twice, from any thread."""


class Clock(Protocol):
    """Time and background work. `clock.SystemClock` is the real one, `testing.FakeClock` the twin."""

    def monotonic(self) -> float:
        """Seconds since some fixed moment."""

    def call_later(self, delay_s: float, call: Callable[[], None], /) -> Timer:
        """Make `call` once, `delay_s` seconds from now, on a thread of the clock's. Never blocks."""

    def run_soon(self, task: Callable[[], None], /) -> None:
        """Run `task` on a background thread, one after the other. Never blocks."""
