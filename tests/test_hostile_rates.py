"""Peers just below and just above the least rate: those are cut in time, these are served.

Such a peer is never silent for long. What is silent is test_hostile_peers.py's.
"""

from __future__ import annotations

import contextlib
import logging
import select

import pytest

from bystander import (
    GOOD_INDEX,
    assert_nothing_but_the_good,
    assert_one_line,
    hostile_lines,
    met,
    push_the_good,
)
from nodes import META, UNIT, Follower, RawPeer, frames, put_head
from snapstore.transport.patience import Deadlines
from snapstore.wire import pack_data

pytestmark = pytest.mark.usefixtures("nothing_lost")

#: For the tests of the least rate, in bytes/s, and the time over which it is measured.
RATE_MIN = 20_000
WINDOW_S = 0.25

#: How often a slow peer does something, in seconds.
BEAT_S = 0.02

#: More than the sockets of both sides hold, so that a reader's pace is seen by who writes.
LARGE = bytes(32 * 1024 * 1024)


def answered(peer, within_s):
    """Wait so long for the other side to answer or to leave; whether it did."""
    line = select.poll()
    line.register(peer.socket, select.POLLIN | select.POLLRDHUP)
    return bool(line.poll(within_s * 1000))


def trickle(peer, body, rate):
    """Say `body` at so many bytes/s, until it is said or answered; whether it was answered."""
    piece = round(rate * BEAT_S)
    for at in range(0, len(body), piece):
        peer.say(body[at : at + piece])
        if answered(peer, BEAT_S):
            return True
    return False


@pytest.fixture
def measuring(nothing_lost, tmp_path):
    """A follower that asks for a least rate."""
    with Follower(
        tmp_path / "follower", deadlines=Deadlines(idle_timeout_s=WINDOW_S, rate_min=RATE_MIN)
    ) as follower:
        yield follower


@pytest.mark.parametrize(
    "data", [b"", pytest.param(bytes(10 * UNIT), marks=pytest.mark.slow)], ids=["chunks", "data"]
)
@pytest.mark.parametrize(
    "size_known", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["sized", "unsized"]
)
@pytest.mark.parametrize(
    ("factor", "status"), [(0.5, 408), (0.9, 408), (3, 201)], ids=["half", "below", "above"]
)
def test_a_push_below_the_least_rate_counts_as_silent(
    measuring, caplog, background, factor, status, size_known, data
):
    """Never silent for long, and too slow all the same: a place is not kept by a byte now and then."""
    caplog.set_level(logging.INFO)
    content = bytes(5 * UNIT)
    changes = {"Snapstore_Data_Size": str(len(data)) if data else None}
    body = pack_data(data) + frames(content)
    if size_known:
        changes["Content_Length"] = str(len(body))
    else:
        changes |= {"Content_Length": None, "Snapstore_Size": None, "Transfer_Encoding": "chunked"}
        body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    with RawPeer(measuring.url) as peer:
        pushed = background(push_the_good, measuring)
        peer.say(put_head(content, **changes))
        peer.hear_continue()
        pushed.result()
        if status == 201:
            trickle(peer, body, factor * RATE_MIN)
        else:  # In the first part already: that of the data, where there is some.
            assert trickle(peer, body[: len(data) or None], factor * RATE_MIN)
        assert peer.hear()[0] == status
    measuring.server.close()
    if status == 201:
        assert measuring.indexes == [GOOD_INDEX, META.index]
    else:
        assert_nothing_but_the_good(measuring)
        assert_one_line(caplog, "refused")
        met("rates")


@pytest.mark.parametrize(("factor", "whole"), [(0.2, False), (4, True)], ids=["below", "above"])
def test_a_reader_below_the_least_rate_is_cut(tmp_path, caplog, factor, whole):
    """What the sockets hold comes at once; then the reader's pace is all that moves."""
    rate_min = len(LARGE)  # In bytes/s: at four times that, all is read in a quarter of a second.
    caplog.set_level(logging.INFO)
    options = {"deadlines": Deadlines(idle_timeout_s=WINDOW_S, rate_min=rate_min)}
    with Follower(tmp_path / "follower", **options) as follower, RawPeer(follower.url) as peer:
        follower.directory.save_from(LARGE, GOOD_INDEX)
        peer.say(b"GET /v1/snapshots/%d HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" % GOOD_INDEX)
        heard, piece, cut = 0, round(factor * rate_min * BEAT_S), select.poll()
        cut.register(peer.socket, select.POLLRDHUP)
        with contextlib.suppress(ConnectionError):
            while data := peer.socket.recv(piece):
                heard += len(data)
                cut.poll(0 if whole else BEAT_S * 1000)
    assert (heard > len(LARGE)) == whole
    assert len(hostile_lines(caplog)) == (not whole)
    if not whole:
        assert_one_line(caplog)
        met("rates")
