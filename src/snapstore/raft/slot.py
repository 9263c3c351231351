"""Where a node's KV stands: readers borrow it, a received snapshot takes its place.

It must not know what a KV has or how it is made; only that it can be pinned and closed.

Plan: each KV in the slot has a *tenure*, which counts its borrowers, pinned snapshots among them. A KV
that was replaced is closed by whoever gives the last of it back.
"""

from __future__ import annotations

import logging
import threading
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar, cast

from snapstore.errors import StoreClosed
from snapstore.protocols import KV

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator

    from snapstore._fastpipe import Image
    from snapstore.protocols import ImagedSnapshot, Reader, Snapshot, Writer

logger = logging.getLogger("snapstore.raft")


class ClosableKV(KV, Protocol):
    """What a slot asks of a KV."""

    def close(self) -> None:
        """Close it; nobody reads it any more."""


K = TypeVar("K", bound=ClosableKV)


def _run(task: Callable[[], None]) -> None:
    task()


class KvSlot(Generic[K]):
    """The KV that a node serves, and its replacement while others read. Safe to use from any thread.

    Give it to the `SnapshotStore` as its `kv`: what is pinned then keeps its KV open, as any reader:

        with slot.reading() as kv:
            value = kv.get(key)

    Borrow for one read or one batch, not for a connection's life: a KV that was replaced stays open,
    and on the disk, until the last borrower is gone.
    """

    def __init__(self, kv: K) -> None:
        self._lock = threading.Lock()
        self._tenure: _Tenure[K] | None = _Tenure(kv)

    @contextmanager
    def reading(self) -> Iterator[K]:
        """Lend the KV as it is now, for a `with` block. StoreClosed once the slot is closed."""
        tenure = self._borrow()
        try:
            yield tenure.kv
        finally:
            self._give_back(tenure)

    def snapshot(self) -> BorrowedSnapshot:
        """Pin the KV as it is now; it stays open at least until that snapshot is closed."""
        tenure = self._borrow()
        try:
            snapshot = tenure.kv.snapshot()
            kind = BorrowedImage if hasattr(snapshot, "image") else BorrowedSnapshot
            return kind(snapshot, partial(self._give_back, tenure))
        except BaseException:
            self._give_back(tenure)
            raise

    def restore(self, source: str | os.PathLike[str] | Reader, /) -> None:
        """Replace the content of the KV that is there, in place, as its own `restore` does."""
        with self.reading() as kv:
            kv.restore(source)

    def swap(self, kv: K, *, run: Callable[[Callable[[], None]], object] = _run) -> None:
        """Put `kv` in place of what is there, which is closed when its readers are done.

        Where it has none, `run` is given the closing of it, which may take time: here and now unless
        told otherwise.
        """
        with self._lock:
            if self._tenure is None:
                raise StoreClosed("the slot was closed")
            old, self._tenure = self._tenure, _Tenure(kv)
            last = old.retire()
        if last:
            run(old.close)

    def close(self) -> None:
        """Close the KV when its readers are done. May come twice."""
        with self._lock:
            old, self._tenure = self._tenure, None
            last = old is not None and old.retire()
        if old is not None and last:
            old.close()

    def _borrow(self) -> _Tenure[K]:
        with self._lock:
            if self._tenure is None:
                raise StoreClosed("the slot was closed")
            self._tenure.borrowers += 1
            return self._tenure

    def _give_back(self, tenure: _Tenure[K]) -> None:
        with self._lock:
            tenure.borrowers -= 1
            last = tenure.ended
        if last:
            tenure.close()

    def __repr__(self) -> str:
        return f"<KvSlot {self._tenure!r}>"


class _Tenure(Generic[K]):
    """One KV's time in the slot; the slot's lock guards it."""

    def __init__(self, kv: K) -> None:
        self.kv = kv
        self.borrowers = 0
        self._retired = False

    @property
    def ended(self) -> bool:
        return self._retired and not self.borrowers

    def retire(self) -> bool:
        """Be replaced; whether nobody reads it, so that it is to be closed now."""
        self._retired = True
        return self.ended

    def close(self) -> None:
        try:
            self.kv.close()
        except Exception:
            logger.exception("closing a KV that was replaced failed; it is given up")

    def __repr__(self) -> str:
        return f"{self.kv!r} borrowers={self.borrowers}"


class BorrowedSnapshot:
    """A KV's snapshot that counts as a reader of it until it is closed."""

    def __init__(self, snapshot: Snapshot, give_back: Callable[[], None]) -> None:
        self._snapshot = snapshot
        self._give_back = give_back
        self._lock = threading.Lock()
        self._closed = False

    @property
    def size(self) -> int | None:
        """Its length in bytes, if that is known beforehand."""
        return self._snapshot.size

    def write_to(self, writer: Writer, /) -> int:
        """Write the whole of it."""
        return self._snapshot.write_to(writer)

    def close(self) -> None:
        """Give the pin back, and the KV. May come twice, from any thread."""
        with self._lock:
            first, self._closed = not self._closed, True
        if first:
            try:
                self._snapshot.close()
            finally:
                self._give_back()


class BorrowedImage(BorrowedSnapshot):
    """One whose bytes can be read at random."""

    def image(self) -> Image:
        """Return the image."""
        return cast("ImagedSnapshot", self._snapshot).image()
