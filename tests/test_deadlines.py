"""Each stage of a transfer has a budget of its own, and none is for the whole: what comes on, arrives."""

from __future__ import annotations

import os
import threading
import time

import pytest

from cutting_line import CuttingLine
from impostors import SHORT_S
from nodes import CONTENT, META, UNIT, WAIT_S, Follower, ImagedSnapshot, push, wait_until, written
from snapstore.directory import SnapshotDir
from snapstore.errors import PeerRejected
from snapstore.meta import SnapshotMeta
from snapstore.retry import RetryPolicy
from snapstore.stream import SnapshotStream
from snapstore.testing import FakeClock
from snapstore.transport.http import SnapshotClient
from snapstore.transport.patience import (
    APPLY_TIMEOUT_S,
    FSYNC_TIMEOUT_S,
    IDLE_TIMEOUT_S,
    OFFER_TIMEOUT_S,
    TIMEOUT_S_MAX,
    Deadlines,
)
from snapstore.transport.steps import RETRY_AFTER_S

pytestmark = pytest.mark.usefixtures("nothing_lost")

#: In bytes/s: the link that has to be fast enough for any snapshot.
LINK_RATE = 2_000_000

#: Every stage that has a time, short.
SHORT = Deadlines(SHORT_S, SHORT_S, SHORT_S, SHORT_S, fsync_timeout_s=SHORT_S, apply_timeout_s=SHORT_S)


#: For a node that is slow to step what was saved.
IMPATIENT = Deadlines(apply_timeout_s=SHORT_S)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("connect_timeout_s", 0),
        ("head_timeout_s", -1),
        ("offer_timeout_s", 0),
        ("idle_timeout_s", float("nan")),
        ("fsync_timeout_s", 0),
        ("apply_timeout_s", 0),
        ("offer_timeout_s", float("inf")),
        ("idle_timeout_s", 10 * TIMEOUT_S_MAX),
        ("rate_min", -1),
        ("rate_min", float("inf")),
    ],
)
def test_a_deadline_that_allows_nothing_or_no_timer_takes_is_refused(field, value):
    with pytest.raises(ValueError, match=field):
        Deadlines(**{field: value})


def test_who_waits_for_a_node_waits_longer_than_the_node_may_take():
    """By default; else each slow step would end as a peer that fell silent, and begin anew."""
    assert APPLY_TIMEOUT_S + IDLE_TIMEOUT_S <= OFFER_TIMEOUT_S
    assert 2 * APPLY_TIMEOUT_S < FSYNC_TIMEOUT_S


class SlowLine(CuttingLine):
    """A line that lets so many bytes/s pass, each way, and stalls for `stall_s` behind half of `size`."""

    def __init__(self, url, rate, *, stall_s=0.0, size=0):
        self._rate, self._stall_s, self._half = rate, stall_s, size // 2
        self._over = threading.Event()
        super().__init__(url)

    def _pass(self, source, target):
        piece = min(64 * 1024, self._rate // 50)
        began_s, passed = time.monotonic(), 0
        source.settimeout(None)  # The way back is silent until all has passed.
        try:
            while data := source.recv(piece):
                target.sendall(data)
                passed += len(data)
                due_s = passed / self._rate + (self._stall_s if passed > self._half else 0.0)
                self._over.wait(max(0.0, began_s + due_s - time.monotonic()))
            target.shutdown(1)
        except OSError:
            return

    def _pass_on(self, leader, follower):
        self._pass(leader, follower)

    def _pass_back(self, follower, leader):
        self._pass(follower, leader)

    def __exit__(self, *exception):
        self._over.set()
        super().__exit__(*exception)


@pytest.mark.parametrize("way", ["push", pytest.param("fetch", marks=pytest.mark.slow)])
def test_no_deadline_is_for_a_whole_transfer(tmp_path, way):
    """All are a tenth of what it takes in all; the line is slow and never still."""
    content = os.urandom(600 * UNIT)
    rate = round(len(content) / (10 * SHORT_S))
    began_s = time.monotonic()
    with Follower(tmp_path / "follower", deadlines=SHORT) as follower, SlowLine(follower.url, rate) as line:
        patient = Deadlines(SHORT_S, SHORT_S, 10 * SHORT_S, SHORT_S, fsync_timeout_s=20 * SHORT_S)
        client = SnapshotClient(deadlines=patient)
        if way == "push":
            with written(content) as stream:
                client.send_snapshot(line.url, stream, chunk_size=UNIT)
        else:
            follower.directory.save_from(content, META)
            with SnapshotDir(tmp_path / "target") as target:
                assert client.fetch(line.url, META.index, target).path.read_bytes() == content
        assert follower.directory.verify(META.index).size == len(content)
    assert time.monotonic() - began_s > 5 * SHORT_S


@pytest.mark.slow
def test_a_slow_link_is_no_reason_to_end_a_transfer(tmp_path):
    """By default, at 2 MB/s, with a stall, for longer than the longest silence allowed: so for any length."""
    size, stall_s = round(0.55 * IDLE_TIMEOUT_S * LINK_RATE), 0.55 * IDLE_TIMEOUT_S
    began_s = time.monotonic()
    with (
        Follower(tmp_path / "follower") as follower,
        SlowLine(follower.url, LINK_RATE, stall_s=stall_s, size=size) as line,
    ):
        with written(os.urandom(size), piece_size=1024 * 1024) as stream:
            assert SnapshotClient().send_snapshot(line.url, stream).size == size
        elapsed_s = time.monotonic() - began_s
        assert follower.directory.verify(META.index).size == size
    print(f"{size} bytes in {elapsed_s:.1f} s, {size / elapsed_s / 1e6:.2f} MB/s")
    assert elapsed_s > IDLE_TIMEOUT_S


# The node's own step.


class SlowNode:
    """An `on_saved` that takes until it is told to end; whatever `failure` is, it raises that then."""

    def __init__(self, failure=None):
        self.go_on, self.calls, self._failure = threading.Event(), 0, failure

    def __call__(self, saved):
        self.calls += 1
        assert self.go_on.wait(WAIT_S)
        if self._failure is not None:
            raise self._failure


@pytest.fixture
def slow():
    node = SlowNode()
    yield node
    node.go_on.set()


def refused(follower):
    with pytest.raises(PeerRejected) as raised:
        push(follower, written())
    return raised.value


def test_a_peer_does_not_wait_for_a_slow_node_and_the_snapshot_stays(tmp_path, slow, caplog):
    with Follower(tmp_path / "follower", on_saved=slow, deadlines=IMPATIENT) as follower:
        for _ in range(2):  # The second time it is stored, and the node is still at it.
            error = refused(follower)
            assert (error.status, error.retry_after_s) == (503, RETRY_AFTER_S)
            assert error.reason == "saved, and the node is still at it"
        assert slow.calls == 1
        assert follower.directory.verify(META.index).path.read_bytes() == CONTENT
        # Another index is not its business.
        slow_first, follower._on_saved = follower._on_saved, None
        assert not push(follower, written(meta=SnapshotMeta(8))).existed
        slow_first.go_on.set()
        wait_until(lambda: "came to its end late: done" in caplog.text)


def test_a_leader_that_obeys_hears_of_the_end_of_a_slow_step(tmp_path, slow):
    clock = FakeClock()

    def sleep(seconds):
        slow.go_on.set()
        clock.advance(seconds)

    retry = RetryPolicy(monotonic=clock.monotonic, sleep=sleep)
    with Follower(tmp_path / "follower", on_saved=slow, deadlines=IMPATIENT) as follower:
        (tmp_path / "image").write_bytes(CONTENT)
        stream = SnapshotStream(META, ImagedSnapshot(tmp_path / "image"))
        assert push(follower, stream, retry=retry).existed
        assert slow.calls == 2


def test_what_a_late_node_refuses_is_in_the_log(tmp_path, caplog):
    node = SlowNode(PeerRejected(409, "not this one"))
    with Follower(tmp_path / "follower", on_saved=node, deadlines=IMPATIENT) as follower:
        assert refused(follower).status == 503
        node.go_on.set()
        wait_until(lambda: "late: 409: not this one" in caplog.text)
        assert refused(follower).status == 409


def test_a_node_in_time_is_asked_again_and_its_refusal_told(tmp_path):
    node = SlowNode(PeerRejected(409, "not this one"))
    node.go_on.set()
    with Follower(tmp_path / "follower", on_saved=node) as follower:
        assert [refused(follower).status for _ in range(2)] == [409, 409]
        assert node.calls == 2
