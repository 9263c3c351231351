"""An LMDB data file on disk: its meta pages, and how another one is put into its place.

No environment, no transaction and no thread: bytes and names only. `kv/lmdb.py` stands above.

Plan: `DataMeta` reads and writes the meta pages of both data formats. `StagedRestore` takes a
snapshot's bytes into a temporary file beside the data file, checks them, and `commit` gives them
their name; until then nothing that a node can see has changed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import struct
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import lmdb

from snapstore._fastpipe import LmdbPageMap
from snapstore.disk import make_directories
from snapstore.errors import SnapshotBusy, SnapshotCorrupt, SnapshotTruncated
from snapstore.kv.copy_in import copy_in

if TYPE_CHECKING:
    from typing_extensions import Self

    from snapstore.protocols import Reader

#: `MDB_MAGIC` in mdb.c.
MAGIC = 0xBEEFC0DE

#: Data version -> size of a page header: LMDB 0.9 and LMDB 1.0. No release reads version 2.
HEADER_SIZES = {1: 16, 3: 24}

#: `P_META`: the kind of a meta page; 6 bytes before the end of a page's header.
META_FLAG = 0x08

#: Meta pages are pages 0 and 1; transaction T writes page T & 1.
META_PAGES = 2

#: `MDB_meta`: magic, version, map address, map size, the freelist's and the main DB's record, last
#: page, transaction. LMDB writes it in the byte order of the machine, and so it is read.
META = struct.Struct("=IIQQ48s48sQQ")

#: Enough of page 0 to learn everything about a file: the larger header and the meta.
META_SIZE_MAX = max(HEADER_SIZES.values()) + META.size

PAGE_SIZE_MIN = 256
PAGE_SIZE_MAX = 65536

#: Behind the name of the data file and of the lock file while a restore is under way.
STAGED_SUFFIX = ".restoring"


@dataclass(frozen=True, slots=True)
class DataMeta:
    """One meta page: where a transaction's trees begin and where the file ends. Sizes in bytes."""

    header: bytes
    version: int
    map_address: int
    map_size: int
    free_db: bytes
    main_db: bytes
    last_page: int
    txnid: int

    @classmethod
    def parse(cls, page: bytes) -> DataMeta:
        """Read a meta page, of which its first `META_SIZE_MAX` bytes are enough.

        Raises SnapshotCorrupt when it is none, or of a data format that no LMDB release reads.
        """
        for version, header_size in HEADER_SIZES.items():
            if len(page) < header_size + META.size:
                raise SnapshotTruncated(f"an LMDB meta page cannot have {len(page)} bytes")
            magic, found_version, *fields = META.unpack_from(page, header_size)
            (number,) = struct.unpack_from("=Q", page)
            (flags,) = struct.unpack_from("=H", page, header_size - 6)
            known = magic == MAGIC and found_version == version
            if known and number < META_PAGES and flags == META_FLAG:
                meta = cls(page[:header_size], version, *fields)
                meta._check()
                return meta
        raise SnapshotCorrupt("no meta page of LMDB data format 1 (LMDB 0.9) or 3 (LMDB 1.0) is here")

    def _check(self) -> None:
        size = self.page_size
        if size & (size - 1) or not PAGE_SIZE_MIN <= size <= PAGE_SIZE_MAX:
            raise SnapshotCorrupt(f"LMDB pages cannot have {size} bytes")
        if not 1 <= self.last_page < 2**47:
            raise SnapshotCorrupt(f"the last page of an LMDB data file cannot be {self.last_page}")

    @property
    def header_size(self) -> int:
        """Of every page: 16 in data format 1, 24 in 3."""
        return HEADER_SIZES[self.version]

    @property
    def page_size(self) -> int:
        """`mm_psize`, which lies in the padding of the freelist's record."""
        return int(struct.unpack_from("=I", self.free_db)[0])

    @property
    def size(self) -> int:
        """What the transaction's pages take; the file may be shorter when its last pages are free."""
        return (self.last_page + 1) * self.page_size

    def page(self, number: int) -> bytes:
        """Return this meta as meta page `number`, whole, with nothing else in it."""
        head = struct.pack("=Q", number) + self.header[8:]
        fields = (self.map_address, self.map_size, self.free_db, self.main_db, self.last_page, self.txnid)
        return (head + META.pack(MAGIC, self.version, *fields)).ljust(self.page_size, b"\0")

    def both_pages(self) -> bytes:
        """Return pages 0 and 1 of an image as of this transaction.

        Page T & 1 is T's. The other says the same of transaction T - 1, so that LMDB picks T's, and
        finds nothing else should it ever be told to take the one before.
        """
        before = replace(self, txnid=max(0, self.txnid - 1))
        pages = [before.page(number) for number in range(META_PAGES)]
        pages[self.txnid & 1] = self.page(self.txnid & 1)
        return b"".join(pages)

    def page_map(self, fd: int) -> LmdbPageMap:
        """Walk the trees of this meta in the file `fd`; see `LmdbPageMap`."""
        return LmdbPageMap(fd, self.page_size, self.header_size, self.free_db, self.main_db, self.last_page)


def check_data_file(fd: int, path: str) -> DataMeta:
    """Check that `fd`, opened from `path`, is a whole LMDB data file, and return its newer meta.

    Looks at the meta pages, the length, the freelist and the overflow values, and lets the installed
    LMDB open it. Raises SnapshotCorrupt or SnapshotTruncated.
    """
    size = os.fstat(fd).st_size
    first = DataMeta.parse(os.pread(fd, META_SIZE_MAX, 0))
    second = DataMeta.parse(os.pread(fd, META_SIZE_MAX, first.page_size))
    meta = max(first, second, key=lambda candidate: candidate.txnid)
    if second.page_size != first.page_size or second.version != first.version:
        raise SnapshotCorrupt("the two LMDB meta pages do not belong together")
    if size > meta.size:
        raise SnapshotCorrupt(f"{size - meta.size} bytes follow an LMDB data file of {meta.size}")
    try:
        zero_runs = meta.page_map(fd).zero_runs()
    except OSError as error:
        if error.errno == errno.EIO and size < meta.size:
            raise SnapshotTruncated(f"{size} of {meta.size} bytes are here") from None
        raise
    # LMDB itself leaves pages off the end that were taken and given back in one transaction.
    if size < meta.size and not any(
        offset <= size and offset + length == meta.size for offset, length in zero_runs
    ):
        raise SnapshotTruncated(f"{size} of {meta.size} bytes are here")
    try:
        lmdb.open(path, subdir=False, readonly=True, lock=False, create=False).close()
    except lmdb.Error as error:
        raise SnapshotCorrupt(f"the installed LMDB does not take it: {error}") from error
    return meta


class StagedRestore:
    """A checked snapshot, in a temporary file beside the data file that it is to replace.

    Constructing it copies `source` (a path, or an object with `read(size)`), checks the copy and
    makes it durable; `commit` puts it into place, `close` gives up what was not committed. One
    thread; one restore of a directory at a time, in all processes (SnapshotBusy otherwise). What a
    killed restore left behind is taken over by the next.

    Other processes that have the environment open go on with the old files, whole; that is why the
    lock file changes too: its reader table and its transaction number belong to the old data.
    """

    def __init__(
        self, source: str | os.PathLike[str] | Reader, data: str, lock: str | None, *, mode: int
    ) -> None:
        self._data = data
        self._lock = lock
        self._lock_fd = -1
        self._staged = data + STAGED_SUFFIX
        self._mode = mode
        self._directory_fd = os.open(os.path.dirname(data) or ".", os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(self._directory_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self.close()
            raise SnapshotBusy(f"another restore of {data} is under way") from error
        try:
            self.meta = self._stage(source)
        except BaseException:
            self._discard()
            self.close()
            raise

    def _stage(self, source: str | os.PathLike[str] | Reader) -> DataMeta:
        fd = self._create(self._staged)
        try:
            copy_in(source, fd)
            meta = check_data_file(fd, self._staged)
            os.fsync(fd)
        finally:
            os.close(fd)
        return meta

    def _create(self, path: str) -> int:
        """Create an empty file with the owner and mode of the data file: root may restore for a node."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, self._mode)
        with contextlib.suppress(FileNotFoundError):
            replaced = os.stat(self._data)
            os.fchmod(fd, stat.S_IMODE(replaced.st_mode))
            if (replaced.st_uid, replaced.st_gid) != (os.geteuid(), os.getegid()):
                os.fchown(fd, replaced.st_uid, replaced.st_gid)
        return fd

    def commit(self) -> None:
        """Put the staged file into place, and with it a fresh lock file, and make that durable.

        The environment must be closed in this process. A crash leaves the old or the new data file.
        The fresh lock file is held, as LMDB holds it while it sets one up, until `close`: whoever
        opens the environment meanwhile waits, instead of pairing the new locks with the old data.
        """
        if self._lock is not None:
            staged_lock = self._lock + STAGED_SUFFIX
            self._lock_fd = self._create(staged_lock)
            fcntl.lockf(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1)
            os.rename(staged_lock, self._lock)
        os.rename(self._staged, self._data)
        os.fsync(self._directory_fd)

    def take_lock_fd(self) -> int:
        """Hand the fresh lock file's descriptor over, or -1 without one.

        A process's locks on a file end with the first descriptor of it that is closed, so one who
        opens the environment in this process keeps this one until the environment is closed.
        """
        fd, self._lock_fd = self._lock_fd, -1
        return fd

    def _discard(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._staged)

    def close(self) -> None:
        """Let other restores and other openers go on. May come twice."""
        for fd in (self._lock_fd, self._directory_fd):
            if fd >= 0:
                os.close(fd)
        self._lock_fd = self._directory_fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_rest: object) -> None:
        if kind is not None:
            self._discard()
        self.close()


def data_and_lock(path: str, *, subdir: bool) -> tuple[str, str]:
    """Return the names of an environment's two files, as LMDB makes them."""
    if subdir:
        return os.path.join(path, "data.mdb"), os.path.join(path, "lock.mdb")
    return path, path + "-lock"


def restore_lmdb(
    source: str | os.PathLike[str] | Reader,
    path: str | os.PathLike[str],
    *,
    subdir: bool = True,
    mode: int = 0o644,
) -> DataMeta:
    """Replace the environment at `path`, which this process must not have open, by a snapshot's.

    `source` is a file's name or an object with `read(size)`; it is read to its end and checked
    before anything is changed. `subdir` as for `lmdb.open`; the directory is made if there is none.
    A crash leaves the old or the new environment, whole. Returns the meta that the new one has.

    Raises SnapshotCorrupt and SnapshotTruncated (nothing was changed), SnapshotBusy while another
    restore runs, and OSError. Afterwards open the environment as ever.
    """
    data, lock = data_and_lock(os.fspath(path), subdir=subdir)
    if subdir:
        make_directories(Path(data).parent, 0o777)
    with StagedRestore(source, data, lock, mode=mode) as staged:
        staged.commit()
        return staged.meta
