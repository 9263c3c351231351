"""The walk for nodes that live in an event loop: the blocking calls, awaited.

Each call runs on a thread of the package's own, with the caller's context variables: the loop's own
executor stays free for the node, and nobody's `getaddrinfo` stands in line behind a gigabyte. What is
done there is http_client.py's and directory.py's; here is only how a task waits for it, and how it
stops it.

To cancel the awaiting task cancels the transfer, and the task ends when its thread has let go of all it
held, not before: nothing goes on behind the caller's back. That takes 100 ms for bytes on their way, as
long as the disk takes for an fsync that has begun, `Deadlines.connect_timeout_s` for a peer that cannot
be reached, and for a source that is a Python reader as long as its `read`.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import os
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from snapstore import _fastpipe

if TYPE_CHECKING:
    from snapstore._fastpipe import Image, Progress
    from snapstore.directory import SnapshotDir
    from snapstore.meta import SnapshotMeta
    from snapstore.stored import SavedSnapshot, StoredSnapshot
    from snapstore.stream import SnapshotStream
    from snapstore.transport.answers import SentSnapshot
    from snapstore.transport.http import SnapshotClient

T = TypeVar("T")

#: Calls at once in a process; later ones wait for a thread, in their order. A leader has a handful of
#: followers, and a transfer beyond these would only take the others' share of disk and network.
THREADS_MAX = 32


class AsyncClient:
    """A `SnapshotClient` whose calls are awaited. For any task of any loop, several at once.

    `progress` counts as it does there; to cancel the task cancels it.
    """

    def __init__(self, client: SnapshotClient) -> None:
        self._client = client

    async def send_snapshot(
        self,
        url: str,
        stream: SnapshotStream,
        *,
        chunk_size: int = _fastpipe.CHUNK_SIZE_DEFAULT,
        progress: Progress | None = None,
        message: bytes = b"",
        urgent: bool = True,
    ) -> SentSnapshot:
        """Send `stream`, as `SnapshotClient.send_snapshot`; it stays open, whatever happened."""

        def send(client: SnapshotClient, watched: Progress) -> SentSnapshot:
            return client.send_snapshot(
                url, stream, chunk_size=chunk_size, progress=watched, message=message, urgent=urgent
            )

        return await self._call(send, progress)

    async def fetch(
        self,
        url: str,
        index: int,
        directory: SnapshotDir,
        *,
        digest: str | None = None,
        progress: Progress | None = None,
        urgent: bool = True,
    ) -> SavedSnapshot:
        """Fetch a snapshot, as `SnapshotClient.fetch`; what came before a cancellation is kept."""

        def fetch(client: SnapshotClient, watched: Progress) -> SavedSnapshot:
            return client.fetch(url, index, directory, digest=digest, progress=watched, urgent=urgent)

        return await self._call(fetch, progress)

    async def send_etcd(
        self,
        url: str,
        source: StoredSnapshot | SnapshotStream,
        message: Any,
        *,
        progress: Progress | None = None,
        **options: Any,
    ) -> None:
        """Send a database to an etcd member, as `SnapshotClient.send_etcd`, which has the `options`."""

        def send(client: SnapshotClient, watched: Progress) -> None:
            client.send_etcd(url, source, message, progress=watched, **options)

        await self._call(send, progress)

    async def list(self, url: str) -> list[dict[str, Any]]:
        """Return what the peer has stored, as `SnapshotClient.list`."""
        return await self._call(lambda client, watched: client.list(url, progress=watched), None)

    async def _call(self, call: Callable[[SnapshotClient, Progress], T], progress: Progress | None) -> T:
        # A thread that waits for a peer's word looks at no progress: its line is cut as well.
        from snapstore.transport.severance import Severance

        severance, watched = Severance(), progress or _fastpipe.Progress()

        def cancel() -> None:
            watched.cancel()  # First, or a broken line would be a reason to try again.
            severance.sever()

        return await _awaited(partial(call, self._client.severed_by(severance), watched), cancel)


async def save_from(
    directory: SnapshotDir,
    source: object,
    meta_or_index: SnapshotMeta | int | Callable[[Image], SnapshotMeta | int],
    *,
    progress: Progress | None = None,
    **options: Any,
) -> SavedSnapshot:
    """Save all of `source` for good, as `SnapshotDir.save_from`, which has the `options`.

    Where the task is cancelled there is nothing of the snapshot, unless its last fsync had begun: then it
    is saved, and a second attempt raises SnapshotExists.
    """
    watched = progress or _fastpipe.Progress()
    save = partial(directory.save_from, source, meta_or_index, progress=watched, **options)
    return await _awaited(save, watched.cancel)


@contextlib.asynccontextmanager
async def opened(
    directory: SnapshotDir, index: int, *, verify: bool = True, progress: Progress | None = None
) -> AsyncIterator[StoredSnapshot]:
    """Open a snapshot for an `async with` block, as `SnapshotDir.open`: verified, and leased meanwhile."""
    watched = progress or _fastpipe.Progress()
    opening = partial(directory.open, index, verify=verify, progress=watched)
    with await _awaited(opening, watched.cancel, undo=lambda stored: stored.close()) as stored:
        yield stored


class _Threads:
    """At most `THREADS_MAX` threads, each of which ends when nothing waits. From any thread."""

    def __init__(self) -> None:
        self.forget()
        os.register_at_fork(after_in_child=self.forget)

    def forget(self) -> None:
        """Be as new: in a forked child there are no threads but the one that forked."""
        self._lock = threading.Lock()
        self._waiting: deque[Callable[[], None]] = deque()
        self._count = 0

    def run(self, task: Callable[[], None]) -> None:
        """Run `task`, which raises nothing, on one of them. Never blocks.

        RuntimeError where there is no thread and none can be had: `withdraw` the task then.
        """
        with self._lock:
            self._waiting.append(task)
            if self._count == THREADS_MAX:
                return
            self._count += 1
        try:
            threading.Thread(target=self._work, name="snapstore-aio", daemon=True).start()
        except Exception:  # Not Ctrl-C: then there is a thread, and `start` waited for its first word.
            with self._lock:
                self._count -= 1
                if self._count:
                    return  # One of the others will come to it.
            raise

    def withdraw(self, task: Callable[[], None]) -> bool:
        """Take back a task that no thread has begun; False where one has."""
        with self._lock:
            if task not in self._waiting:
                return False
            self._waiting.remove(task)
            return True

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._count -= 1
                    return
                task = self._waiting.popleft()
            task()
            del task  # What it holds is the caller's.


_THREADS = _Threads()


class _Call(Generic[T]):
    """One blocking call, and what came of it. Made in the loop, run in a thread, looked at in the loop."""

    def __init__(self, work: Callable[[], T], undo: Callable[[T], object] | None) -> None:
        self._loop = asyncio.get_running_loop()
        self._context = contextvars.copy_context()
        self._work = work
        self._undo = undo
        self._done = asyncio.Event()
        self._results: list[T] = []
        self._error: BaseException | None = None
        self._abandoned = False

    def run(self) -> None:
        try:
            self._results.append(self._context.run(self._work))
        except BaseException as error:  # noqa: BLE001 - whatever it was, the task has to hear of it.
            self._error = error
        try:
            self._loop.call_soon_threadsafe(self._end)
        except RuntimeError:  # The loop was closed, without a look at its tasks.
            self._drop()

    def _end(self) -> None:
        self._done.set()
        if self._abandoned:
            self._drop()

    async def done(self) -> None:
        await self._done.wait()

    async def let_go(self) -> None:
        """Wait for the thread, through any number of further cancellations."""
        while not self._done.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await self._done.wait()

    def result(self) -> T:
        """Return or raise what the call did; once."""
        try:
            if self._error is not None:
                raise self._error
            return self._results.pop()
        finally:
            self._error = None  # Its traceback holds this frame.

    def abandon(self) -> None:
        """Let nobody have the result, now or when there is one: it is undone."""
        self._abandoned = True
        if self._done.is_set():
            self._drop()

    def _drop(self) -> None:
        while self._results:
            result = self._results.pop()
            if self._undo is not None:
                self._undo(result)


async def _awaited(
    work: Callable[[], T], cancel: Callable[[], None], undo: Callable[[T], object] | None = None
) -> T:
    """Return or raise what `work` does on a thread. When the task is cancelled, `cancel` has to end it."""
    call = _Call(work, undo)
    try:
        _THREADS.run(call.run)
        await call.done()
    except BaseException as error:
        if not _THREADS.withdraw(call.run):
            cancel()
            # A coroutine that is closed cannot wait.
            if isinstance(error, asyncio.CancelledError):
                await call.let_go()
            call.abandon()
        raise
    return call.result()
