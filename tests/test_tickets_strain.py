"""How strained a node is: by its ticks, as they come, and as a pacer hears of them."""

from __future__ import annotations

import pytest
from pysyncobj import SyncObjConf

from paced import MIB, send
from snapstore._fastpipe import Throttle
from snapstore.clock import SystemClock
from snapstore.pacing import PERIOD_S, STRAIN_HIGH, Pacer
from snapstore.raft.pysyncobj.tick_strain import TickStrain
from snapstore.testing import FakeClock
from ticket_nodes import Cluster

#: A leader is heard of every 0.1 s, and followers wait for 0.5 s: a tick may be 0.4 s late.
CONF = SyncObjConf(autoTickPeriod=0.05, appendEntriesPeriod=0.1, raftMinTimeout=0.5, raftMaxTimeout=1.0)


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def ticks(clock):
    return TickStrain(CONF, clock.monotonic)


def pass_on(ticks, clock, *turns_s):
    for turn_s in turns_s:
        clock.advance(turn_s)
        ticks.tick()


def test_before_the_first_tick_there_is_no_strain(ticks, clock):
    clock.advance(10.0)
    assert ticks.take() == 0.0
    ticks.tick()
    assert ticks.take() == 0.0


def test_ticks_in_time_are_no_strain(ticks, clock):
    pass_on(ticks, clock, *[0.01, 0.05] * 20)
    assert ticks.take() == pytest.approx(0.0)


def test_one_that_is_as_late_as_an_election_waits_is_all_there_is_to_bear(ticks, clock):
    pass_on(ticks, clock, 0.05, 0.05 + 0.4, 0.05)
    assert ticks.take() == pytest.approx(1.0)


def test_the_worst_counts_and_is_forgotten_when_it_was_told(ticks, clock):
    pass_on(ticks, clock, 0.05, 0.05 + 0.1, 0.05 + 0.2, 0.05 + 0.1)
    assert ticks.take() == pytest.approx(0.5)
    pass_on(ticks, clock, 0.05)
    assert ticks.take() == pytest.approx(0.0)


def test_the_turn_that_goes_on_is_told_as_far_as_it_went(ticks, clock):
    ticks.tick()
    clock.advance(0.05 + 0.2)
    assert ticks.take() == pytest.approx(0.5)
    clock.advance(0.2)
    assert ticks.take() == pytest.approx(1.0)
    ticks.tick()
    assert ticks.take() == pytest.approx(1.0)  # Its end is news, too: nobody was told how late it was then.


class Late(SystemClock):
    """A clock that jumps where a test wants it."""

    late_s = 0.0

    def monotonic(self):
        return super().monotonic() + self.late_s


@pytest.mark.filterwarnings(
    "ignore:unclosed file:ResourceWarning"
)  # PySyncObj leaves its own to the collector.
def test_transfers_of_a_node_whose_ticks_are_late_yield(tmp_path, nothing_lost):
    throttle, seconds, pace = Throttle(8 * MIB), Late(), FakeClock()
    with Cluster(tmp_path, names=("a:1",)) as cluster:
        member = cluster.start("a:1", clock=seconds)
        cluster.lead()
        assert member.dumps.strain() < STRAIN_HIGH
        with Pacer([throttle], member.dumps.strain, rate_max=8 * MIB, clock=pace):
            send(throttle)
            seconds.late_s += 1000.0  # Its disk is busy for a while.
            cluster.tick()
            pace.advance(PERIOD_S)
            assert throttle.rate < 8 * MIB
        member.dumps.close()
        seconds.late_s += 1000.0
        assert member.dumps.strain() == 0.0
    seconds.close()
