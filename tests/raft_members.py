"""Raft members for the tests of the exchange: a scripted node, its log, its KV and its loop."""

from __future__ import annotations

import json
import os
import threading

from nodes import WAIT_S
from snapstore import _fastpipe
from snapstore.capture import CaptureQueue
from snapstore.directory import SnapshotDir
from snapstore.meta import ConfState, SnapshotMeta
from snapstore.raft import Exchange, KvSlot
from snapstore.raft.rraft import Rraft
from snapstore.store import SnapshotStore
from snapstore.testing import scripted_node
from snapstore.testing.scripted_log import ScriptedLog
from snapstore.transport.http import SnapshotClient, SnapshotServer

CONF_STATE = ConfState((1,), (2,))

#: Makes a snapshot of several chunks, so that a transfer can be cut and go on.
PADDING = 3 * _fastpipe.CHUNK_SIZE_DEFAULT


class Crash(Exception):
    """The process of a member ended here."""


class ListKV:
    """The applied entries in their order; knows its applied index, and who has it pinned."""

    def __init__(self, applied=0, entries=(), *, padding=0):
        self.applied, self.entries, self.padding = applied, list(entries), padding
        self.pins = self.pinned = self.closed = 0

    @classmethod
    def read(cls, raw):
        applied, entries = json.loads(raw)
        return cls(applied, entries)

    def apply(self, index, data):
        assert not self.closed
        if index > self.applied:
            assert index == self.applied + 1, "entries were left out"
            self.applied = index
            self.entries.append(data.decode())

    def snapshot(self):
        assert not self.closed
        self.pins += 1
        self.pinned += 1
        return ListSnapshot(self)

    def close(self):
        assert not self.pinned, "closed while it is read"
        self.closed += 1
        assert self.closed == 1, "closed twice"


class ListSnapshot:
    def __init__(self, kv):
        self._kv = kv
        raw = json.dumps([kv.applied, kv.entries]).encode() + b" " * kv.padding
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


class RunningMember:
    """A member with a loop thread, a directory and a server of its own. `members` finds the others."""

    def __init__(self, member, path, members, *, clock, retry=None, padding=0, listens=True):
        self.id = member
        self._members = members
        self._lock = threading.Condition()
        self._calls = []
        self._ending = False
        self._clock, self._retry, self._padding = clock, retry, padding
        self.captures = CaptureQueue(wake=self.wake)
        self.urls = {}
        self.directory = SnapshotDir(path)
        self.client = SnapshotClient(connect_timeout_s=WAIT_S, idle_timeout_s=WAIT_S)
        self.failure = None
        self._made = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"member {member}")
        self._thread.start()
        assert self._made.wait(WAIT_S)
        self.server = None
        if listens:
            self.server = SnapshotServer(
                self.directory,
                "127.0.0.1:0",
                on_offer=self.member.exchange.on_offer,
                on_saved=self.member.exchange.on_saved,
            )
        members[member] = self

    def do(self, call):
        """Have `call` made by the loop, with the member."""
        with self._lock:
            self._calls.append(call)
            self._lock.notify_all()

    def wake(self):
        self.do(lambda member: None)

    def ask(self, call):
        """The result of `call`, made by the loop."""
        answers = []
        self.do(lambda member: answers.append(call(member)))
        self.until(lambda member: answers)
        return answers[0]

    def until(self, reached):
        """Wait until `reached(member)` is true after a turn; the loop looks."""
        with self._lock:
            assert self._lock.wait_for(lambda: self.failure or reached(self.member), WAIT_S), "in vain"
        assert self.failure is None, self.failure

    def _run(self):
        peers = [2] if self.id == 1 else [1]
        try:
            self.member = Member(
                self.id,
                peers,
                self.client,
                clock=self._clock,
                kv=ListKV(padding=self._padding),
                raft=self.captures,
                open_kv=lambda saved: ListKV.read(saved.path.read_bytes()),
                url_of=lambda to: self.urls[to],
                wake=self.wake,
                retry=self._retry,
            )
        finally:
            self._made.set()
        try:
            self._loop()
        except BaseException as error:
            self.failure = error
            raise
        finally:
            with self._lock:
                self._lock.notify_all()

    def _loop(self):
        while True:
            with self._lock:
                self._lock.wait_for(lambda: self._calls)
                calls, self._calls = self._calls, []
            for call in calls:
                call(self.member)
            if self._ending:
                self.member.close()
                return
            self.member.turn()
            if self.captures.pending:
                self.captures.serve(self.member.meta)
            outbox, self.member.outbox = self.member.outbox, []
            for to, raw in outbox:
                if to in self._members:
                    self._members[to].do(lambda member, raw=raw: member.take(raw))
            with self._lock:
                self._lock.notify_all()

    def close(self):
        self._ending = True
        self.wake()
        self._thread.join()
        self.captures.close()
        if self.server is not None:
            self.server.close()
        self.directory.close()
