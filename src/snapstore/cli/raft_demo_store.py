"""The raft demo's replicated store: PySyncObj on LMDB, filled and written to by entries of its log.

It must not know how snapshots are made: that is its `dumps`, one of `raft_demo_dumps.py`.
"""

from __future__ import annotations

import itertools
import os
import random
import struct
import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from snapstore.cli.demo_store import account_value, document_value
from snapstore.errors import MissingExtra

try:
    from pysyncobj import FAIL_REASON, SyncObj, SyncObjConf, replicated
except ImportError as error:
    raise MissingExtra("the raft demo needs PySyncObj: pip install 'snapstore[raft]'") from error

if TYPE_CHECKING:
    from snapstore.cli.raft_demo_dumps import Setup
    from snapstore.kv.lmdb import LmdbKV
    from snapstore.raft.slot import KvSlot

#: How long a turn of the raft loop waits for messages, at most; the measured stalls are as exact.
TICK_PERIOD_S = 0.01

#: A node that comes back is spoken to again after so long; PySyncObj's own 5 s would be all of the time
#: that is measured.
CONNECTION_RETRY_S = 0.3

#: More entries than a demo has, and longer than one takes: logs are compacted when it says so.
_NEVER = 2**31

#: What one entry of the fill writes on each node: some milliseconds of its tick thread.
FILL_STEP_SIZE = 1024 * 1024

#: Entries of the fill under way at once: all of them may be applied in one turn of the loop, which must
#: stay shorter than the shortest election timeout (0.4 s).
FILL_WINDOW = 8

#: Writes under way at once. One batch leaves the leader every 0.1 s, so some hundred a second come of it.
WRITE_WINDOW = 100

#: The written keys: so many that most writes hit a page of their own.
WRITTEN_KEYS = 20_000

#: One entry of a fill in so many is a document, which gives them most of the bytes.
_DOCUMENT_EVERY = 200

_KEY = struct.Struct(">cQQ")


class Dumps(Protocol):
    """What a store asks of its snapshots: the face of `TicketDumps`."""

    kv: KvSlot[LmdbKV]

    @property
    def hooks(self) -> dict[str, Any]:
        """Settings for SyncObjConf."""

    def attach(self, store: Any) -> None:
        """See the store that has these hooks."""


class DemoStore(SyncObj):  # type: ignore[misc]
    """The replicated store. Its replicated methods run on the tick thread of every node, once an entry.

    With `fsync_log` each turn of the loop ends with an fsync of the log, as of nodes that promise to keep it.
    """

    def __init__(self, setup: Setup, dumps: Dumps, **settings: Any) -> None:
        self._dumps = dumps
        conf = {
            "bindAddress": setup.address,
            "journalFile": os.path.join(setup.directory, "journal"),
            "autoTickPeriod": TICK_PERIOD_S,
            "connectionRetryTime": CONNECTION_RETRY_S,
            "logCompactionMinEntries": _NEVER,
            "logCompactionMinTime": _NEVER,
        }
        conf = SyncObjConf(**{**conf, **settings, **dumps.hooks})
        super().__init__(setup.address, setup.partners, conf, transportClass=setup.transport_class)
        if setup.fsync_log:
            # PySyncObj writes to a mapped file and leaves the rest to the kernel; it has no setting for more.
            self.addOnTickCallback(partial(os.fsync, os.open(conf.journalFile, os.O_RDONLY | os.O_CLOEXEC)))
        dumps.attach(self)

    @replicated  # type: ignore[untyped-decorator]
    def fill(self, step: int, size: int) -> None:
        """Write about `size` bytes of noise, the same on every node: a small entry, a lot of store."""
        draw = random.Random(step)
        with self._dumps.kv.reading() as kv, kv.env.begin(write=True) as txn:
            done = 0
            for number in itertools.count():
                value = document_value(draw) if number % _DOCUMENT_EVERY == 0 else account_value(draw)
                txn.put(_KEY.pack(b"f", step, number), value)
                done += len(value)
                if done >= size:
                    break

    @replicated  # type: ignore[untyped-decorator]
    def write(self, key: bytes, value: bytes) -> None:
        """Put one key: what a client does."""
        with self._dumps.kv.reading() as kv, kv.env.begin(write=True) as txn:
            txn.put(key, value)

    @property
    def log_start(self) -> int:
        """An index at or before the first entry of this node's log."""
        return int(self.raftCommitIndex) - int(self._getRaftLogSize()) + 1


class Flow:
    """Commands submitted one after the other, a window of them under way at once.

    `submit(callback)` sends one. Those that fail, as all do when a leader goes, are followed by the next,
    too: the flow ends when it is told to. The callbacks come on the tick thread.
    """

    def __init__(self, window: int, submit: Callable[[Callable[..., None]], None]) -> None:
        self.commits = 0  #: How many succeeded.
        self._submit = submit
        self._lock = threading.Lock()
        self._running = True
        self._under_way = window
        self._at_rest = threading.Event()
        for _ in range(window):
            submit(self._on_result)

    def _on_result(self, _result: object, failure: int) -> None:
        with self._lock:
            self.commits += failure == FAIL_REASON.SUCCESS
            self._under_way -= not self._running
            goes_on, at_rest = self._running, self._under_way == 0
        if goes_on:
            self._submit(self._on_result)
        elif at_rest:
            self._at_rest.set()

    def rest(self, timeout_s: float) -> bool:
        """Submit no more, and wait until what is under way has come back; whether all of it did."""
        with self._lock:
            self._running = False
        return self._at_rest.wait(timeout_s)


def fill(store: DemoStore, steps: int, report: Callable[[int], None]) -> None:
    """Fill the store by so many entries of the log, and wait until all are committed here."""
    # One that failed may have been applied all the same, which does no harm: it writes the same again.
    left, lock, over = deque(range(steps)), threading.Lock(), threading.Event()
    done = 0

    def submit() -> None:
        with lock:
            step = left.popleft() if left else None
        if step is not None:
            store.fill(step, FILL_STEP_SIZE, callback=lambda _result, failure: on_result(step, failure))

    def on_result(step: int, failure: int) -> None:
        nonlocal done
        with lock:
            if failure == FAIL_REASON.SUCCESS:
                done += 1
            else:
                left.append(step)
        report(done * FILL_STEP_SIZE)
        if done == steps:
            over.set()
        submit()

    for _ in range(FILL_WINDOW):
        submit()
    over.wait()


def writes(store: DemoStore) -> Flow:
    """Begin a flow of clients' writes: accounts, overwritten in an order that is the same each time."""
    draw = random.Random(1)

    def submit(callback: Callable[..., None]) -> None:
        key = _KEY.pack(b"w", 0, draw.randrange(WRITTEN_KEYS))
        store.write(key, account_value(draw), callback=callback)

    return Flow(WRITE_WINDOW, submit)
