"""How the exchange ends, and what is left of it where a thread, a clock or the engine fails it.

Whatever it is: each snapshot that was sent is reported on, each pin given back, no saver's thread waits on.
"""

from __future__ import annotations

import contextlib
import random

import pytest

from nodes import nothing_lost as losing_nothing
from nodes import wait_until
from raft_bench import MESSAGE, Bench, offer_of, saved_at
from snapstore.clock import SystemClock
from snapstore.errors import PeerRejected, PeerUnreachable, SnapshotTemporarilyUnavailable, StoreClosed
from snapstore.raft import Exchange, RetryPolicy
from snapstore.raft.workers import SendThreads
from snapstore.store import CLEAR_UNUSED_AFTER_S
from snapstore.testing.scripted_node import NodePanic


@pytest.fixture
def bench():
    with Bench() as bench:
        yield bench


def gone(*args):
    raise RuntimeError("it was closed before")


def panic(*args, **options):
    raise NodePanic("the engine ends here")


@pytest.mark.parametrize("begun", [False, True])
def test_closing_ends_what_is_under_way(bench, begun):
    bench.send()
    bench.carrier.failures = [PeerUnreachable("cut")]
    if begun:
        bench.turn()  # It waits for its next attempt.
    bench.exchange.close()
    assert bench.engine.reports == [(2, False)]
    bench.exchange.close()
    bench.wait(60.0)
    assert bench.engine.reports == [(2, False)]
    assert bench.kv.pinned == 0
    with pytest.raises(SnapshotTemporarilyUnavailable, match="closed"):
        bench.exchange.snapshot(2)


def test_closing_takes_the_snapshot_away_from_who_sends_it(bench):
    bench.send()
    bench.clock.run_pending()
    bench.exchange.close()
    bench.workers.run()
    assert [type(error) for error in bench.carrier.raised] == [StoreClosed]


@pytest.mark.parametrize("seed", range(20))
def test_closing_among_threads_that_send(nothing_lost, seed):
    """Real threads and a real clock: however far each of them is, its message is reported on, once."""
    chance = random.Random(seed)
    with SystemClock() as clock:
        bench = Bench(clock, workers=SendThreads(), retry=RetryPolicy(delay_s_first=1e-4, delay_s_max=1e-3))
        bench.carrier.failures = [PeerUnreachable("cut") for _ in range(chance.randrange(20))]
        sent = []

        def turn():
            bench.exchange.run()
            for to in (2, 3, 4):
                with contextlib.suppress(SnapshotTemporarilyUnavailable):
                    bench.exchange.send(to, bench.exchange.snapshot(to).index, MESSAGE)
                    sent.append(to)
            return len(sent)

        sent_max = chance.randrange(1, 40)
        wait_until(lambda: turn() >= sent_max)
        bench.exchange.close()
        bench.store.close()
        assert sorted(to for to, _ in bench.engine.reports) == sorted(sent)
        wait_until(lambda: not bench.kv.pinned)


def test_own_clock_ends_with_the_exchange(bench):
    with losing_nothing():
        with Exchange(
            bench.store, bench.engine, bench.carrier, bench.slot, url_of=str, open_kv=bench.open_kv
        ) as exchange:
            assert exchange.run() == 0
        exchange.close()


def test_workers_that_are_gone_end_in_a_report(bench):
    bench.workers.submit = gone
    bench.send()
    bench.turn()
    assert bench.engine.reports == [(2, False)]


def test_clock_that_is_gone_before_a_snapshot_is_lent(bench):
    with pytest.raises(SnapshotTemporarilyUnavailable):
        bench.exchange.snapshot(2)
    bench.clock.run_pending()
    bench.clock.call_later = gone
    with pytest.raises(SnapshotTemporarilyUnavailable, match="closed before"):
        bench.exchange.snapshot(2)
    bench.wait(CLEAR_UNUSED_AFTER_S)  # What nobody could be lent is given up as unused.
    assert bench.kv.pinned == 0


def test_clock_that_is_gone_before_the_next_attempt(bench):
    bench.send()
    bench.carrier.failures = [PeerUnreachable("cut")]
    bench.clock.call_later = gone
    bench.turn()
    assert bench.engine.reports == [(2, False)]
    assert bench.kv.pinned == 0


def test_clock_that_is_gone_before_a_snapshot_is_given_back(bench):
    bench.lend()
    bench.clock.run_soon = gone
    bench.exchange.send(2, 10, MESSAGE)
    bench.workers.run()
    bench.exchange.run()
    assert bench.engine.reports == [(2, True)]
    assert bench.kv.pinned == 0


def test_engine_that_fails_does_not_end_the_loop(bench, caplog):
    bench.engine.report_snapshot = gone
    bench.send()
    bench.turn()
    assert "did not take the report" in caplog.text
    assert bench.kv.pinned == 0


def test_engine_that_panics_at_a_report_keeps_nothing_from_its_end(bench):
    bench.engine.report_snapshot = panic
    bench.send(2)
    bench.exchange.send(3, bench.exchange.snapshot(3).index, MESSAGE)
    waiting = bench.exchange.begin(saved_at(20), MESSAGE)
    with pytest.raises(NodePanic):
        bench.exchange.close()
    bench.clock.run_pending()
    assert bench.kv.pinned == 0
    assert waiting.outcome.exception(0).status == 503
    waiting.discard()


def test_report_that_waits_for_its_turn_is_made_at_the_end(bench):
    bench.exchange.send(2, 10, MESSAGE)
    bench.exchange.close()
    assert bench.engine.reports == [(2, False)]


def test_engine_that_panics_at_the_last_report_keeps_no_saver_waiting(bench):
    def step(message, meta):
        bench.exchange.send(2, 10, MESSAGE)  # Which has no snapshot: the report waits for the next turn.

    bench.engine.step_snapshot, bench.engine.report_snapshot = step, panic
    stepped = bench.exchange.begin(saved_at(20), MESSAGE)
    bench.exchange.run()
    with pytest.raises(NodePanic):
        bench.exchange.close()
    assert stepped.outcome.result(0) is False
    stepped.discard()


def test_engine_that_panics_at_a_step_keeps_no_saver_waiting(bench):
    bench.engine.refusal = NodePanic("the engine ends here")
    arrival = bench.exchange.begin(saved_at(20), MESSAGE)
    with pytest.raises(NodePanic):
        bench.exchange.run()
    assert arrival.outcome.done()
    arrival.discard()


# The thread that saved waits for raft's.


def test_raft_thread_that_does_not_come_by_is_not_waited_for():
    with Bench(step_timeout_s=0.01) as bench:
        bench.exchange.on_offer(offer_of(20))
        with pytest.raises(PeerRejected, match="does not come by") as refused:
            bench.exchange.on_saved(saved_at(20))
        assert refused.value.retry_after_s == 1.0
        assert [kv.closed for kv in bench.opened] == [1]
        bench.exchange.run()
        assert bench.engine.steps == [], "it was withdrawn"


@pytest.mark.parametrize("taken", [True, False])
def test_raft_thread_that_stands_still_in_its_turn_is_not_waited_for_either(taken):
    posted = []

    def wake():
        posted.append(True)
        if len(posted) == 1:
            bench.exchange.run()

    with Bench(step_timeout_s=0.01, wake=wake) as bench:
        bench.exchange.on_offer(offer_of(20))
        with pytest.raises(PeerRejected, match="does not come by"):
            bench.exchange.on_saved(saved_at(20))
        assert bench.engine.steps == [(MESSAGE, 20)]
        if taken:
            bench.exchange.install(20)
        assert [kv.closed for kv in bench.opened] == [0]
        bench.exchange.run()
        assert [kv.closed for kv in bench.opened] == [0 if taken else 1]


def test_closing_lets_savers_go(bench):
    waiting = bench.exchange.begin(saved_at(20), MESSAGE)
    bench.exchange.close()
    late = bench.exchange.begin(saved_at(21), MESSAGE)
    for arrival in (waiting, late):
        assert arrival.outcome.exception(0).status == 503
        arrival.discard()
        assert arrival.kv.closed == 1
    with pytest.raises(PeerRejected, match="closing"):
        bench.exchange.on_offer(offer_of(22))
