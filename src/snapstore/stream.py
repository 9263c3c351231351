"""A snapshot on its way out: its meta, then its bytes, in order, once.

It must not know where the bytes go (no sockets, no transports) nor who decides that a snapshot
exists (no store).

Plan: the bytes come from one of two places that have the same face here. Where the snapshot has an
`Image`, they are read from it at a cursor, without a thread or a copy. Where it can only be written
out, a pump thread writes it into a pipe, and they are read from there. Either begins with the first
read. A stream is open until it has a reason not to be; the first reason wins.
"""

from __future__ import annotations

import os
import threading
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING

from snapstore import _fastpipe
from snapstore.errors import ForkedProcess, PipeClosed
from snapstore.meta import SnapshotMeta, to_meta

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

    from typing_extensions import Buffer, Self

    from snapstore._fastpipe import Chunk, Image, PipeReader, PipeWriter, Progress
    from snapstore.lease import Lease
    from snapstore.protocols import Snapshot


class SnapshotStream:
    """The bytes of one snapshot, for one receiver.

    It owns `kv_snapshot` and closes it, once, when it is closed itself; use it as a context manager.
    One thread at a time may read; `close` may come from any thread, and ends a read under way.
    Reading a closed stream raises the reason it was closed for: the error given to `close`, or
    `PipeClosed`. What the KV raises while it writes its snapshot out comes out of the read.

    A stream that is dropped unclosed emits a ResourceWarning and closes; where its snapshot has a
    `lease`, the warning says who took it and where. That happens in a finalizer, so at any moment in any
    thread: a snapshot whose `close` takes locks may offer `close_later()`, which is called instead and
    must take none.

    In a forked child reading raises `ForkedProcess`, and closing does nothing: all is the parent's.
    """

    def __init__(self, meta: SnapshotMeta | int, kv_snapshot: Snapshot) -> None:
        self._meta = to_meta(meta)
        self._snapshot = kv_snapshot
        self._size = kv_snapshot.size
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._reader: _ImageReader | PipeReader | None = None
        self._reason: Exception | None = None
        self._transfers: list[Progress] = []
        self._released = False

    @property
    def meta(self) -> SnapshotMeta:
        """The applied entry that the snapshot stands at."""
        return self._meta

    @property
    def size(self) -> int | None:
        """Its length in bytes, or None where only reading to the end tells."""
        return self._size

    @property
    def closed(self) -> bool:
        """Whether reading has ended for good: closed, or revoked."""
        return self._reason is not None

    @property
    def reason(self) -> Exception | None:
        """Why it was closed, or None while it is open."""
        return self._reason

    @property
    def source(self) -> Image | PipeReader:
        """What the C core reads from, for transports: an `Image`, or a `PipeReader`.

        An Image is read from the offset the transport wants, and may be shared with other streams
        of the same snapshot: reading it does not move this stream, and closing this stream does not
        end it while another one is open. A PipeReader is this stream's own; asking for it starts
        the pump. When reading it fails, `reason` tells whether the stream was closed meanwhile.
        """
        with self._reading() as reader:
            return reader.image if isinstance(reader, _ImageReader) else reader

    @property
    def rereadable(self) -> bool:
        """Whether `source` can be read from its beginning more than once."""
        return isinstance(self.source, _fastpipe.Image)

    @contextmanager
    def watched(self, progress: Progress | None = None) -> Iterator[Progress]:
        """Lend a `Progress` to a transfer of `source`, the one given or a new one, for a `with` block.

        It is cancelled when the stream is closed meanwhile: a target that takes nothing, or an image
        that others still read, would keep the transfer going.
        """
        watched = progress if progress is not None else _fastpipe.Progress()
        with self._lock:
            self._transfers.append(watched)
            if self._reason is not None:
                watched.cancel()
        try:
            yield watched
        finally:
            with self._lock:
                self._transfers.remove(watched)

    def chunks(self) -> Iterator[Chunk | memoryview]:
        """Yield the rest in order, as read-only buffers of `CHUNK_SIZE_DEFAULT` bytes at most.

        Give each back, by `with chunk:` or `chunk.release()` or by dropping it, when the next one is
        there: a pipe has few slots, and its writer waits for them.
        """
        while True:
            with self._reading() as reader:
                chunk = reader.read_chunk()
            if chunk is None:
                return
            yield chunk
            del chunk  # Its slot is wanted for the next one.

    def readinto(self, buffer: Buffer) -> int:
        """Put what comes next into `buffer`; return how many bytes, at least 1, or 0 at the end."""
        with self._reading() as reader:
            return reader.readinto(buffer)

    def copy_to_fd(self, fd: int) -> int:
        """Write the rest into the descriptor `fd`, without the GIL; return how many bytes it had.

        After an OSError the position is unknown; close the stream and begin with another one.
        """
        with self._reading() as reader, self.watched() as progress:
            return reader.copy_to_fd(fd, progress)

    def close(self, error: BaseException | None = None) -> None:
        """Be done with it, for the reason `error`; the snapshot is closed. May come twice."""
        if self._pid == os.getpid():
            self._end(error, self._snapshot.close)

    def revoke(self, error: BaseException) -> None:
        """Take it away from its reader: as `close`, but the snapshot is not closed.

        For whoever lent the snapshot. The holder still has to close the stream: only then is the
        snapshot's `close` called.
        """
        if self._pid == os.getpid():
            self._end(error, None)

    def _end(self, error: BaseException | None, close_snapshot: Callable[[], None] | None) -> None:
        with self._lock:
            if self._reason is None:
                self._reason = self._reason_for(error)
            reason, reader = self._reason, self._reader
            for transfer in self._transfers:
                transfer.cancel()
            owed = close_snapshot if not self._released else None
            self._released = self._released or owed is not None
        try:
            if reader is not None:
                reader.close(reason)
        finally:
            if owed is not None:
                owed()

    def _reason_for(self, error: BaseException | None) -> Exception:
        if isinstance(error, Exception):
            return error
        # A Ctrl-C or a GeneratorExit of the thread that closed is no error of the thread that reads.
        reason = PipeClosed(f"the stream of snapshot {self._meta.index} was closed")
        reason.__cause__ = error
        return reason

    @contextmanager
    def _reading(self) -> Iterator[_ImageReader | PipeReader]:
        """Lend the reader; when it fails because the stream was closed, raise the reason instead."""
        if self._pid != os.getpid():
            raise ForkedProcess("this SnapshotStream was made before a fork; read it in the parent")
        try:
            yield self._open_reader()
        except Exception as error:
            if self._reason is None or self._reason is error:
                raise
            raise self._reason from error

    def _open_reader(self) -> _ImageReader | PipeReader:
        if self._reason is not None:
            raise self._reason
        return self._start() if self._reader is None else self._reader

    def _start(self) -> _ImageReader | PipeReader:
        image = getattr(self._snapshot, "image", None)
        if image is not None:
            return self._keep(_ImageReader(image()))
        reader, writer = _fastpipe.pipe()
        kept = self._keep(reader)
        if kept is reader:
            # The pump does not know the stream, so that one which nobody holds can go, and end it.
            pump = threading.Thread(
                target=_pump, args=(self._snapshot, writer), name="snapstore-pump", daemon=True
            )
            pump.start()
        return kept

    def _keep(self, reader: _ImageReader | PipeReader) -> _ImageReader | PipeReader:
        with self._lock:
            if self._reason is not None:
                raise self._reason
            if self._reader is None:
                self._reader = reader
            return self._reader

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(error)

    def __del__(self) -> None:
        # `_released` is set last in the constructor: one that failed there has nothing to close.
        if getattr(self, "_released", True) or self._pid != os.getpid():
            return
        try:
            lease: Lease | None = getattr(self._snapshot, "lease", None)
            holder = "" if lease is None else f", held by {lease.holder}"
            warnings.warn(f"unclosed {self!r}{holder}", ResourceWarning, stacklevel=2, source=self)
        finally:
            self._end(None, getattr(self._snapshot, "close_later", self._snapshot.close))

    def __repr__(self) -> str:
        state = "open" if self._reason is None else f"closed: {self._reason!r}"
        return f"<SnapshotStream index={self._meta.index} size={self._size} {state}>"


class _ImageReader:
    """An image read from its start to its end: a `PipeReader`'s face over random access."""

    __slots__ = ("_position", "image")

    def __init__(self, image: Image) -> None:
        self.image = image
        self._position = 0

    def readinto(self, buffer: Buffer) -> int:
        count = self.image.readinto(buffer, self._position)
        self._position += count
        return count

    def read_chunk(self) -> memoryview | None:
        size = min(self.image.size - self._position, _fastpipe.CHUNK_SIZE_DEFAULT)
        chunk = memoryview(bytearray(size))
        count = self.readinto(chunk)
        return chunk[:count].toreadonly() if count else None

    def copy_to_fd(self, fd: int, progress: Progress) -> int:
        count = _fastpipe.send(self.image, fd, offset=self._position, progress=progress)
        self._position += count
        return count

    def close(self, error: BaseException | None) -> None:
        """Nothing: the image is the snapshot's, and other streams may be reading it."""


def _pump(snapshot: Snapshot, writer: PipeWriter) -> None:
    try:
        snapshot.write_to(writer)
    except BaseException as error:  # noqa: BLE001 - whatever it was, the reader has to hear of it.
        writer.close(error)
    else:
        writer.close()
