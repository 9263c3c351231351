"""An exchange with nothing but fakes around it, for tests that move it step by step."""

from __future__ import annotations

import pytest

from raft_carrier import FakeWorkers
from raft_members import ListKV
from snapstore.errors import SnapshotTemporarilyUnavailable
from snapstore.manifest import Manifest
from snapstore.meta import SnapshotMeta
from snapstore.raft import Exchange, KvSlot, RetryPolicy
from snapstore.store import SnapshotStore, State
from snapstore.stored import SavedSnapshot
from snapstore.testing import FakeClock
from snapstore.wire import Offer

MESSAGE = b"the engine's message"


def saved_at(index):
    meta = SnapshotMeta(index, 1)
    return SavedSnapshot(index, None, 1, Manifest(meta, 1, 0, 4096, b""))


def offer_of(index, message=MESSAGE):
    return Offer(SnapshotMeta(index, 1), 1, 4096, message=message)


class FakeEngine:
    """Notes what it is told. `refusal` is raised by the next step."""

    def __init__(self):
        self.reports, self.steps, self.refusal = [], [], None

    def report_snapshot(self, to, *, finished):
        self.reports.append((to, finished))

    def step_snapshot(self, message, meta):
        if self.refusal is not None:
            raise self.refusal
        self.steps.append((message, meta.index))


class FakeCarrier:
    """Fails with each of `failures` in turn, then with what reading raises; notes what it was given."""

    def __init__(self):
        self.failures, self.sent, self.raised = [], [], []

    def send_snapshot(self, url, stream, *, progress, message):
        self.sent.append((url, stream.meta.index, message))
        try:
            if self.failures:
                raise self.failures.pop(0)
            stream.readinto(bytearray(1))
        except BaseException as error:
            self.raised.append(error)
            raise


class Bench:
    """An exchange with nothing but fakes around it, and a real store; `index` is what the node applied."""

    def __init__(self, clock=None, **options):
        self.clock = clock or FakeClock()
        self.engine, self.carrier, self.workers = FakeEngine(), FakeCarrier(), FakeWorkers()
        self.index = 10
        self.kv = ListKV()
        self.opened = []
        self.slot = KvSlot(self.kv)
        self.store = SnapshotStore(self.slot, self, clock=self.clock, streams_max=3)
        options.setdefault("retry", RetryPolicy(random=lambda: 1.0, monotonic=self.clock.monotonic))
        self.exchange = Exchange(
            self.store,
            self.engine,
            self.carrier,
            self.slot,
            url_of="http://{}".format,
            open_kv=self.open_kv,
            clock=self.clock,
            **({"workers": self.workers} | options),
        )

    def open_kv(self, saved):
        self.opened.append(ListKV(saved.index))
        return self.opened[-1]

    def capture(self, take):
        return SnapshotMeta(self.index, 1), take()

    def lend(self, to=2):
        """What the engine's storage gets once a snapshot is there."""
        with pytest.raises(SnapshotTemporarilyUnavailable):
            self.exchange.snapshot(to)
        self.clock.run_pending()
        return self.exchange.snapshot(to)

    def send(self, to=2):
        meta = self.lend(to)
        self.exchange.send(to, meta.index, MESSAGE)

    def turn(self):
        self.clock.run_pending()
        self.workers.run()
        self.exchange.run()
        self.clock.run_pending()

    def wait(self, seconds):
        self.clock.advance(seconds)
        self.exchange.run()
        self.turn()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.exchange.close()
        self.clock.run_pending()
        assert self.store.state is not State.IN_USE, "a snapshot was not given back"
