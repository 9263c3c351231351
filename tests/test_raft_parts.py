"""The parts of the exchange, each for itself: holds, the inbox, the slot."""

from __future__ import annotations

import threading
import weakref

import pytest

from raft_members import ListKV
from snapstore.errors import StoreClosed
from snapstore.raft import KvSlot
from snapstore.raft.holds import LINGER_S, Holds
from snapstore.raft.inbox import Inbox
from snapstore.testing import FakeClock


def test_log_is_held_for_what_followers_will_need():
    clock = FakeClock()
    holds = Holds(clock.monotonic, linger_s=30.0, held_s_max=100.0, held_entries_max=50)
    assert holds.limit(20) == 20
    first, second = holds.hold(10), holds.hold(15)
    assert holds.limit(20) == 9
    assert holds.limit(5) == 5
    assert holds.limit(60) == 14, "the first has fallen too far behind"
    holds.release(first, finished=False)
    holds.release(second, finished=True)
    assert holds.limit(20) == 14
    clock.advance(30.0)
    assert holds.limit(20) == 20
    slow = holds.hold(1)
    assert holds.limit(20) == 0
    clock.advance(99.0)
    holds.release(slow, finished=True)
    assert holds.limit(20) == 0
    clock.advance(1.0)
    assert holds.limit(20) == 20


def test_holds_that_are_over_are_forgotten_where_nobody_compacts():
    clock = FakeClock()
    holds = Holds(clock.monotonic)
    over = holds.hold(10)
    holds.release(over, finished=True)
    clock.advance(LINGER_S)
    holds.hold(20)
    remembered = weakref.ref(over)
    del over
    assert remembered() is None


def test_inbox_belongs_to_one_thread_and_survives_what_it_runs(caplog):
    woken = []
    inbox = Inbox(lambda: woken.append(True))
    done = []
    inbox.post(lambda: 1 / 0)
    inbox.post(lambda: inbox.post(lambda: done.append(2)))
    assert inbox.pending
    assert inbox.run() == 2
    assert done == []
    assert inbox.run() == 1
    assert done == [2]
    assert len(woken) == 3
    assert "ZeroDivisionError" in caplog.text
    raised = []

    def run():
        try:
            inbox.run()
        except RuntimeError as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert len(raised) == 1


def test_inbox_whose_wake_fails_keeps_the_call(caplog):
    done = []
    inbox = Inbox(lambda: 1 / 0)
    inbox.post(lambda: done.append(1))
    inbox.run()
    assert done == [1]
    assert "waking the raft thread failed" in caplog.text


# The slot.


def test_old_kv_is_closed_by_its_last_reader():
    old, new = ListKV(), ListKV()
    slot = KvSlot(old)
    snapshot = slot.snapshot()
    with slot.reading() as kv:
        assert kv is old
        slot.swap(new)
        with slot.reading() as kv:
            assert kv is new
        assert not old.closed
        snapshot.close()
        snapshot.close()
        assert not old.closed
    assert old.closed
    pin = slot.snapshot()
    slot.close()
    slot.close()
    assert not new.closed
    pin.close()
    assert new.closed
    for use in (slot.snapshot, lambda: slot.swap(old), slot.reading().__enter__):
        with pytest.raises(StoreClosed):
            use()


def test_kv_that_cannot_be_pinned_or_closed_is_given_back_all_the_same(caplog):
    class Failing:
        def snapshot(self):
            raise OSError("no reader slot")

        def close(self):
            raise OSError("no disk")

    slot = KvSlot(Failing())
    with pytest.raises(OSError, match="no reader slot"):
        slot.snapshot()
    slot.swap(ListKV())
    assert "no disk" in caplog.text
    slot.close()
