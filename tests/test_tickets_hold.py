"""When the log is kept for a follower, and whose settings are there afterwards."""

from types import SimpleNamespace

import pytest

from snapstore.clock import SystemClock
from snapstore.raft.pysyncobj.hold import STALLED_S, CompactionHold
from snapstore.testing import FakeClock
from ticket_nodes import Cluster, Gate

#: PySyncObj leaves the files that it sends from to the collector.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")

FIRST = 100


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def conf():
    return SimpleNamespace(logCompactionMinEntries=10, logCompactionMinTime=300.0)


@pytest.fixture
def hold(conf, clock):
    return CompactionHold(conf, clock.monotonic, held_s_max=3600.0, held_entries_max=1000)


def status(**members):
    """What a leader tells that has committed entry 120; of members match, next, whether there."""
    told = {"commit_idx": 120}
    for name, (match, following, connected) in members.items():
        told["match_idx_server_" + name] = match
        told["next_node_idx_server_" + name] = following
        told["partner_node_status_server_" + name] = 2 if connected else 0
    return told


def settings(conf):
    return conf.logCompactionMinEntries, conf.logCompactionMinTime


OWN, HELD = (10, 300.0), (1000, 3600.0)


def test_nothing_is_held_for_those_who_have_all_or_are_not_there(hold, conf):
    hold.update(status(b=(120, 121, True), c=(3, 4, False)), FIRST)
    assert settings(conf) == OWN


def test_the_log_is_held_until_the_member_has_what_was_there_when_it_came_back(hold, conf, clock):
    hold.update(status(b=(3, 4, True), c=(120, 121, True)), FIRST)
    assert settings(conf) == HELD
    hold.update(status(b=(110, 111, True)), FIRST)
    assert settings(conf) == HELD
    hold.update(status(b=(120, 121, True)), FIRST)
    assert settings(conf) == OWN


def test_one_that_lost_what_it_had_is_known_by_its_standing_still(hold, conf, clock):
    hold.update(status(b=(115, 116, True)), FIRST)
    assert settings(conf) == OWN
    clock.advance(STALLED_S + 0.01)
    hold.update(status(b=(115, 116, True)), FIRST)
    assert settings(conf) == HELD


def test_several_are_waited_for_each_within_the_limit(hold, conf, clock):
    hold.update(status(b=(3, 4, True)), FIRST)
    clock.advance(1800)
    hold.update(status(b=(3, 4, True), c=(3, 4, True)), FIRST)
    clock.advance(1801)
    hold.update(status(b=(3, 4, True), c=(3, 4, True)), FIRST)
    assert settings(conf) == HELD
    clock.advance(1800)
    hold.update(status(b=(3, 4, True), c=(3, 4, True)), FIRST)
    assert settings(conf) == OWN


@pytest.mark.parametrize("after", [{}, status(), status(b=(3, 4, False))])
def test_it_ends_with_the_leadership_and_with_the_member(hold, conf, after):
    hold.update(status(b=(3, 4, True)), FIRST)
    hold.update(after, FIRST)
    assert settings(conf) == OWN


def test_what_the_user_changes_stays(hold, conf):
    conf.logCompactionMinEntries = 20
    hold.update(status(b=(3, 4, True)), FIRST)
    assert settings(conf) == HELD
    conf.logCompactionMinTime = 7.0
    hold.update({}, FIRST)
    assert settings(conf) == (20, 7.0)


def test_settings_that_are_larger_than_the_limits_stay(hold, conf):
    conf.logCompactionMinEntries, conf.logCompactionMinTime = 2000, 7200.0
    hold.update(status(b=(3, 4, True)), FIRST)
    assert settings(conf) == (2000, 7200.0)


def test_the_conf_has_its_own_settings_when_the_node_has_ended(tmp_path, nothing_lost):
    with Cluster(tmp_path, ("a:1",)) as cluster:
        member = cluster.start("a:1")
        member.dumps._hold.update(status(b=(3, 4, True)), FIRST)
        assert member.conf.logCompactionMinEntries > 10_000
        cluster.stop("a:1")
        assert member.conf.logCompactionMinEntries == 10_000


class HastyClock(SystemClock):
    """Seconds pass a hundred times as fast."""

    def monotonic(self):
        return 100 * super().monotonic()


def test_the_log_is_kept_for_a_follower_that_fetches_and_compacted_when_it_has_caught_up(
    tmp_path, nothing_lost
):
    with Cluster(tmp_path) as cluster, HastyClock() as clock:
        cluster.begin(clock=clock)
        keep_and_compact(cluster, clock)


def keep_and_compact(cluster, clock):
    leader = cluster.lead()
    cluster.fill()
    cluster.lose("b:2")
    cluster.compact(leader)
    gate = Gate()
    leader.conf.logCompactionMinEntries = 6
    follower = cluster.start("b:2", open_kv=gate)
    cluster.until(gate.reached.is_set)
    first = leader.ticket.index
    cluster.fill(10)
    assert leader.ticket.index == first, "compacted under a follower that fetches"
    gate.go_on.set()
    cluster.settle()
    assert follower.content == leader.content
    assert follower.indexes == [first], "a second snapshot was needed"
    cluster.until(lambda: leader.ticket.index > first)


def test_the_log_is_not_kept_longer_than_the_limits(tmp_path, nothing_lost):
    with Cluster(tmp_path) as cluster:
        leader = cluster.begin(held_entries_max=30)
        cluster.fill()
        cluster.compact(leader)
        cluster.lose("b:2")
        leader.conf.logCompactionMinEntries = 4
        gate = Gate()
        cluster.start("b:2", open_kv=gate, held_entries_max=30)
        cluster.until(gate.reached.is_set)
        first = leader.ticket.index
        cluster.fill(20)
        cluster.until(lambda: leader.ticket.index > first)
        assert leader.ticket.index - first >= 28
        gate.go_on.set()
        cluster.settle()
