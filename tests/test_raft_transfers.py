"""What a leader sends: lent, sent, tried again, reported and given back, on a fake clock."""

from __future__ import annotations

import pytest

from raft_bench import MESSAGE, Bench
from snapstore.errors import (
    PeerRejected,
    PeerUnreachable,
    PipeClosed,
    SnapshotTemporarilyUnavailable,
)
from snapstore.raft.holds import LINGER_S
from snapstore.raft.transfers import CLEAR_UNSENT_AFTER_S
from snapstore.store import SnapshotStore, State


@pytest.fixture
def bench():
    with Bench() as bench:
        yield bench


def test_sent_snapshot_is_reported_and_given_back(bench):
    bench.send()
    assert bench.engine.reports == []
    bench.turn()
    assert bench.carrier.sent == [("http://2", 10, MESSAGE)]
    assert bench.engine.reports == [(2, True)]
    assert bench.store.state is State.EMPTY
    assert bench.kv.pinned == 0


def test_broken_line_is_tried_again_on_the_same_pin(bench):
    bench.carrier.failures = [PeerUnreachable("cut")] * 3
    bench.send()
    bench.turn()
    for delay_s in (0.5, 1.0, 2.0):
        assert bench.engine.reports == []
        bench.wait(delay_s - 0.01)
        sent = len(bench.carrier.sent)
        bench.wait(0.01)
        assert len(bench.carrier.sent) == sent + 1
    assert bench.engine.reports == [(2, True)]
    assert bench.kv.pins == 1


def test_retry_after_is_obeyed(bench):
    bench.carrier.failures = [PeerRejected(503, "busy", 20.0)]
    bench.send()
    bench.turn()
    bench.wait(20.0)
    assert len(bench.carrier.sent) == 1
    bench.wait(0.5)
    assert bench.engine.reports == [(2, True)]


def test_member_that_stays_away_is_reported_and_then_left_alone(bench):
    bench.carrier.failures = [PeerUnreachable("down")] * 8
    bench.send()
    bench.turn()
    for _ in range(7):
        bench.wait(15.0)
    assert bench.engine.reports == [(2, False)]
    with pytest.raises(SnapshotTemporarilyUnavailable, match="left alone for 15"):
        bench.exchange.snapshot(2)
    bench.wait(15.0)
    bench.send()
    bench.turn()
    assert bench.engine.reports == [(2, False), (2, True)]


@pytest.mark.parametrize(
    "error",
    [PeerRejected(412, "wrong cluster"), OSError("the KV failed"), ValueError("no URL"), SystemExit()],
    ids=repr,
)
def test_what_stays_as_it_is_is_not_tried_again(bench, error):
    bench.carrier.failures = [error]
    bench.send()
    bench.turn()
    assert len(bench.carrier.sent) == 1
    assert bench.engine.reports == [(2, False)]


def test_compaction_takes_a_snapshot_away_and_the_next_one_comes_at_once():
    with Bench(held_entries_max=100) as bench:
        bench.send()
        assert bench.exchange.compact_to(9) == 9
        assert bench.exchange.compact_to(109) == 9, "the follower will need 11"
        assert bench.exchange.compact_to(110) == 110, "not that much of the log"
        bench.carrier.failures = [PipeClosed("compacted")]
        bench.turn()
        assert bench.engine.reports == [(2, False)]
        bench.index = 111
        bench.send()
        bench.turn()
        assert bench.engine.reports == [(2, False), (2, True)]
        assert bench.kv.pinned == 0


def test_transfer_that_waits_ends_when_its_snapshot_is_compacted():
    with Bench(held_s_max=1.0) as bench:
        bench.carrier.failures = [PeerRejected(503, "busy", 60.0)]
        bench.send()
        bench.turn()
        bench.wait(1.0)
        assert bench.exchange.compact_to(10) == 10
        assert bench.engine.reports == [], "a Ready may be open"
        bench.exchange.run()
        assert bench.engine.reports == [(2, False)]
        assert bench.lend().index == 10


def test_message_that_does_not_come_gives_the_snapshot_back(bench):
    bench.lend()
    assert bench.exchange.snapshot(2).index == 10, "asked again, the engine gets the same"
    bench.wait(CLEAR_UNSENT_AFTER_S)
    assert bench.store.state is State.EMPTY
    assert bench.engine.reports == []


def test_each_lease_names_the_member_that_the_snapshot_is_for(bench):
    bench.lend(2)
    bench.exchange.snapshot(3)
    assert [lease.owner for lease in bench.store.leases()] == ["member 2", "member 3"]


def test_message_without_a_snapshot_is_reported_in_the_next_turn(bench, caplog):
    bench.exchange.send(2, 10, MESSAGE)
    assert bench.engine.reports == [], "its Ready is still open"
    bench.exchange.run()
    assert bench.engine.reports == [(2, False)]
    assert "has no snapshot" in caplog.text


def test_second_message_while_one_is_sent_is_reported_too(bench):
    bench.send()
    with pytest.raises(SnapshotTemporarilyUnavailable, match="not over yet"):
        bench.exchange.snapshot(2)
    bench.exchange.send(2, 10, MESSAGE)
    bench.exchange.run()
    bench.turn()
    assert bench.engine.reports == [(2, False), (2, True)]


def test_two_members_share_a_pin(bench):
    bench.send(2)
    bench.exchange.send(3, bench.exchange.snapshot(3).index, MESSAGE)
    bench.turn()
    assert bench.engine.reports == [(2, True), (3, True)]
    assert bench.kv.pins == 1


def test_older_snapshot_than_asked_for_is_no_answer(bench):
    bench.lend()
    with pytest.raises(SnapshotTemporarilyUnavailable, match="too old"):
        bench.exchange.snapshot(3, 11)
    bench.wait(CLEAR_UNSENT_AFTER_S)
    bench.index = 11
    bench.lend(3)


def test_snapshot_of_index_0_is_no_answer(bench):
    bench.index = 0
    with pytest.raises(SnapshotTemporarilyUnavailable, match="too old"):
        bench.lend()
    bench.clock.run_pending()
    assert bench.kv.pinned == 0


def test_any_error_of_the_store_is_later(bench, caplog):
    bench.store.close()
    with pytest.raises(SnapshotTemporarilyUnavailable, match="closed"):
        bench.exchange.snapshot(2)
    assert bench.exchange.compact_to(5) == 5
    bench.store = SnapshotStore(bench.slot, bench, clock=bench.clock)
    assert caplog.text.count("StoreClosed") >= 2


def test_message_of_another_snapshot_does_not_go_with_what_was_lent(bench):
    bench.lend()
    bench.exchange.send(2, 11, MESSAGE)
    bench.turn()
    bench.exchange.run()
    assert bench.carrier.sent == []
    assert bench.engine.reports == [(2, False)]
    assert bench.exchange.snapshot(2).index == 10, "the right message may still come"


def test_member_that_asks_for_more_gets_a_newer_snapshot(bench):
    bench.lend()
    bench.index = 11
    with pytest.raises(SnapshotTemporarilyUnavailable):
        bench.exchange.snapshot(2, 11)
    bench.clock.run_pending()
    assert bench.lend().index == 11
    bench.exchange.send(2, 10, MESSAGE)
    bench.exchange.send(2, 11, MESSAGE)
    bench.turn()
    assert bench.engine.reports == [(2, False), (2, True)], "one for each message"


def test_what_was_lent_and_compacted_is_not_lent_again():
    with Bench(held_entries_max=1) as bench:
        bench.lend()
        assert bench.exchange.compact_to(20) == 20
        bench.index = 20
        assert bench.lend().index == 20


def test_log_is_held_until_a_follower_had_time_to_go_on(bench):
    bench.send()
    bench.turn()
    assert bench.engine.reports == [(2, True)]
    assert bench.exchange.compact_to(20) == 9
    bench.wait(LINGER_S)
    assert bench.exchange.compact_to(20) == 20


def test_log_is_not_held_for_a_transfer_that_failed(bench):
    bench.carrier.failures = [PeerRejected(412, "wrong cluster")]
    bench.send()
    assert bench.exchange.compact_to(20) == 9
    bench.turn()
    assert bench.exchange.compact_to(20) == 20


def test_rafts_thread_starts_no_thread_and_closes_no_snapshot(bench):
    bench.send()
    assert bench.workers.tasks == []
    bench.clock.run_pending()
    bench.workers.run()
    bench.exchange.run()
    assert bench.engine.reports == [(2, True)]
    assert bench.kv.pinned == 1
    bench.clock.run_pending()
    assert bench.kv.pinned == 0


def test_timers_leave_everything_to_rafts_thread(bench):
    bench.lend()
    bench.clock.advance(CLEAR_UNSENT_AFTER_S)
    bench.clock.run_pending()
    assert bench.store.state is State.IN_USE
    bench.exchange.run()
    bench.clock.run_pending()
    assert bench.store.state is State.EMPTY
    bench.carrier.failures = [PeerUnreachable("cut")]
    bench.send()
    bench.turn()
    bench.clock.advance(0.5)
    bench.clock.run_pending()
    assert bench.workers.tasks == []
    bench.turn()
    bench.turn()
    assert bench.engine.reports == [(2, True)]
