"""A node for the kill test, a process of its own: each entry of its log leaves marks that can be audited.

`python -m pysyncobj_member SETUP CLIENT ACKS`: CLIENT is a name that no process had before, ACKS the
directory where each client notes, out of reach of what is removed, which of its writes were acknowledged.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import random
import struct
import sys
from pathlib import Path

from pysyncobj import FAIL_REASON, replicated

from snapstore._fastpipe import Throttle
from snapstore.cli.demo_child import Parent
from snapstore.cli.raft_demo_dumps import Setup, open_dumps
from snapstore.cli.raft_demo_node import Node
from snapstore.cli.raft_demo_store import DemoStore

#: Blocks that are overwritten, for a store whose pages change all over: 4 MiB in all.
BLOCKS, BLOCK_SIZE = 1024, 4000

#: Writes of one client under way at once, and after how many turns of the loop one is given up: its
#: answer was lost with a leader.
WINDOW, GIVEN_UP_TURNS = 8, 200

#: Elections and messages as quick as PySyncObj is stable with on a busy machine.
QUICK = {
    "appendEntriesPeriod": 0.03,
    "raftMinTimeout": 0.3,
    "raftMaxTimeout": 0.7,
    "connectionRetryTime": 0.1,
    "logCompactionMinEntries": 600,
}

NUMBER = struct.Struct("<Q")
OP = b"op/"


class AuditedStore(DemoStore):
    """Counts how often each write was applied, and chains all of them in their order."""

    @replicated
    def mark(self, client: str, number: int):
        op = b"%s%s/%d" % (OP, client.encode(), number)
        draw = random.Random(op)
        with self._dumps.kv.reading() as kv, kv.env.begin(write=True) as txn:
            txn.put(op, NUMBER.pack(times(txn, op) + 1))
            txn.put(b"sum", NUMBER.pack(times(txn, b"sum") + 1))
            txn.put(b"chain", hashlib.sha256(txn.get(b"chain", b"") + op).digest())
            txn.put(b"block/%d" % draw.randrange(BLOCKS), draw.randbytes(BLOCK_SIZE))


def times(txn, key):
    return NUMBER.unpack(txn.get(key, NUMBER.pack(0)))[0]


class Member(Node):
    """Writes as long as it is told to, and audits what it has."""

    def __init__(self, parent, dumps, store, throttle, client, acks):
        self._client = client
        self._acks = Path(acks)
        self._own_acks = os.open(self._acks / client, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        self._writing = True
        self._number = self._turn = 0
        self._under_way = {}
        super().__init__(parent, dumps, store, throttle)

    def _on_tick(self):
        super()._on_tick()
        self._turn += 1
        self._under_way = {
            n: turn for n, turn in self._under_way.items() if turn > self._turn - GIVEN_UP_TURNS
        }
        if self._writing and len(self._under_way) < WINDOW:
            self._mark(lambda: None)

    def _mark(self, on_success):
        number = self._number = self._number + 1
        self._under_way[number] = self._turn

        def on_result(_result, failure):
            self._under_way.pop(number, None)
            if failure == FAIL_REASON.SUCCESS:
                os.write(self._own_acks, NUMBER.pack(number))
                on_success()

        self._store.mark(self._client, number, callback=on_result)

    def turns(self, count):
        """Tell when the loop has turned so many times."""
        until = self._turn + count
        self._expect(lambda: self._turn >= until, "turns")

    def force(self):
        """Compact the log in the next turn of the loop, and do not wait for it."""
        self._store.forceLogCompaction()
        return {}

    def quiet(self):
        """Write no more; what is under way goes on."""
        self._writing = False
        return {}

    def write(self):
        self._writing = True
        return {}

    def barrier(self):
        """Have one more write committed, behind all that this member sent before; tells when it is applied.

        Tried again for as long as it takes: a leader that goes takes it along.
        """
        passed, tried = [], []

        def is_passed():
            if not tried or tried[-1] < self._turn - GIVEN_UP_TURNS:
                tried.append(self._turn)
                self._mark(lambda: passed.append(True))
            return bool(passed)

        self._expect(is_passed, "barrier")

    def audit(self):
        """Compare the store with all acknowledgements there ever were, of any client."""
        acked = set()
        for file in self._acks.iterdir():
            acked |= {
                b"%s%s/%d" % (OP, file.name.encode(), n) for (n,) in NUMBER.iter_unpack(file.read_bytes())
            }
        with self._dumps.kv.reading() as kv, kv.env.begin() as txn:
            entries = kv.env.stat()["entries"]
            applied = {key: NUMBER.unpack(value)[0] for key, value in txn.cursor() if key.startswith(OP)}
            total = times(txn, b"sum")
        return {
            "acked": len(acked),
            "applied": len(applied),
            "entries": entries,
            "sum": total,
            "lost": sorted(op.decode() for op in acked - applied.keys()),
            "twice": sorted(op.decode() for op, count in applied.items() if count != 1),
        }


def main(setup, client, acks):
    logging.basicConfig(level=logging.INFO, format=f"{client} %(asctime)s %(levelname)s %(message)s")
    parent = Parent()
    throttle = Throttle()
    with open_dumps(setup, throttle) as dumps:
        Member(parent, dumps, AuditedStore(setup, dumps, **QUICK), throttle, client, acks).serve()


if __name__ == "__main__":
    main(Setup(**json.loads(sys.argv[1])), *sys.argv[2:])
