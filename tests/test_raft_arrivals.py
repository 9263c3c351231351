"""What a follower receives: made a KV, stepped, installed or passed over, answered."""

from __future__ import annotations

import threading

import pytest

from raft_bench import MESSAGE, Bench, offer_of, saved_at
from snapstore.errors import (
    PeerRejected,
    SnapshotNotFound,
)
from snapstore.store import State
from snapstore.wire import MESSAGE_SIZE_MAX, Offer, OfferMalformed


@pytest.fixture
def bench():
    with Bench() as bench:
        yield bench


def test_kv_is_swapped_when_the_engine_takes_the_snapshot(bench):
    arrival = bench.exchange.begin(saved_at(20), MESSAGE)
    assert bench.engine.steps == []
    bench.exchange.run()
    assert bench.engine.steps == [(MESSAGE, 20)]
    bench.exchange.install(20)
    assert not arrival.outcome.done()
    bench.exchange.run()
    assert arrival.outcome.result(0) is True
    arrival.discard()
    with bench.slot.reading() as kv:
        assert (kv.applied, kv.closed) == (20, 0)
    assert bench.kv.closed == 0, "raft's thread has no time for that"
    bench.clock.run_pending()
    assert bench.kv.closed == 1


def test_installing_twice_is_installing_once(bench):
    bench.exchange.begin(saved_at(20), MESSAGE)
    bench.exchange.run()
    bench.exchange.install(20)
    bench.exchange.install(20)
    bench.clock.run_pending()
    with bench.slot.reading() as kv:
        assert (kv.applied, kv.closed) == (20, 0)


def test_what_was_lent_of_the_old_kv_is_taken_back(bench):
    bench.send()
    bench.clock.run_pending()
    bench.exchange.begin(saved_at(20), MESSAGE)
    bench.exchange.run()
    bench.exchange.install(20)
    assert bench.store.state is State.EMPTY
    bench.turn()
    bench.clock.run_pending()
    assert bench.engine.reports == [(2, False)]
    assert (bench.kv.pinned, bench.kv.closed) == (0, 1)


def test_kv_of_a_snapshot_that_is_passed_over_is_closed(bench):
    arrival = bench.exchange.begin(saved_at(20), MESSAGE)
    bench.exchange.run()
    bench.exchange.run()
    assert arrival.outcome.result(0) is False
    arrival.discard()
    assert arrival.kv.closed == 1
    with pytest.raises(SnapshotNotFound):
        bench.exchange.install(20)


def test_snapshot_that_comes_again_is_stepped_without_another_kv(bench):
    for _ in range(2):
        arrival = bench.exchange.begin(saved_at(20), MESSAGE)
        bench.exchange.run()
        if arrival.kv is not None:
            bench.exchange.install(20)
        bench.exchange.run()
    assert arrival.kv is None
    assert arrival.outcome.result(0) is False
    assert len(bench.engine.steps) == 2


@pytest.mark.parametrize(
    ("refusal", "status"), [(ValueError("not this snapshot"), 400), (OSError("engine"), None)], ids=repr
)
def test_engines_refusal_is_the_answer(bench, refusal, status):
    bench.engine.refusal = refusal
    arrival = bench.exchange.begin(saved_at(20), MESSAGE)
    bench.exchange.run()
    error = arrival.outcome.exception(0)
    assert getattr(error, "status", None) == status
    arrival.discard()
    assert arrival.kv.closed == 1


def test_second_leader_with_the_same_snapshot_is_told_to_wait(bench):
    first = bench.exchange.begin(saved_at(20), MESSAGE)
    second = bench.exchange.begin(saved_at(20), b"another")
    bench.exchange.run()
    assert second.outcome.exception(0).status == 503
    second.discard()
    bench.exchange.install(20)
    bench.exchange.run()
    assert first.outcome.result(0) is True


def test_two_leaders_messages_are_not_mixed_up():
    with Bench(wake=lambda: bench.exchange.run()) as bench:
        bench.exchange.on_offer(offer_of(20))
        other = threading.Thread(target=bench.exchange.on_offer, args=(offer_of(20, b"another"),))
        other.start()
        other.join()
        bench.exchange.on_saved(saved_at(20))
        assert bench.engine.steps == [(MESSAGE, 20)]


def test_offer_without_a_message_is_refused(bench):
    with pytest.raises(PeerRejected, match="raft message"):
        bench.exchange.on_offer(offer_of(20, b""))


def test_offer_carries_the_message():
    offer = offer_of(20, bytes(range(256)))
    headers = {name.lower(): value for name, value in offer.headers()}
    assert Offer.parse(20, headers) == offer
    assert offer.body_size == offer_of(20, b"").body_size
    for malformed in ("no base64", "A" * (2 * MESSAGE_SIZE_MAX)):
        with pytest.raises(OfferMalformed, match="Snapstore-Message"):
            Offer.parse(20, headers | {"snapstore-message": malformed})
    with pytest.raises(ValueError, match="limit"):
        offer_of(20, bytes(MESSAGE_SIZE_MAX + 1))
