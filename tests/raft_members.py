"""Raft members for the tests of the exchange: a scripted node, its log, its KV and its turn."""

from __future__ import annotations

import json
import os

from snapstore import _fastpipe
from snapstore.meta import ConfState, SnapshotMeta
from snapstore.raft import Exchange, KvSlot
from snapstore.raft.rraft import Rraft
from snapstore.store import SnapshotStore
from snapstore.testing import scripted_node
from snapstore.testing.scripted_log import ScriptedLog

CONF_STATE = ConfState((1,), (2,))


class Crash(Exception):
    """The process of a member ended here."""


class Misuse(BaseException):
    """A KV was used after its end, or ended while it was used. What goes on after errors lets it pass."""


class ListKV:
    """The applied entries in their order; knows its applied index, and who has it pinned."""

    def __init__(self, applied=0, entries=()):
        self.applied, self.entries = applied, list(entries)
        self.pins = self.pinned = self.closed = 0

    @classmethod
    def read(cls, raw):
        applied, entries = json.loads(raw)
        return cls(applied, entries)

    def apply(self, index, data):
        self._check(not self.closed, "applied to after its end")
        if index > self.applied:
            self._check(index == self.applied + 1, "entries were left out")
            self.applied = index
            self.entries.append(data.decode())

    def snapshot(self):
        self._check(not self.closed, "pinned after its end")
        self.pins += 1
        self.pinned += 1
        return ListSnapshot(self)

    def close(self):
        self._check(not self.pinned, "closed while it is read")
        self.closed += 1
        self._check(self.closed == 1, "closed twice")

    def _check(self, right, what):
        if not right:
            raise Misuse(what)


class ListSnapshot:
    def __init__(self, kv):
        self._kv = kv
        raw = json.dumps([kv.applied, kv.entries]).encode()
        fd = os.memfd_create("list")
        os.pwrite(fd, raw, 0)
        self.size = len(raw)
        self._image = _fastpipe.Image(fd, self.size)
        self._closed = False

    def image(self):
        return self._image

    def write_to(self, writer):
        return self._image.write_to(writer)

    def close(self):
        if not self._closed:
            self._closed = True
            self._kv.pinned -= 1
        self._image.close()


class Member:
    """One node, driven turn by turn by whoever calls `turn`. `outbox` is what its transport would send.

    `options` are the exchange's. `log` and `kv` of an earlier life make it go on there.
    """

    def __init__(
        self, member, peers, carrier, *, clock, log=None, kv=None, engine=None, raft=None, **options
    ):
        self.id = member
        self.outbox = []
        self.reports = []
        self.crashes_at_install = False
        self.slot = KvSlot(kv or ListKV())
        self.rraft = Rraft(scripted_node)
        self.log = log or ScriptedLog(None)
        self.log.snapshot = self.rraft.snapshot
        self.node = scripted_node.RawNode(member, self.log, peers=peers)
        self.store = SnapshotStore(self.slot, raft or self, clock=clock)
        self.exchange = Exchange(self.store, engine or self, carrier, self.slot, clock=clock, **options)
        self.rraft.attach(self.node, self.exchange)

    @property
    def kv(self):
        with self.slot.reading() as kv:
            return kv

    @property
    def meta(self):
        """What the KV stands at."""
        return SnapshotMeta(self.kv.applied, self.log.term(self.kv.applied), CONF_STATE)

    def capture(self, take):
        return self.meta, take()

    def report_snapshot(self, to, *, finished):
        self.reports.append((to, finished))
        self.rraft.report_snapshot(to, finished=finished)

    def step_snapshot(self, message, meta):
        self.rraft.step_snapshot(message, meta)

    def turn(self):
        self.exchange.run()
        while self.node.has_ready():
            self._handle(self.node.ready())

    def _handle(self, ready):
        self.rraft.send(ready.take_messages(), self._send)
        if self.rraft.install(ready):
            if self.crashes_at_install:
                raise Crash
            self.log.apply_snapshot(ready.snapshot())
        self.log.append(ready.entries())
        for entry in ready.take_committed_entries():
            self.kv.apply(entry.get_index(), entry.get_data())
        self.rraft.send(ready.take_persisted_messages(), self._send)
        self.node.advance(ready)

    def _send(self, to, raw):
        self.outbox.append((to, raw))

    def take(self, raw):
        self.node.step(scripted_node.Message.decode(raw))

    def compact(self, index):
        index = self.exchange.compact_to(min(index, self.kv.applied))
        self.log.compact(index)
        return index

    def close(self):
        self.exchange.close()
        self.store.close()
        self.slot.close()
