"""The image of a pinned LMDB transaction.

It must not know who opened the environment or what is done with the image. What the file looks like
is `lmdb_file.py`'s, which bytes of it mean nothing is the page map's, in `_native/lmdb_pages.pxi`.

Plan: LMDB never overwrites a page that a live reader can reach, so a read transaction T pins all of
its pages in the data file. An image is the meta pages, made anew from T's, and the file's bytes from
page 2 to T's last page, with zeros where pages are free or partly unused: only so are the bytes the
same each time, and nothing deleted is among them. Pinning is a read transaction and a few system
calls; the walk for the free pages waits until the image is asked for.
"""

from __future__ import annotations

import logging
import mmap
import os
import threading
import warnings
from typing import TYPE_CHECKING

import lmdb

from snapstore._fastpipe import Image
from snapstore.errors import ForkedProcess, PipeClosed, SnapshotTemporarilyUnavailable
from snapstore.kv.lmdb_file import META_PAGES, META_SIZE_MAX, DataMeta
from snapstore.kv.lmdb_freelist import pages_waiting_for

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Self

    from snapstore.protocols import Writer

logger = logging.getLogger("snapstore")

#: A pin fails when a transaction was committed between its beginning and the read of the meta pages,
#: some microseconds. One attempt is the rule; this many in vain mean that something else is wrong.
PIN_ATTEMPTS_MAX = 100

#: A pin this old is worth a warning: 300 s carry 30 GB over a link of 1 Gbit/s, and meanwhile LMDB
#: reuses no page, so every write makes the data file longer.
PIN_WARN_AFTER_S = 300.0

#: Free pages in one piece this long are not even read; shorter ones are cheaper to read and clear.
HOLE_SIZE_MIN = 64 * 1024


class LmdbSnapshot:
    """An LMDB environment as of one read transaction: an `ImagedSnapshot`.

    Made by `LmdbKV.snapshot`. `size` is known at once; the image is the same bytes at every call and
    in every transfer. `close` may come from any thread; everything else but `txn` is thread-safe.
    """

    def __init__(
        self,
        env: lmdb.Environment,
        txn: lmdb.Transaction[bytes],
        meta: DataMeta,
        fd: int,
        monotonic: Callable[[], float],
    ) -> None:
        self._env = env
        self._txn: lmdb.Transaction[bytes] | None = txn
        self._meta = meta
        self._fd = fd
        self._monotonic = monotonic
        self._pinned_s = monotonic()
        self._pid = os.getpid()
        file_size = os.fstat(fd).st_size
        self._size = min(meta.size, file_size - file_size % meta.page_size)
        self._lock = threading.Lock()
        self._build_lock = threading.Lock()
        self._image: Image | None = None
        self._warned = False
        self._closed = False

    def __repr__(self) -> str:
        state = "closed" if self._closed else "pinned"
        return f"<LmdbSnapshot of transaction {self.txnid}, {self._size} bytes, {state}>"

    @property
    def size(self) -> int:
        """The length of the image in bytes."""
        return self._size

    @property
    def txnid(self) -> int:
        """The transaction that the snapshot stands at."""
        return self._meta.txnid

    @property
    def txn(self) -> lmdb.Transaction[bytes]:
        """The pinned read transaction, to look at its content; one thread at a time. Its end is for
        `close`, after which there is none (PipeClosed)."""
        txn = self._txn
        if txn is None:
            raise PipeClosed("the snapshot was closed")
        return txn

    @property
    def pages_held(self) -> int:
        """How many free pages LMDB keeps for the pin, and could use for the next write if it ended; 0 once
        closed. What a long pin costs, for operators; in units of the page size.

        Reads some pages of the freelist, in a short read transaction of its own; raises what `snapshot`
        does where there can be none, and SnapshotCorrupt for a damaged freelist.
        """
        if os.getpid() != self._pid:
            raise ForkedProcess("this LmdbSnapshot was taken before the fork; its pin belongs to the parent")
        with self._lock:
            if self._closed:
                return 0
            fd = os.dup(self._fd)
        try:
            size = META_PAGES * self._meta.page_size
            with mmap.mmap(fd, size, mmap.MAP_SHARED, mmap.PROT_READ) as metas:
                txn, meta = _begin_with_meta(self._env, metas)
            with txn:
                return pages_waiting_for(fd, meta, self.txnid)
        finally:
            os.close(fd)

    @property
    def bytes_held(self) -> int:
        """What `pages_held` is in bytes."""
        return self.pages_held * self._meta.page_size

    def image(self) -> Image:
        """Return the image; the same object at each call, closed by `close`. Keep the snapshot with it:
        one that is dropped is closed.

        The first call walks the freelist and the trees with overflow values, without the GIL: some
        milliseconds, or as long as it takes to read all leaf pages beside values that have pages of
        their own. Raises PipeClosed after `close` and SnapshotCorrupt for a damaged environment.
        """
        if os.getpid() != self._pid:
            raise ForkedProcess("this LmdbSnapshot was taken before the fork; its pin belongs to the parent")
        with self._build_lock:
            self._check_open()
            if self._image is None:
                self._image = self._build_image()
            return self._image

    def _build_image(self) -> Image:
        with self._lock:
            self._check_open()
            fd = os.dup(self._fd)
        try:
            page_map = self._meta.page_map(fd)
        except BaseException:
            os.close(fd)
            raise
        metas = self._meta.both_pages()
        patches: list[tuple[int, int, bytes | None]] = [(0, META_PAGES * self._meta.page_size, metas)]
        for offset, length in page_map.zero_runs(HOLE_SIZE_MIN):
            if offset < self._size:
                patches.append((offset, min(length, self._size - offset), None))
        image = Image(fd, self._size, patches=patches, page_map=page_map)
        try:
            # Where the pin went while the trees were walked, what was found there may be wrong.
            self._check_open()
        except PipeClosed:
            image.close()
            raise
        return image

    def _check_open(self) -> None:
        if self._closed:
            raise PipeClosed("the snapshot was closed")

    def write_to(self, writer: Writer, /) -> int:
        """Write the whole image, in order, and return its length in bytes.

        Meant for files and pipes of any kind; a stream uses the image itself.
        """
        return self.image().write_to(writer)

    def warn_if_long(self) -> None:
        """Log once when the pin is held and older than `PIN_WARN_AFTER_S`. What it costs may be unknown:
        that hinders neither its end nor the next pin."""
        age_s = self._monotonic() - self._pinned_s
        if self._warned or self._closed or age_s < PIN_WARN_AFTER_S:
            return
        self._warned = True
        try:
            cost = f"{self.pages_held} free pages could not be used meanwhile"
        except Exception as error:  # noqa: BLE001 - no reader slot, a damaged freelist, a closed environment.
            cost = f"what it costs cannot be told: {error}"
        logger.warning("LMDB transaction %d was pinned for %.0f s; %s", self.txnid, age_s, cost)

    def close(self) -> None:
        """Give the pin back. First the image is closed, so that nobody reads pages that change. Any
        thread, any moment, any number of times."""
        forked = os.getpid() != self._pid
        if not forked:
            self.warn_if_long()
        with self._lock:
            if self._closed:
                return
            self._closed = True
            image = self._image
            # py-lmdb keeps a reader's slot for as long as the transaction object lives.
            txn, self._txn = self._txn, None
        if image is not None:
            image.close()
        os.close(self._fd)
        # After a fork the reader's slot is the parent's, and so is the transaction.
        if txn is not None and not forked:
            txn.abort()

    def __del__(self) -> None:
        # `_closed` is set last in the constructor: one that failed there has nothing to close.
        if not getattr(self, "_closed", True) and os.getpid() == self._pid:
            warnings.warn(f"unclosed {self!r}", ResourceWarning, stacklevel=2, source=self)
            self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_args: object) -> None:
        self.close()


def pin(env: lmdb.Environment, fd: int, metas: mmap.mmap, monotonic: Callable[[], float]) -> LmdbSnapshot:
    """Read the meta pages and begin a read transaction of one; `fd` is the snapshot's from then on.

    `metas` maps the two meta pages. In this order, and from a mapping, for the sake of writers in this
    process that commit all the time: nothing lets go of the GIL between the read and the moment at
    which LMDB takes the reader's slot, while after it any number of commits may come before ours again.
    """
    _clear_dead_readers(env)
    txn, meta = _begin_with_meta(env, metas)
    try:
        return LmdbSnapshot(env, txn, meta, fd, monotonic)
    except BaseException:
        txn.abort()
        raise


def _begin_with_meta(env: lmdb.Environment, metas: mmap.mmap) -> tuple[lmdb.Transaction[bytes], DataMeta]:
    """Begin a read transaction whose meta page was read; SnapshotTemporarilyUnavailable where none can be."""
    for _attempt in range(PIN_ATTEMPTS_MAX):
        pages = _read_metas(metas)
        txn = _begin(env)
        try:
            meta = _meta_of(pages, txn.id())
            if meta is not None:
                return txn, meta
        except BaseException:
            txn.abort()
            raise
        txn.abort()
    raise SnapshotTemporarilyUnavailable(
        f"{PIN_ATTEMPTS_MAX} times a transaction was committed while one was being pinned; try again"
    )


def _clear_dead_readers(env: lmdb.Environment) -> None:
    """Readers that died with their process give up their slots."""
    cleared = env.reader_check()
    if cleared:
        logger.warning("%s had %d readers left by dead processes", env.path(), cleared)


def _begin(env: lmdb.Environment) -> lmdb.Transaction[bytes]:
    try:
        return env.begin()
    except lmdb.ReadersFullError as error:
        raise SnapshotTemporarilyUnavailable(
            f"all {env.max_readers()} reader slots of {env.path()} are taken, and reader_check found none"
            " of a dead process; end read transactions or open it with a larger max_readers"
        ) from error


def _read_metas(metas: mmap.mmap) -> list[bytes]:
    """Return the meta pages that were not being written meanwhile.

    LMDB writes the transaction's number last, so a page that is the same twice is that number's whole.
    """
    second = len(metas) // META_PAGES
    pages = metas[:META_SIZE_MAX], metas[second : second + META_SIZE_MAX]
    again = metas[:META_SIZE_MAX], metas[second : second + META_SIZE_MAX]
    return [page for page, same in zip(pages, again, strict=True) if page == same]


def _meta_of(pages: list[bytes], txnid: int) -> DataMeta | None:
    """Return the meta of transaction T if it is among `pages`, which were read before T was pinned.

    It may be the older one: T + 1 has written its page then, but is not committed yet. T's own page
    is written again by T + 2, which cannot have begun before T was the latest to be pinned.
    """
    return next((meta for page in pages if (meta := DataMeta.parse(page)).txnid == txnid), None)
