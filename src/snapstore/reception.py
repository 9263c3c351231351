"""A snapshot that comes over a line which may break: what came is kept for the next attempt.

A file of whole chunks, each verified before it was written, under a name of its own, and beside it a
note that says of which snapshot they are. Neither is synced, and neither has to be: nothing here is
believed before its digests were compared with the sender's. Knows no network; which attempts are
made, and what becomes of a finished one, is directory.py's.

Names: `.part-%016x` the chunks, `.part-%016x.json` the note. The one who goes on with them holds the
file's lock.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from snapstore import _fastpipe, disk
from snapstore.errors import (
    KeptPrefixWrong,
    NoRoom,
    PipeClosed,
    SnapshotBusy,
    SnapshotCorrupt,
    TransportError,
)
from snapstore.manifest import sealed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from snapstore._fastpipe import Progress
    from snapstore.manifest import Manifest
    from snapstore.meta import SnapshotMeta
    from snapstore.stored import SavedSnapshot

    _Fill = Callable[..., SavedSnapshot]

FORMAT = "snapstore-partial/1"

#: A follower has one leader, and an operator perhaps a second source: more are leftovers.
PARTIALS_MAX = 2

#: Whoever has not come back within a day has a newer snapshot by then.
PARTIAL_AGE_MAX_S = 24 * 3600

#: A note is a meta without its data, and two numbers.
_NOTE_SIZE_MAX = 1024 * 1024

_PARTIAL_NAME = re.compile(r"\.part-([0-9a-f]{16})\Z")
_NOTE_NAME = re.compile(r"\.part-([0-9a-f]{16})\.json\Z")

#: What a peer or its line does, or whoever stops the transfer: none of it speaks against the chunks.
_LINE_BROKE = (
    SnapshotCorrupt, TransportError, ConnectionError, TimeoutError, PipeClosed, KeyboardInterrupt
)  # fmt: skip


def partial_name(index: int) -> str:
    """Return the name of the chunks that were kept of this index."""
    return f".part-{index:016x}"


def note_name(index: int) -> str:
    """Return the name of the note that belongs to `partial_name(index)`."""
    return f".part-{index:016x}.json"


def note_of(meta: SnapshotMeta, size: int | None, chunk_size: int, data_size: int) -> bytes:
    """Return what is known of a snapshot before its bytes; its meta's data travels with them.

    Two attempts with the same note are taken to be of the same bytes, until the digests tell.
    """
    return sealed(
        {
            "format": FORMAT,
            **replace(meta, data=b"").to_json(),
            "size": size,
            "chunk_size": chunk_size,
            "data_size": data_size,
        }
    )


def open_partial(directory: int, index: int) -> _fastpipe.SaveFile:
    """Return the file that an earlier attempt kept, or a new one. SnapshotBusy beside another process."""
    try:
        return _fastpipe.SaveFile(directory, partial_name(index).encode(), resume=True)
    except BlockingIOError:
        raise SnapshotBusy(f"another process receives index {index} already") from None


class Reception:
    """A snapshot on its way into a directory, from a line that may break. One thread at a time.

    `kept` is how many bytes an earlier attempt left, in whole chunks: the source begins behind them,
    or, where it is Frames, repeats their digests. `SnapshotDir.receive` begins it and settles it.
    """

    def __init__(
        self,
        directory: int,
        file: _fastpipe.SaveFile,
        index: int,
        size: int | None,
        chunk_size: int,
        note: bytes | None,
        fill: _Fill,
    ) -> None:
        """`note` says what `file` is of; without one nothing is kept."""
        self._directory = directory
        self._file = file
        self._index = index
        self._size = size
        self._chunk_size = chunk_size
        self._note = note
        self._lies = False
        self._fill = fill
        self.kept = 0

    def begin(self) -> None:
        """Go on with what the file has if it is of this snapshot, else begin anew."""
        if self._note is None:
            return
        if self._is_noted(self._note):
            self.kept = self._written()
        else:
            os.ftruncate(self._file.fd, 0)  # First: a note must never stand beside another's chunks.
            self._write_note(self._note)

    def check(self, manifest: Manifest, progress: Progress | None = None) -> None:
        """Compare what is kept with `manifest`, from the file; `kept` is then how much of it is right.

        The last chunk is never among it, so that there is something to ask a peer for.
        """
        self.kept = min(self.kept, max(0, manifest.size - 1) // self._chunk_size * self._chunk_size)
        try:
            _fastpipe.digest(
                _fastpipe.Image(self._file.fd, self.kept, close_fd=False),
                size=self.kept,
                chunk_size=self._chunk_size,
                expected=manifest.chunk_digests[: self.kept // self._chunk_size],
                progress=progress,
            )
        except SnapshotCorrupt as error:
            self.kept = (error.chunk or 0) * self._chunk_size

    def save(self, source: object, meta: SnapshotMeta, **options: Any) -> SavedSnapshot:
        """Save what is kept and what `source` has, for good; options and errors as in `save_from`."""
        try:
            saved = self._fill(
                self._file,
                source,
                meta,
                size=self._size,
                chunk_size=self._chunk_size,
                kept=self.kept,
                resumable=self._note is not None,
                **options,
            )
        except SnapshotCorrupt as error:
            # Each chunk was right and all together are not: nobody knows which one lies.
            self._lies = error.chunk is None
            raise
        self._forget()
        return saved

    def settle(self, error: BaseException | None) -> None:
        """Come to an end: keep what is good for another attempt, or leave nothing.

        Where the disk fails at keeping, nothing is kept, and `error` remains what is told.
        """
        with contextlib.suppress(OSError):
            kept = self._good_after(error)
            if kept:
                self._file.keep(kept)
                return
        self._forget()  # While the lock is held: afterwards the note may be another's.
        self._file.discard()

    def _good_after(self, error: BaseException | None) -> int:
        if self._note is None or self._file.fd < 0:
            return 0
        if isinstance(error, KeptPrefixWrong):
            return (error.chunk or 0) * self._chunk_size
        # Refused for want of room before a byte came: what it has is not the room that is missing.
        refused = isinstance(error, NoRoom) and self._size is not None
        return self._written() if (refused or isinstance(error, _LINE_BROKE)) and not self._lies else 0

    def _written(self) -> int:
        size = os.fstat(self._file.fd).st_size
        if self._size is not None:  # Direct I/O pads the last chunk, and a kill leaves it so.
            size = min(size, self._size)
        return size // self._chunk_size * self._chunk_size

    def _is_noted(self, note: bytes) -> bool:
        try:
            return disk.read_small(self._directory, note_name(self._index), _NOTE_SIZE_MAX) == note
        except OSError:
            return False

    def _write_note(self, note: bytes) -> None:
        name = note_name(self._index)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self._directory)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(os.open(name, flags, 0o600, dir_fd=self._directory), "wb") as file:
            file.write(note)

    def _forget(self) -> None:
        if self._note is not None:
            with contextlib.suppress(OSError):  # The next sweep finds it alone, and takes it.
                os.unlink(note_name(self._index), dir_fd=self._directory)


def sweep_partials(
    directory: int, wanted: Callable[[], int], coming: int | None = None, now_s: float | None = None
) -> list[str]:
    """Remove what is stale by `stale_partials`; the names that are gone. What a saver holds stays.

    In a directory that we cannot change nothing is removed. `wanted` returns the lowest index that a
    leader may still offer; it reads manifests, so it is asked only where something was kept.
    """
    names = disk.list_names(directory)
    if not any(_PARTIAL_NAME.match(name) or _NOTE_NAME.match(name) for name in names):
        return []
    now_s = time.time() if now_s is None else now_s
    removed: list[str] = []
    with disk.unless_read_only():
        for index in sorted(stale_partials(directory, names, wanted(), now_s, coming)):
            removed += _remove(directory, index)
    return removed


def stale_partials(
    directory: int, names: Iterable[str], lowest: int, now_s: float, coming: int | None = None
) -> dict[int, str]:
    """Return the indexes whose kept chunks nobody will ask for again, with the reason in words.

    Those of an index below `lowest`, the first that a leader may still offer, but for `coming`; those
    whose index has a snapshot (they may be its second name, see disk.py); those without a note, empty
    or not of the last PARTIAL_AGE_MAX_S by `now_s` (seconds of the epoch); of the rest all but the
    PARTIALS_MAX youngest; and notes without chunks. Only looks, and at no locks.
    """
    partials = {int(found[1], 16) for name in names if (found := _PARTIAL_NAME.match(name))}
    notes = {int(found[1], 16) for name in names if (found := _NOTE_NAME.match(name))}
    changed_s = {index: _changed_s(directory, index) for index in partials}

    def why(index: int) -> str | None:
        if index not in partials:
            return "a note without its chunks"
        if disk.name_taken(directory, disk.snapshot_name(index)):
            return "its snapshot is stored"
        if index < lowest and index != coming:
            return "a newer snapshot is stored"
        if index not in notes:
            return "nothing says of which snapshot it is"
        if not changed_s[index]:
            return "it has no chunks"
        # Both ways: what a wrong clock has dated a year ahead must not stay for a year.
        if abs(now_s - changed_s[index]) > PARTIAL_AGE_MAX_S:
            return f"nobody came back for it within {PARTIAL_AGE_MAX_S // 3600} h"
        return None

    stale = {index: words for index in partials | notes if (words := why(index)) is not None}
    rest = sorted(partials - stale.keys(), key=lambda index: (changed_s[index], index))
    return stale | dict.fromkeys(rest[:-PARTIALS_MAX], f"only the {PARTIALS_MAX} youngest are kept")


def _changed_s(directory: int, index: int) -> float:
    status = disk.regular_status(directory, partial_name(index))
    # An empty one is as good as none: its saver died before it had a chunk.
    return status.st_mtime if status and status.st_size else 0.0


def _remove(directory: int, index: int) -> list[str]:
    """Remove what was kept of one index, unless its saver lives; the names that are gone."""
    if disk.regular_status(directory, partial_name(index)) is None:
        removed = []
    elif disk.unlink_unused(directory, partial_name(index)):
        removed = [partial_name(index)]
    else:
        return []
    with contextlib.suppress(FileNotFoundError, IsADirectoryError):
        os.unlink(note_name(index), dir_fd=directory)
        removed.append(note_name(index))
    return removed
