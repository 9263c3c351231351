"""How many bytes a second all transfers move that share a throttle. No upper bound of time is asserted."""

from __future__ import annotations

import io
import os
import socket
import threading
import time

import pytest

from paced import DATA, MIB, assert_paced, assert_shared, drain, send
from snapstore import _fastpipe
from snapstore._fastpipe import RATE_LIMIT_MIN, Progress, Throttle
from snapstore.errors import PipeClosed


def save(throttle, source, tmp_path, **options):
    with open(tmp_path / "saved", "wb") as file:
        return _fastpipe.save(source, file.fileno(), throttle=throttle, **options)


def test_without_a_limit_nobody_waits():
    throttle = Throttle()
    send(throttle)
    assert (throttle.rate, throttle.waited_s, throttle.bytes) == (None, 0.0, MIB)


def test_what_is_sent_keeps_to_the_rate():
    throttle = Throttle(4 * MIB)
    assert_paced(send(throttle), MIB, 4 * MIB)
    assert throttle.waited_s > 0
    assert throttle.bytes == MIB


def test_frames_keep_to_the_rate():
    throttle = Throttle(4 * MIB)
    near, far = socket.socketpair()
    thread = threading.Thread(target=drain, args=(far,))
    thread.start()
    began_s = time.monotonic()
    with near:
        _fastpipe.send_frames(DATA, near.fileno(), size=MIB, chunk_size=MIB // 2, throttle=throttle)
    elapsed_s = time.monotonic() - began_s
    thread.join()
    assert_paced(elapsed_s, MIB, 4 * MIB)
    assert throttle.bytes > MIB  # Heads and digests count, too.


@pytest.mark.parametrize("kind", ["memory", "file", "reader"])
def test_what_is_saved_keeps_to_the_rate(tmp_path, kind):
    (tmp_path / "source").write_bytes(DATA)
    throttle = Throttle(4 * MIB)
    with open(tmp_path / "source", "rb", buffering=0) as file:
        source = {"memory": DATA, "file": file.fileno(), "reader": io.BytesIO(DATA)}[kind]
        began_s = time.monotonic()
        assert save(throttle, source, tmp_path).size == MIB
    assert_paced(time.monotonic() - began_s, MIB, 4 * MIB)
    assert (tmp_path / "saved").read_bytes() == DATA


def test_frames_are_saved_at_the_rate(tmp_path, background):
    throttle = Throttle(4 * MIB)
    near, far = socket.socketpair()
    with near, far:
        shape = {"size": MIB, "chunk_size": MIB // 2}
        sent = background(_fastpipe.send_frames, DATA, near.fileno(), http_chunked=True, **shape)
        body = _fastpipe.Body(far.fileno(), b"", None)
        frames = _fastpipe.Frames(body, **shape)
        sent.add_done_callback(lambda _: near.shutdown(socket.SHUT_WR))
        began_s = time.monotonic()
        saved = save(throttle, frames, tmp_path, **shape)
        assert_paced(time.monotonic() - began_s, MIB, 4 * MIB)
        assert saved.digest == sent.result().digest
    assert throttle.bytes == MIB


def test_many_share_one_rate(background):
    throttle = Throttle(8 * MIB)
    began_s = time.monotonic()
    for sent in [background(send, throttle) for _ in range(3)]:
        sent.result()
    assert_paced(time.monotonic() - began_s, 3 * MIB, 8 * MIB, transfers=3)


def test_a_change_counts_at_once_for_those_who_wait(background):
    throttle = Throttle(RATE_LIMIT_MIN)  # A MiB takes 16 s.
    progress = Progress()
    sent = background(send, throttle, progress=progress)
    while not progress.bytes:
        os.sched_yield()
    throttle.rate = None
    assert sent.result() < 10


def test_who_waits_can_be_stopped(background):
    throttle = Throttle(RATE_LIMIT_MIN)
    progress = Progress()
    sent = background(send, throttle, progress=progress)
    while not progress.bytes:
        os.sched_yield()
    progress.cancel()
    with pytest.raises(PipeClosed):
        sent.result()


def test_beside_the_urgent_others_have_their_share_and_no_more(background):
    assert_shared(background, lambda throttle, low: send(throttle, DATA * 2, urgent=False, progress=low))


@pytest.mark.parametrize("rate", [0, RATE_LIMIT_MIN - 1, -1, 10**16])
def test_a_rate_at_which_peers_give_up_is_refused(rate):
    throttle = Throttle(4 * MIB)
    with pytest.raises(ValueError, match="take a transfer for stalled"):
        throttle.rate = rate
    with pytest.raises(ValueError, match="take a transfer for stalled"):
        Throttle(share_min=rate)
    assert throttle.rate == 4 * MIB
