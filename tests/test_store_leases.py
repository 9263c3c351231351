"""Leases of what a store lends: a forgotten stream is reported, and revoked where that was asked for."""

from __future__ import annotations

import contextlib
import inspect
import math
import os
import sqlite3

import pytest

from exposition import parse
from nodes import META
from snapstore import _fastpipe
from snapstore.directory import SnapshotDir
from snapstore.errors import (
    ForkedProcess,
    LeaseExpired,
    PipeClosed,
    SnapshotNotInUse,
    SnapshotTemporarilyUnavailable,
)
from snapstore.kv.lmdb import LmdbKV
from snapstore.kv.sqlite import SqliteKV
from snapstore.lease import PIN_TTL_S
from snapstore.store import SnapshotStore, State
from snapstore.testing import FakeClock
from snapstore.transfers import TransferRegistry
from snapstore.transport.scrape import leases_list, metrics_page

CONTENT = os.urandom(10_000)

#: What the KV below says that its pin costs.
COST = 4096


class Snapshot:
    """Stands in a file in memory; counts how often it is closed."""

    def __init__(self):
        fd = os.memfd_create("snapshot")
        os.write(fd, CONTENT)
        self._image = _fastpipe.Image(fd, len(CONTENT))
        self.size = len(CONTENT)
        self.closed = 0

    @property
    def bytes_held(self):
        return 0 if self.closed else COST

    def image(self):
        return self._image

    def write_to(self, writer):
        return self._image.write_to(writer)

    def close(self):
        self._image.close()
        self.closed += 1


class WrittenSnapshot:
    """Written out only, and says nothing of its cost."""

    size = len(CONTENT)
    closed = 0

    def write_to(self, writer):
        writer.write(CONTENT)
        return len(CONTENT)

    def close(self):
        self.closed += 1


class Node:
    """A KV and its raft; all snapshots are `kind`s."""

    def __init__(self, kind=Snapshot):
        self.kind = kind
        self.snapshots = []

    def snapshot(self):
        self.snapshots.append(self.kind())
        return self.snapshots[-1]

    def capture(self, take):
        return META, take()


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def node():
    return Node()


@pytest.fixture
def store(node, clock):
    with SnapshotStore(node, node, clock=clock, streams_max=2) as store:
        yield created(store, clock)


def created(store, clock):
    with pytest.raises(SnapshotTemporarilyUnavailable):
        store.get_snap()
    clock.run_pending()
    return store


def lines(caplog):
    return [record.getMessage() for record in caplog.records if "forgotten?" in record.getMessage()]


def read(stream):
    return b"".join(bytes(memoryview(chunk)) for chunk in stream.chunks())


def test_a_lease_tells_who_holds_the_pin_and_what_it_costs(store, clock):
    assert store.leases() == []  # The store has it, but has lent it to nobody.
    with store.get_snap(owner="node 3") as stream:
        line = inspect.currentframe().f_lineno - 1
        clock.advance(7.0)
        with store.get_snap(ttl_s=10):
            mine, other = store.leases()
            assert mine.to_json() == {
                "kind": "pin",
                "index": META.index,
                "owner": "node 3",
                "taken_at": f"{__file__}:{line} in {inspect.currentframe().f_code.co_name}",
                "age_s": 7.0,
                "left_s": PIN_TTL_S - 7.0,
                "overdue": False,
                "bytes_held": COST,
            }
            assert (other.owner, other.left_s) == ("MainThread", 10.0)
        assert store.leases() == [mine]
        assert read(stream) == CONTENT
    assert store.leases() == []


def test_a_forgotten_pin_is_reported_once_with_its_holder_and_cost_and_stays(store, node, clock, caplog):
    with store.get_snap(owner="node 3") as stream:
        line = inspect.currentframe().f_lineno - 1
        clock.advance(PIN_TTL_S - 0.5)
        assert lines(caplog) == []
        clock.advance(0.5)
        (told,) = lines(caplog)
        assert f"snapshot {META.index} (pin) held for {PIN_TTL_S:.0f} s, at a cost of {COST} bytes" in told
        assert f"by 'node 3', taken at {__file__}:{line} in" in told
        assert told.endswith("it pins the KV until its stream is closed")
        clock.advance(10 * PIN_TTL_S)
        assert len(lines(caplog)) == 1
        assert [lease.overdue for lease in store.leases()] == [True]
        assert read(stream) == CONTENT
    assert node.snapshots[0].closed == 1


@pytest.mark.parametrize("kind", [Snapshot, WrittenSnapshot])
def test_what_was_lent_for_a_time_is_revoked_at_its_end(clock, kind, caplog):
    node = Node(kind)
    with SnapshotStore(node, node, clock=clock) as store:
        stream = created(store, clock).get_snap(ttl_s=60)
        first = stream.readinto(bytearray(10))
        clock.advance(60)
        assert (first, store.state, node.snapshots[0].closed, store.leases()) == (10, State.EMPTY, 1, [])
        with pytest.raises(LeaseExpired, match="lent for 60 s"):
            stream.readinto(bytearray(10))
        assert issubclass(LeaseExpired, PipeClosed)
        (told,) = lines(caplog)
        assert told.endswith("it is revoked")
        assert (f"cost of {COST} bytes" in told) == (kind is Snapshot)
        # As after a compaction: its holder still owes it, and a late release hits nobody else.
        with created(store, clock).get_snap() as newer:
            store.clear_used_snap()
            assert read(newer) == CONTENT
        assert [snapshot.closed for snapshot in node.snapshots] == [1, 1]
        with pytest.raises(SnapshotNotInUse):
            store.clear_used_snap()


def test_a_transfer_under_way_hears_that_it_was_revoked(store, clock):
    stream = store.get_snap(ttl_s=1)
    with stream.watched() as progress:
        clock.advance(1)
        assert progress.cancelled
    stream.close()


def test_one_that_is_revoked_leaves_the_others_their_pin_and_makes_room(store, node, clock):
    revoked = store.get_snap(ttl_s=1)
    with store.get_snap() as other:
        with pytest.raises(SnapshotTemporarilyUnavailable, match="in use"):
            store.get_snap()
        clock.advance(1)
        assert (revoked.closed, store.state, node.snapshots[0].closed) == (True, State.IN_USE, 0)
        with store.get_snap() as third:
            assert read(other) == read(third) == CONTENT
            revoked.close()
            assert store.state is State.IN_USE
    assert (store.state, node.snapshots[0].closed) == (State.EMPTY, 1)


def test_one_that_is_given_back_in_time_is_neither_reported_nor_revoked(store, clock, caplog):
    store.get_snap(ttl_s=60).close()
    clock.advance(PIN_TTL_S)
    with created(store, clock).get_snap(ttl_s=60) as stream:
        store.close_snap_before(META.index)
        clock.advance(60)
        assert "compacted" in str(stream.reason)
    assert lines(caplog) == []


def test_a_stream_given_back_leaves_nothing_that_waits_for_its_time(store, clock):
    """Else a store that lends often would keep each of its streams' pins alive for an hour."""
    stream = store.get_snap()
    (share,) = store._shares.holding(store._pin)
    stream.close()
    assert share.timer._call is None


@pytest.mark.parametrize("ttl_s", [0, -1.0, math.nan])
def test_a_time_that_is_none_is_refused_and_changes_nothing(node, clock, ttl_s):
    with SnapshotStore(node, node, clock=clock) as store:
        for state in (State.EMPTY, State.READY):
            with pytest.raises(ValueError, match="ttl_s"):
                store.get_snap(ttl_s=ttl_s)
            assert store.state is state
            created(store, clock) if state is State.EMPTY else store.get_snap().close()


def test_a_clock_that_takes_no_timer_leaves_the_snapshot_ready(store, clock, monkeypatch):
    def refuse(_delay_s, _call):
        raise RuntimeError("this clock was closed")

    with monkeypatch.context() as patch:
        patch.setattr(clock, "call_later", refuse)
        with pytest.raises(RuntimeError, match="clock was closed"):
            store.get_snap()
    assert store.state is State.READY
    store.get_snap().close()


def test_a_dropped_stream_names_its_holder(store, clock):
    stream = store.get_snap(owner="node 3")
    line = inspect.currentframe().f_lineno - 1
    with pytest.warns(ResourceWarning, match=f"held by 'node 3', taken at {__file__}:{line} in "):
        del stream
    clock.run_pending()
    assert store.leases() == []


def test_a_kv_that_cannot_say_its_cost_is_no_hindrance(clock, caplog):
    class Silent(Snapshot):
        @property
        def bytes_held(self):
            raise OSError("no idea")

    node = Node(Silent)
    with SnapshotStore(node, node, clock=clock) as store, created(store, clock).get_snap():
        assert store.leases()[0].bytes_held is None
        assert store.registry.pinned_bytes == 0
    assert "what its pin costs" in caplog.text


def write_lmdb(kv):
    for _ in range(3):
        with kv.env.begin(write=True) as txn:
            txn.put(b"key", bytes(40_000))


def write_sqlite(kv):
    with contextlib.closing(sqlite3.connect(kv.path)) as node, node:
        node.execute("INSERT INTO t VALUES (zeroblob(80000))")


@contextlib.contextmanager
def make_sqlite(path):
    with contextlib.closing(sqlite3.connect(path)) as node:
        node.execute("PRAGMA journal_mode=WAL")
        node.execute("CREATE TABLE t (content)")  # What is in the WAL already is not the pin's cost.
        yield SqliteKV(path)


@pytest.mark.parametrize(
    ("make", "write"), [(LmdbKV, write_lmdb), (make_sqlite, write_sqlite)], ids=["lmdb", "sqlite"]
)
def test_a_real_kv_tells_what_its_pin_costs(tmp_path, clock, make, write):
    with (
        make(tmp_path / "kv") as kv,
        SnapshotStore(kv, Node(), clock=clock) as store,
        created(store, clock).get_snap(),
    ):
        (lease,) = store.leases()
        assert lease.bytes_held == 0
        write(kv)
        assert 40_000 <= lease.bytes_held == store.registry.pinned_bytes < 400_000
        store.clear_used_snap()
        assert (lease.bytes_held, store.registry.pinned_bytes) == (0, 0)


def test_a_forked_child_has_no_leases(store):
    with store.get_snap():
        child = os.fork()
        if child == 0:
            try:
                store.leases()
            except ForkedProcess:
                os._exit(7)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_operators_see_pins_and_stored_snapshots_together(node, clock, tmp_path):
    now_s, registry = [0.0], TransferRegistry()
    with (
        SnapshotDir(tmp_path, monotonic=lambda: now_s[0]) as directory,
        SnapshotStore(node, node, clock=clock, registry=registry, streams_max=2) as store,
    ):
        directory.save_from(CONTENT, 5)
        created(store, clock)
        with store.get_snap(), store.get_snap(), directory.open(5, owner="applier", ttl_s=1):
            now_s[0] = 2.0
            samples = {
                (name, *dict(labels).values()): it
                for (name, labels), it in parse(metrics_page(directory, registry)).items()
            }
            assert samples["snapstore_pinned_bytes",] == COST  # Two streams of one pin.
            assert [samples["snapstore_leases", kind] for kind in ("stored", "pin")] == [1, 2]
            assert [samples["snapstore_leases_overdue", kind] for kind in ("stored", "pin")] == [1, 0]
            told = leases_list(directory, registry).decode()
            assert told.count('"kind": "pin"') + told.count('"kind":"pin"') == 2
            assert "applier" in told
        assert registry.leases() == []
        assert registry.pinned_bytes == 0
