"""How many bytes a second all transfers move that share a throttle. No upper bound of time is asserted."""

from __future__ import annotations

import io
import os
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from snapstore import _fastpipe
from snapstore._fastpipe import RATE_LIMIT_MIN, Progress, Throttle
from snapstore.errors import PipeClosed

MIB = 1024 * 1024
DATA = os.urandom(MIB)

#: What may pass at once: what was unused for a moment, and the piece that each transfer is at.
BURST_S = 0.05
PIECE_SIZE = 256 * 1024


@pytest.fixture
def background():
    with ThreadPoolExecutor() as pool:
        yield pool.submit


def drain(sock):
    with sock:
        while sock.recv(MIB):
            pass


def send(throttle, data=DATA, **options):
    """Send `data` to somebody who takes all; the seconds that it took."""
    near, far = socket.socketpair()
    thread = threading.Thread(target=drain, args=(far,))
    thread.start()
    began_s = time.monotonic()
    try:
        with near:
            assert _fastpipe.send(data, near.fileno(), throttle=throttle, **options) == len(data)
            return time.monotonic() - began_s
    finally:
        thread.join()


def save(throttle, source, tmp_path, **options):
    with open(tmp_path / "saved", "wb") as file:
        return _fastpipe.save(source, file.fileno(), throttle=throttle, **options)


def assert_paced(elapsed_s, size, rate, transfers=1):
    assert size <= rate * (elapsed_s + BURST_S) + transfers * PIECE_SIZE


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
    throttle = Throttle(16 * MIB, share_min=MIB)
    urgent = background(send, throttle, DATA * 8)
    while not throttle.bytes:
        os.sched_yield()
    low, began_s = Progress(), time.monotonic()
    patient = background(send, throttle, DATA * 2, urgent=False, progress=low)
    urgent.result()
    passed, elapsed_s = low.bytes, time.monotonic() - began_s
    assert passed <= MIB * (elapsed_s + BURST_S) + 2 * PIECE_SIZE
    patient.result()  # With all of it, when the urgent one was gone for a moment.
    assert throttle.bytes == 10 * MIB


@pytest.mark.parametrize("rate", [0, RATE_LIMIT_MIN - 1, -1, 10**16])
def test_a_rate_at_which_peers_give_up_is_refused(rate):
    throttle = Throttle(4 * MIB)
    with pytest.raises(ValueError, match="take a transfer for stalled"):
        throttle.rate = rate
    with pytest.raises(ValueError, match="take a transfer for stalled"):
        Throttle(share_min=rate)
    assert throttle.rate == 4 * MIB
