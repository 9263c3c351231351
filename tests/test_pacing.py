"""The closed loop: how the rate follows what the node says of itself."""

from itertools import pairwise

import pytest

from snapstore._fastpipe import RATE_LIMIT_MIN, Throttle
from snapstore.pacing import PERIOD_S, RATE_MIN, STRAIN_HIGH, STRAIN_LOW, Pacer
from snapstore.testing import FakeClock

MIB = 1024 * 1024


class Node:
    """A node whose transfers move `moved` bytes a second where they are let."""

    def __init__(self, moved=100 * MIB, **options):
        self.clock, self.throttle = FakeClock(), FakeThrottle()
        self.moved, self.strain = moved, 0.0
        self.pacer = Pacer([self.throttle], lambda: self.strain, clock=self.clock, **options)

    def pass_on(self, periods=1):
        for _ in range(periods):
            rate = self.moved if self.throttle.rate is None else min(self.moved, self.throttle.rate)
            self.throttle.bytes += int(rate * PERIOD_S)
            self.clock.advance(PERIOD_S)
        return self.throttle.rate


class FakeThrottle:
    """The figures of a throttle, without transfers."""

    def __init__(self):
        self.rate, self.bytes = None, 0


def test_at_ease_nothing_is_limited():
    assert Node().pass_on(20) is None


def test_strain_halves_what_is_moved_and_what_is_moved_then():
    node = Node()
    node.strain = STRAIN_HIGH
    assert node.pass_on() == 50 * MIB
    assert node.pass_on() == 25 * MIB


def test_the_least_rate_stays_however_strained_the_node_is():
    node = Node()
    node.strain = 1000.0
    assert node.pass_on(50) == RATE_MIN


def test_between_the_two_all_stays_as_it_is():
    node = Node()
    node.strain = STRAIN_HIGH
    rate = node.pass_on()
    node.strain = (STRAIN_LOW + STRAIN_HIGH) / 2
    assert node.pass_on(20) == rate


def test_room_is_taken_back_step_by_step_until_there_is_no_limit():
    node = Node()
    node.strain = 1.0
    node.pass_on(5)
    node.strain = 0.0
    rates = []
    while (rate := node.pass_on()) is not None:
        rates.append(rate)
    assert rates == sorted(rates)
    assert all(after <= 1.25 * before for before, after in pairwise(rates))
    assert rates[-1] > 100 * MIB  # It was limited no more when the limit went.


def test_a_largest_rate_is_kept_to():
    node = Node(rate_max=10 * MIB)
    assert node.throttle.rate == 10 * MIB
    node.strain = 1.0
    assert node.pass_on() == 5 * MIB
    node.strain = 0.0
    assert node.pass_on(20) == 10 * MIB


def test_it_is_halved_from_what_is_moved_however_much_is_allowed():
    node = Node(moved=10 * MIB, rate_max=100 * MIB)
    node.strain = STRAIN_HIGH
    assert node.pass_on() == 5 * MIB


def test_a_decision_under_way_when_it_is_closed_is_not_taken():
    clock, throttle = FakeClock(), FakeThrottle()

    def end():
        throttle.bytes += 10 * MIB
        pacer.close()
        return 1.0

    pacer = Pacer([throttle], end, rate_max=20 * MIB, clock=clock)
    clock.advance(PERIOD_S)
    assert throttle.rate == 20 * MIB


def test_who_moves_nothing_has_nothing_to_yield():
    node = Node(moved=0)
    node.strain = 1.0
    assert node.pass_on(3) is None


def test_the_worst_that_is_reported_within_a_period_counts():
    node = Node()
    for strain in (0.1, 0.9, 0.2):
        node.pacer.report(strain)
    assert node.pass_on() == 50 * MIB
    assert node.pass_on() > 50 * MIB  # It is forgotten with its period.


def test_a_signal_that_raises_is_no_news(caplog):
    clock, throttle = FakeClock(), FakeThrottle()

    def broken():
        raise RuntimeError("no figures")

    with Pacer([throttle], broken, clock=clock):
        clock.advance(PERIOD_S)
        throttle.bytes += 10 * MIB
        clock.advance(PERIOD_S)
        assert throttle.rate is None
    assert "could not be told" in caplog.text


def test_when_it_is_closed_it_governs_no_more():
    node = Node(rate_max=10 * MIB)
    node.strain = 1.0
    node.pass_on()
    node.pacer.close()
    node.pacer.close()
    assert node.pass_on(3) == 10 * MIB


def test_it_runs_by_itself_with_a_real_throttle(nothing_lost):
    throttle = Throttle()
    with Pacer([throttle], rate_max=4 * MIB):
        assert throttle.rate == 4 * MIB


@pytest.mark.parametrize(
    "options", [{"rate_min": RATE_LIMIT_MIN - 1}, {"rate_max": RATE_MIN - 1}, {"period_s": 0}]
)
def test_options_that_make_no_sense_are_refused(options):
    with pytest.raises(ValueError, match="in their order"):
        Pacer([Throttle()], **options)
