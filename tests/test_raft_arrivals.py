"""What a follower receives: made a KV, stepped, installed or passed over, answered."""

from __future__ import annotations

import pytest

from raft_bench import MESSAGE, Bench
from snapstore.errors import (
    PeerRejected,
    SnapshotNotFound,
)
from snapstore.manifest import Manifest
from snapstore.meta import SnapshotMeta
from snapstore.stored import SavedSnapshot
from snapstore.wire import MESSAGE_SIZE_MAX, Offer, OfferMalformed


@pytest.fixture
def bench():
    with Bench() as bench:
        yield bench


def saved_at(index):
    meta = SnapshotMeta(index, 1)
    return SavedSnapshot(index, None, 1, Manifest(meta, 1, 0, 4096, b""))


def offer_of(index, message=MESSAGE):
    return Offer(SnapshotMeta(index, 1), 1, 4096, message=message)


def test_kv_is_swapped_when_the_engine_takes_the_snapshot(bench):
    arrival = bench.exchange.begin(saved_at(20), MESSAGE)
    assert bench.engine.steps == []
    bench.exchange.run()
    assert bench.engine.steps == [(MESSAGE, 20)]
    bench.exchange.install(20)
    assert not arrival.outcome.done()
    bench.exchange.run()
    assert arrival.outcome.result() is True
    arrival.discard()
    with bench.slot.reading() as kv:
        assert (kv.applied, kv.closed) == (20, 0)
    assert bench.kv.closed == 1


def test_kv_of_a_snapshot_that_is_passed_over_is_closed(bench):
    arrival = bench.exchange.begin(saved_at(20), MESSAGE)
    bench.exchange.run()
    bench.exchange.run()
    assert arrival.outcome.result() is False
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
    assert arrival.outcome.result() is False
    assert len(bench.engine.steps) == 2


@pytest.mark.parametrize(
    ("refusal", "status"), [(ValueError("not this snapshot"), 400), (OSError("engine"), None)], ids=repr
)
def test_engines_refusal_is_the_answer(bench, refusal, status):
    bench.engine.refusal = refusal
    arrival = bench.exchange.begin(saved_at(20), MESSAGE)
    bench.exchange.run()
    error = arrival.outcome.exception()
    assert getattr(error, "status", None) == status
    arrival.discard()
    assert arrival.kv.closed == 1


def test_second_leader_with_the_same_snapshot_is_told_to_wait(bench):
    first = bench.exchange.begin(saved_at(20), MESSAGE)
    second = bench.exchange.begin(saved_at(20), b"another")
    bench.exchange.run()
    assert second.outcome.exception().status == 503
    second.discard()
    bench.exchange.install(20)
    bench.exchange.run()
    assert first.outcome.result() is True


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


def test_raft_thread_that_does_not_come_by_is_not_waited_for():
    with Bench(step_timeout_s=0.01) as bench:
        bench.exchange.on_offer(offer_of(20))
        with pytest.raises(PeerRejected, match="does not come by") as refused:
            bench.exchange.on_saved(saved_at(20))
        assert refused.value.retry_after_s == 1.0
        bench.exchange.run()
        assert bench.engine.steps == [], "it was withdrawn"


def test_closing_lets_savers_go(bench):
    waiting = bench.exchange.begin(saved_at(20), MESSAGE)
    bench.exchange.close()
    late = bench.exchange.begin(saved_at(21), MESSAGE)
    for arrival in (waiting, late):
        assert arrival.outcome.exception().status == 503
        arrival.discard()
        assert arrival.kv.closed == 1
    with pytest.raises(PeerRejected, match="closing"):
        bench.exchange.on_offer(offer_of(22))
