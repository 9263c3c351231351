"""When an attempt is made again, and when not: the policy by itself, and the client that follows it."""

from __future__ import annotations

import math
import os
import random

import pytest

from cutting_line import CuttingLine
from impostors import Impostors, answer
from nodes import (
    CONTENT,
    META,
    UNIT,
    Follower,
    ImagedSnapshot,
    push,
    saying,
    written,
)
from snapstore._fastpipe import Progress
from snapstore.directory import SnapshotDir
from snapstore.errors import (
    PeerRejected,
    PeerUnreachable,
    PeerUntrusted,
    SnapshotCorrupt,
    StoreClosed,
    TransportError,
)
from snapstore.retry import WAIT_SLICE_S, RetryPolicy, is_passing
from snapstore.stream import SnapshotStream
from snapstore.testing import FakeClock
from snapstore.transport.http import SnapshotClient

#: Enough chunks that a line can be cut behind some of them, each time at another.
LARGE = os.urandom(64 * UNIT)

UNREACHABLE = PeerUnreachable("cut")


class Waits:
    """A policy whose waits take no time, and are noted in seconds."""

    def __init__(self, meanwhile=lambda: None, **options):
        self.clock, self.meanwhile = FakeClock(), meanwhile
        self.policy = RetryPolicy(
            random=lambda: 0.0, monotonic=self.clock.monotonic, sleep=self._sleep, **options
        )

    def _sleep(self, seconds):
        assert 0 < seconds <= WAIT_SLICE_S
        self.meanwhile()
        self.clock.advance(seconds)

    @property
    def total_s(self):
        return round(self.clock.monotonic() - FakeClock().monotonic(), 6)


def failing(*failures):
    """An attempt that raises these, one after the other, and then returns 7."""
    left = list(failures)

    def attempt():
        if left:
            raise left.pop(0)
        return 7

    return attempt


# The policy.


def test_progress_begins_the_count_anew():
    retries = RetryPolicy(attempts_max=2, random=lambda: 0.0).begin()
    size = RetryPolicy().progress_size_min
    assert [retries.delay_s(UNREACHABLE, reached * size) for reached in (1, 2, 3, 3)] == [0.25] * 3 + [None]


def test_nobody_waits_longer_than_the_limit():
    clock = FakeClock()
    retries = RetryPolicy(elapsed_s_max=10.0, random=lambda: 0.0, monotonic=clock.monotonic).begin()
    assert retries.delay_s(PeerRejected(503, "busy", 5.0), 0) == 5.25
    clock.advance(5.25)
    assert retries.delay_s(PeerRejected(503, "busy", 5.0), 0) is None
    assert retries.delay_s(TransportError("it spoke strangely"), 0) == 1.0


def test_delays_are_spread_and_bounded():
    policy = RetryPolicy(random=random.Random(7).random)
    delays = [policy.delay_s(1) for _ in range(100)]
    assert 0.25 <= min(delays) < 0.3
    assert 0.45 < max(delays) <= 0.5
    assert 7.5 <= policy.delay_s(1000) <= 15.0


@pytest.mark.parametrize(
    ("error", "passing"),
    [
        (UNREACHABLE, True),
        (PeerRejected(503, "busy"), True),
        (PeerRejected(429, "slower"), True),
        (PeerRejected(507, "no room"), False),
        (PeerRejected(507, "no room", 10.0), True),
        (PeerRejected(404, "no such snapshot"), False),
        (PeerUntrusted("unknown ca"), False),
        (SnapshotCorrupt("ours"), False),
        (OSError(28, "full"), False),
    ],
    ids=repr,
)
def test_only_what_may_pass_is_tried_again(error, passing):
    waits = Waits()
    assert is_passing(error) == passing
    if passing:
        assert waits.policy.run(failing(error), Progress(), "it") == 7
    else:
        with pytest.raises(type(error)):
            waits.policy.run(failing(error), Progress(), "it")
    assert (waits.total_s > 0) == passing


@pytest.mark.parametrize(
    "options",
    [
        {"attempts_max": 0},
        {"delay_s_first": 0.0},
        {"delay_s_first": 2.0, "delay_s_max": 1.0},
        {"delay_s_max": math.nan},
        {"elapsed_s_max": 0.0},
        {"elapsed_s_max": math.nan},
        {"progress_size_min": 0},
    ],
    ids=str,
)
def test_a_policy_that_never_ends_or_never_waits_is_refused(options):
    with pytest.raises(ValueError, match=next(iter(options)).partition("_")[0]):
        RetryPolicy(**options)


def test_attempts_end_with_the_last_failure():
    waits = Waits(attempts_max=3)
    with pytest.raises(PeerUnreachable) as raised:
        waits.policy.run(failing(*map(PeerUnreachable, "abcd")), Progress(), "it")
    assert str(raised.value) == "c"
    assert waits.total_s == 0.75


def test_a_wait_is_cancelled_with_its_progress():
    progress = Progress()
    waits = Waits(progress.cancel)
    with pytest.raises(PeerRejected, match="busy"):
        waits.policy.run(failing(PeerRejected(503, "busy", 600.0)), progress, "it")
    assert waits.total_s == WAIT_SLICE_S


# The client.


def busy(status, seconds):
    return saying(answer(status, b'{"error": "busy"}', f"Retry-After: {seconds}"))


@pytest.mark.usefixtures("nothing_lost")
@pytest.mark.parametrize("status", [429, 503])
def test_a_peer_that_is_busy_is_obeyed_also_at_a_get(status):
    waits = Waits()
    with Impostors(busy(status, 40), saying(answer(200, b'{"snapshots": []}'))) as server:
        assert SnapshotClient(retry=waits.policy).list(server.url) == []
    assert waits.total_s == 40.25


@pytest.mark.usefixtures("nothing_lost")
def test_a_library_tries_once_unless_it_is_told_otherwise():
    with Impostors(busy(503, 40)) as server, pytest.raises(PeerRejected) as raised:
        SnapshotClient().list(server.url)
    assert raised.value.retry_after_s == 40.0


@pytest.mark.parametrize("kind", ["imaged", "written"])
def test_an_offer_that_a_busy_follower_refused_is_made_again(nothing_lost, tmp_path, kind):
    """Also of a stream that can be read only once: nothing of it was read yet."""
    refusals, waits = [PeerRejected(503, "restoring", 90), PeerRejected(503, "restoring")], Waits()

    def on_offer(offer):
        if refusals:
            raise refusals.pop()

    with Follower(tmp_path / "follower", on_offer=on_offer) as follower:
        stream = written() if kind == "written" else imaged(tmp_path, CONTENT)
        assert not push(follower, stream, retry=waits.policy).existed
        assert follower.directory.verify(META.index).path.read_bytes() == CONTENT
    assert waits.total_s == 90.75


def imaged(tmp_path, content):
    (tmp_path / "image").write_bytes(content)
    return SnapshotStream(META, ImagedSnapshot(tmp_path / "image"))


class CutLine:
    """A line that is cut behind each of these counts of chunks in turn, and then holds."""

    def __init__(self, line, *chunks):
        self._line, self._chunks = line, [*chunks, None]
        self._cut()

    def _cut(self):
        chunks = self._chunks.pop(0)
        self._line.cut_after(None if chunks is None else 1000 + chunks * (UNIT + 60))

    def policy(self):
        """A policy that lets the next cut come with each wait."""

        def sleep(seconds):
            self._cut()
            clock.advance(60.0)

        clock = FakeClock()
        return RetryPolicy(attempts_max=4, monotonic=clock.monotonic, sleep=sleep)


def test_a_send_over_a_line_that_breaks_goes_on_where_it_was(nothing_lost, tmp_path, follower):
    progress = Progress()
    with CuttingLine(follower.url) as line:
        cut = CutLine(line, 10, 10, 10)
        with imaged(tmp_path, LARGE) as stream:
            client = SnapshotClient(retry=cut.policy())
            sent = client.send_snapshot(line.url, stream, chunk_size=UNIT, progress=progress)
    assert sent.kept > 20 * UNIT
    assert follower.directory.verify(META.index).path.read_bytes() == LARGE
    assert progress.bytes > len(LARGE)


def test_a_stream_that_can_be_read_once_is_not_sent_twice(nothing_lost, follower):
    with CuttingLine(follower.url) as line, written(LARGE) as stream:
        cut = CutLine(line, 10)
        with pytest.raises(TransportError):
            SnapshotClient(retry=cut.policy()).send_snapshot(line.url, stream, chunk_size=UNIT)
    assert follower.indexes == []


def test_a_stream_that_is_closed_during_a_wait_says_why(nothing_lost, tmp_path):
    stream = imaged(tmp_path, CONTENT)
    waits = Waits(lambda: stream.revoke(StoreClosed("compacted")))
    with Impostors(busy(503, 600)) as server, stream, pytest.raises(StoreClosed, match="compacted"):
        SnapshotClient(retry=waits.policy).send_snapshot(server.url, stream)
    assert waits.total_s <= 2 * WAIT_SLICE_S


def test_a_fetch_over_a_line_that_breaks_goes_on_where_it_was(nothing_lost, tmp_path, follower):
    follower.directory.save_from(LARGE, META, chunk_size=UNIT)
    with LeakyLine(follower.url) as line, SnapshotDir(tmp_path / "target") as target:
        clock = FakeClock()
        policy = RetryPolicy(attempts_max=9, monotonic=clock.monotonic, sleep=clock.advance)
        saved = SnapshotClient(retry=policy).fetch(line.url, META.index, target)
    assert saved.path.read_bytes() == LARGE
    assert 1 < line.breaks < 9


class LeakyLine(CuttingLine):
    """A line that breaks whenever a quarter of LARGE has come back on one connection."""

    def __init__(self, url):
        self.breaks = 0
        super().__init__(url)

    def _pass_back(self, follower, leader):
        left = len(LARGE) // 4
        while left > 0 and (data := follower.recv(min(left, 65536))):
            leader.sendall(data)
            left -= len(data)
        self.breaks += left <= 0
        leader.shutdown(2)
