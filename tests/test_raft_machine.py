"""Two scripted nodes and the exchange, under everything that a network and a transfer can do.

Messages are lost, repeated, late and out of order; transfers are cut, refused, answered into the void;
the leader compacts, takes a new term, the follower ends at any moment and comes back. At the end all is
well again for a while, and then: no follower is stalled, no snapshot unreported, nothing pinned, and
the stores are equal. A step before the bytes are durable fails at once.
"""

from __future__ import annotations

import logging
import random

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from raft_carrier import OUTCOMES, Disk, FakeWorkers, MemoryCarrier
from raft_members import Crash, ListKV, Member
from snapstore.raft import RetryPolicy
from snapstore.raft.holds import LINGER_S
from snapstore.raft.transfers import CLEAR_UNSENT_AFTER_S
from snapstore.store import CLEAR_UNUSED_AFTER_S, State
from snapstore.testing import FakeClock
from snapstore.testing.scripted_node import (
    APPEND_SIZE_MAX,
)

#: Heartbeats, one a second, within which two healthy nodes are equal again: the follower may have to be
#: left alone for the longest delay and what it asked for, and each thing takes a heartbeat or two.
HEALING_BEATS = 40


class Swallowed(logging.Handler):
    """Keeps the errors that the exchange logs so that the loop goes on."""

    def __init__(self):
        super().__init__(logging.ERROR)
        self.records = []
        logging.getLogger("snapstore.raft").handlers = [self]

    def emit(self, record):
        self.records.append(record)


class ExchangeMachine(RuleBasedStateMachine):
    @initialize(seed=st.integers(0, 2**32))
    def begin(self, seed):
        self.swallowed = Swallowed()
        self.clock = FakeClock()
        self.workers = FakeWorkers()
        self.disk = Disk()
        self.network = []
        self.pins = []
        self.carrier = MemoryCarrier(self.disk)
        self.carrier.follower = lambda: self.follower
        policy = RetryPolicy(
            attempts_max=3,
            elapsed_s_max=100.0,
            random=random.Random(seed).random,
            monotonic=self.clock.monotonic,
        )
        self.retry = policy
        self.leader = self.new_member(1, [2])
        self.follower = self.new_member(2, [])
        self.kvs = [self.leader.kv, self.follower.kv]
        self.leader.node.campaign()
        self.turn(self.leader)

    def new_member(self, member, peers, **life):
        return Member(
            member,
            peers,
            self.carrier,
            clock=self.clock,
            engine=None if member == 1 else self,
            workers=self.workers,
            url_of=str,
            retry=self.retry,
            open_kv=self.open_kv,
            **life,
        )

    # The follower's engine: what the exchange has it step must be on the disk.

    def step_snapshot(self, message, meta):
        assert meta.index in self.disk.durable, "stepped before the bytes were durable"
        self.follower.step_snapshot(message, meta)

    def report_snapshot(self, to, *, finished):
        raise AssertionError("a follower has nothing to report")

    def open_kv(self, saved):
        kv = ListKV.read(self.disk.durable[saved.index])
        self.kvs.append(kv)
        return kv

    def turn(self, member):
        try:
            member.turn()
        except Crash:
            self.revive()
        self.network += member.outbox
        member.outbox = []

    def revive(self):
        """The follower's process ends, and another one begins with its log and its KV."""
        self.end_readers()
        dead, kv = self.follower, self.follower.kv
        self.carrier.follower = lambda: self.follower
        with dead.slot.reading():  # Its KV is on the disk, and the next process opens it.
            dead.close()
            self.follower = self.new_member(2, [], log=dead.log, kv=ListKV(kv.applied, kv.entries))
        self.kvs.append(self.follower.kv)

    @invariant()
    def nothing_is_broken(self):
        if hasattr(self, "carrier"):
            assert self.carrier.broken == []

    # What may happen.

    @rule(size=st.integers(0, APPEND_SIZE_MAX))
    def write(self, size):
        self.leader.node.propose(b"x" * size)
        self.turn(self.leader)

    @rule(member=st.sampled_from([1, 2]))
    def take_a_turn(self, member):
        self.turn(self.leader if member == 1 else self.follower)

    @rule()
    def beat(self):
        self.leader.node.tick()
        self.turn(self.leader)

    @precondition(lambda self: self.network)
    @rule(choice=st.integers(0, 99), fate=st.sampled_from(["delivered", "delivered", "repeated", "lost"]))
    def pass_on(self, choice, fate):
        at = choice % len(self.network)
        to, raw = self.network[at] if fate == "repeated" else self.network.pop(at)
        if fate != "lost":
            self.deliver(to, raw)

    def deliver_all(self, to=None):
        """Deliver until nothing is on its way, to the one member or to both."""
        while at := [at for at, (receiver, _) in enumerate(self.network) if to in (None, receiver)]:
            self.deliver(*self.network.pop(at[0]))

    def deliver(self, to, raw):
        member = self.leader if to == 1 else self.follower
        member.take(raw)
        self.turn(member)

    @rule(beats=st.integers(2, 3))
    def fall_behind(self, beats):
        """What random steps would seldom do: the follower misses an entry that is compacted, and asks."""
        self.clock.advance(LINGER_S)  # Nothing is held any more for those who had a snapshot.
        self.write(1)
        self.network.clear()
        self.compact()
        for _ in range(beats):
            self.beat()
            self.deliver_all()
            self.clock.run_pending()

    @rule()
    def leader_stands_still(self):
        """Between the engine's request for a snapshot and the Ready that has its message."""
        self.beat()
        self.deliver_all(to=2)
        for _, raw in self.network:
            self.leader.take(raw)
        self.network.clear()
        self.clock.advance(CLEAR_UNSENT_AFTER_S)
        self.turn(self.leader)

    @precondition(lambda self: self.workers.tasks)
    @rule(choice=st.integers(0, 9), outcome=st.sampled_from(OUTCOMES))
    def work(self, choice, outcome):
        self.carrier.outcome = outcome
        self.workers.run_one(choice)

    @precondition(lambda self: self.workers.tasks)
    @rule()
    def die_at_install(self):
        self.follower.crashes_at_install = True
        self.carrier.outcome = "sent"
        self.workers.run_one()
        if self.follower.node.dead or self.follower.node._ready is not None:
            self.revive()
        self.follower.crashes_at_install = False

    @rule()
    def run_background(self):
        self.clock.run_pending()

    @rule(seconds=st.sampled_from([0.2, 1.0, 6.0, 40.0]))
    def let_time_pass(self, seconds):
        self.clock.advance(seconds)

    @rule()
    def follower_is_read(self):
        self.pins.append(self.follower.slot.snapshot())

    @precondition(lambda self: self.pins)
    @rule(choice=st.integers(0, 9))
    def reader_is_done(self, choice):
        self.pins.pop(choice % len(self.pins)).close()

    def end_readers(self):
        while self.pins:
            self.reader_is_done(0)

    @rule()
    def compact(self):
        self.leader.compact(self.leader.kv.applied)

    @rule()
    def new_term(self):
        self.leader.node.campaign()
        self.turn(self.leader)

    @rule(luck=st.integers(0, 4))
    def follower_restarts(self, luck):
        if not luck:
            self.revive()

    # And then all is well again.

    def heal(self):
        self.carrier.outcome = "sent"
        self.compact()
        for _ in range(HEALING_BEATS):
            self.beat()
            self.take_a_turn(2)
            self.deliver_all()
            self.clock.run_pending()
            self.workers.run()
            self.take_a_turn(1)
            self.clock.advance(1.0)
            self.take_a_turn(1)
            if self.is_well:
                return

    @property
    def is_well(self):
        seen = self.leader.node.progress[2]
        return seen.match == self.leader.log.last_index() and not (self.network or seen.unreported)

    def teardown(self):
        if hasattr(self, "leader"):
            self.heal()
            self.check()
            logging.getLogger("snapstore.raft").handlers = []

    def check(self):
        self.nothing_is_broken()
        self.end_readers()
        # Nothing is held for anybody once the last one had time to go on.
        self.clock.advance(LINGER_S)
        applied = self.leader.kv.applied
        assert self.leader.compact(applied) == applied, "the log is held for ever"
        # What was created or lent for nothing is cleared by its own timers.
        self.clock.run_pending()
        self.clock.advance(max(CLEAR_UNUSED_AFTER_S, CLEAR_UNSENT_AFTER_S))
        self.take_a_turn(1)
        self.clock.run_pending()
        assert self.follower.kv.entries == self.leader.kv.entries, "the follower is stalled"
        assert self.leader.node.progress[2].unreported == 0, "a snapshot was never reported"
        assert not self.swallowed.records, "an error was kept from the loop, and is one all the same"
        for member in (self.leader, self.follower):
            assert member.store.state is State.EMPTY, "a snapshot was never given back"
            assert not member.exchange._transfers._open
            member.close()
        self.clock.run_pending()
        assert not any(kv.pinned for kv in self.kvs), "a pin leaked"
        assert [kv.closed for kv in self.kvs] == [1] * len(self.kvs), "a KV was left open"


@pytest.mark.parametrize("runs", [100, pytest.param(300, marks=pytest.mark.slow)])
def test_exchange_under_a_bad_network(runs):
    run_state_machine_as_test(
        ExchangeMachine,
        settings=settings(
            max_examples=runs,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )
