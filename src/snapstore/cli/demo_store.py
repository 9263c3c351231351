"""The demo's key-value store: filled, written to by an apply loop, and digested.

A real LMDB environment of the shape that nodes have: many small accounts, fewer large documents. It
knows nothing of transports and of the demo's other processes.
"""

from __future__ import annotations

import hashlib
import os
import random
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import lmdb

from snapstore.capture import CaptureQueue
from snapstore.meta import SnapshotMeta

if TYPE_CHECKING:
    from typing_extensions import Self

#: Two named databases, beside what the main one has: the names of these two.
ACCOUNTS, DOCUMENTS = b"accounts", b"documents"
DATABASES = (ACCOUNTS, DOCUMENTS)

#: Sizes of values in bytes. Documents fill 4, 16 or 64 pages but for the page's header.
ACCOUNT_SIZE_MIN, ACCOUNT_SIZE_MAX = 100, 1000
DOCUMENT_SIZES = tuple(pages * 4096 - 32 for pages in (4, 16, 64))

#: Bytes put in by one transaction of the fill: few enough to leave the process's memory small.
FILL_STEP_SIZE = 4 * 1024 * 1024

#: The share of the bytes that are accounts: the rest are documents.
_ACCOUNTS_SHARE = 0.25

#: The same noise each time: it neither compresses nor surprises.
_NOISE = random.Random(2015).randbytes(2 * max(DOCUMENT_SIZES))

#: One applied entry overwrites so many accounts, inserts one and deletes one.
_OVERWRITES = 3

#: Every so many entries a document is overwritten, too.
_DOCUMENT_EVERY = 16

_KEY = struct.Struct(">Q")
_LENGTHS = struct.Struct("<QQ")

#: Entries between two reports of a digest: some hundred a second.
_REPORT_EVERY = 2048


def open_store(path: str, size: int, *, durable: bool = True) -> lmdb.Environment:
    """Open the environment for a store of `size` bytes; it may grow while old pages are pinned."""
    map_size = 4 * size + 1024**3
    return lmdb.open(path, map_size=map_size, max_dbs=len(DATABASES), sync=durable, metasync=durable)


def fill(path: str, size: int, report: Callable[[int], None]) -> int:
    """Make an environment of about `size` bytes; its size. `report(bytes)` is told how far it is."""
    os.mkdir(path)
    draw = random.Random(size)
    accounts = documents = done = 0
    # Without fsyncs: one at the end is enough for what nobody needs after a power cut.
    with open_store(path, size, durable=False) as env:
        databases = {name: env.open_db(name) for name in DATABASES}
        while done < size:
            step = min(FILL_STEP_SIZE, size - done)
            with env.begin(write=True) as txn:
                entries = list(_entries(accounts, int(step * _ACCOUNTS_SHARE), draw, account_value))
                txn.cursor(databases[ACCOUNTS]).putmulti(entries, append=True)
                accounts += len(entries)
                entries = list(_entries(documents, step - int(step * _ACCOUNTS_SHARE), draw, document_value))
                txn.cursor(databases[DOCUMENTS]).putmulti(entries, append=True)
                documents += len(entries)
            done = (env.info()["last_pgno"] + 1) * env.stat()["psize"]
            report(min(done, size))
        env.sync(True)
    return done


def _entries(
    first: int, size: int, draw: random.Random, value: Callable[[random.Random], bytes]
) -> Iterator[tuple[bytes, bytes]]:
    number, done = first, 0
    while done < size:
        entry = _KEY.pack(number), value(draw)
        yield entry
        number += 1
        done += len(entry[1])


def account_value(draw: random.Random) -> bytes:
    """Return some hundred bytes."""
    return _noise(draw, draw.randint(ACCOUNT_SIZE_MIN, ACCOUNT_SIZE_MAX))


def document_value(draw: random.Random) -> bytes:
    """Return some pages of bytes."""
    return _noise(draw, draw.choice(DOCUMENT_SIZES))


def _noise(draw: random.Random, size: int) -> bytes:
    start = draw.randrange(len(_NOISE) - size)
    return _NOISE[start : start + size]


class ApplyLoop:
    """A raft node's apply loop: a thread that applies one entry after the other, durably.

    Each entry is a transaction with its own fsync. Between two entries waiting captures are served.
    """

    def __init__(self, env: lmdb.Environment, captures: CaptureQueue) -> None:
        self.applied = 0  #: The index of the last applied entry: as many were committed.
        self._env = env
        self._captures = captures
        self._error: BaseException | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="demo-apply", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._apply_all()
        except Exception as error:  # noqa: BLE001 - raised where somebody waits for it, in `check`.
            self._error = error
        finally:
            self._captures.close()

    def _apply_all(self) -> None:
        draw = random.Random(1)
        accounts, documents = (self._env.open_db(name) for name in DATABASES)
        with self._env.begin() as txn:
            account_count, document_count = txn.stat(accounts)["entries"], txn.stat(documents)["entries"]
        while not self._over.is_set():
            index = self.applied + 1
            with self._env.begin(write=True, db=accounts) as txn:
                for _ in range(_OVERWRITES):
                    # Those below the index were deleted by earlier entries, one each.
                    number = draw.randrange(index, index + account_count - 1)
                    txn.put(_KEY.pack(number), account_value(draw))
                txn.put(_KEY.pack(account_count + index - 1), account_value(draw))
                txn.delete(_KEY.pack(index - 1))
                if index % _DOCUMENT_EVERY == 0:
                    number = draw.randrange(document_count)
                    txn.put(_KEY.pack(number), document_value(draw), db=documents)
            self.applied = index
            if self._captures.pending:
                self._captures.serve(SnapshotMeta(index, term=1))

    def check(self) -> None:
        """Raise what ended the loop before its time, if anything did."""
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        """End it after the entry that is being applied, and raise what `check` raises. May come twice."""
        self._end()
        self.check()

    def _end(self) -> None:
        self._over.set()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        # The environment must not be closed under a transaction, whatever went wrong meanwhile.
        self._end()


@dataclass(frozen=True, slots=True)
class Content:
    """What a store holds: how many keys, how many bytes of keys and values, and the SHA-256 of all."""

    keys: int
    size: int
    digest: str


def content_of(
    env: lmdb.Environment,
    txn: lmdb.Transaction[bytes],
    report: Callable[[int], None],
    databases: Sequence[bytes] = DATABASES,
) -> Content:
    """Digest every key and value of the main database and of `databases`, in order, as `txn` sees them.

    Each with its length. The main database's own records of the named ones are in it. `report(bytes)` is
    told how far it is.
    """
    digest = hashlib.sha256()
    keys = size = 0
    for database in (None, *(env.open_db(name, txn=txn, create=False) for name in databases)):
        for key, value in txn.cursor(database):
            digest.update(b"".join((_LENGTHS.pack(len(key), len(value)), key, value)))
            keys += 1
            size += len(key) + len(value)
            if keys % _REPORT_EVERY == 0:
                report(size)
    report(size)
    return Content(keys, size, f"sha256:{digest.hexdigest()}")
