"""How many bytes a second all transfers move that share a throttle. No upper bound of time is asserted."""

from __future__ import annotations

import io
import os
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from paced import DATA, MIB, PIECE_SIZE, assert_paced, assert_shared, drain, send
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


def test_after_a_pause_nothing_gushes():
    throttle = Throttle(4 * MIB)
    send(Throttle(3 * MIB))  # A pause of a third of a second.
    assert_paced(send(throttle), MIB, 4 * MIB)


def test_many_share_one_rate(background):
    throttle = Throttle(8 * MIB)
    began_s = time.monotonic()
    for sent in [background(send, throttle) for _ in range(3)]:
        sent.result()
    assert_paced(time.monotonic() - began_s, 3 * MIB, 8 * MIB, transfers=3)


@pytest.mark.parametrize("rate", [None, 100 * MIB])
def test_a_change_counts_at_once_for_those_who_wait(background, rate):
    throttle, slower = Throttle(RATE_LIMIT_MIN), Progress()
    sent = background(send, throttle)
    while throttle.bytes < 2 * PIECE_SIZE:  # The second piece waits for 4 s.
        os.sched_yield()
    reference = background(send, Throttle(MIB // 2), progress=slower)
    throttle.rate = rate
    sent.result()
    assert not reference.done()
    slower.cancel()
    with pytest.raises(PipeClosed):
        reference.result()


def test_who_waits_can_be_stopped(background):
    throttle = Throttle(RATE_LIMIT_MIN)
    progress = Progress()
    sent = background(send, throttle, progress=progress)
    while not progress.bytes:
        os.sched_yield()
    progress.cancel()
    with pytest.raises(PipeClosed):
        sent.result()


@pytest.mark.slow
def test_beside_the_urgent_others_have_their_share_and_no_more(background):
    assert_shared(background, lambda throttle, low: send(throttle, DATA * 2, urgent=False, progress=low))


@pytest.mark.slow
def test_who_waits_long_for_its_turn_is_urgent_all_the_while(background):
    throttle = Throttle(640 * 1024)  # A turn every 0.4 s.
    urgent = background(send, throttle)
    while throttle.bytes < 2 * PIECE_SIZE:
        os.sched_yield()
    send(Throttle(900 * 1024), DATA[: 2 * PIECE_SIZE])  # A quarter of a second, in which it does not ask.
    low = Progress()
    patient = background(send, throttle, DATA, urgent=False, progress=low)
    urgent.result()
    assert low.bytes <= 2 * PIECE_SIZE  # One that went at once, and one that waits.
    low.cancel()
    with pytest.raises(PipeClosed):
        patient.result()


def test_nobody_waits_longer_than_with_the_lowest_limit_to_itself(background):
    throttle, progress = Throttle(RATE_LIMIT_MIN), Progress()
    first = background(send, throttle, progress=progress)
    while throttle.bytes < 2 * PIECE_SIZE:
        os.sched_yield()
    for urgent in (True, False) * 5:  # Each would wait for some seconds behind the one before it.
        send(throttle, DATA[:1024], urgent=urgent)
    assert progress.bytes == 2 * PIECE_SIZE
    progress.cancel()
    with pytest.raises(PipeClosed):
        first.result()


@pytest.mark.slow
def test_what_went_beyond_the_rate_for_that_reason_holds_nobody_back_later(background):
    throttle, count = Throttle(MIB), 32
    with ThreadPoolExecutor(count) as crowd:  # Half of the lowest limit for each.
        for sent in [crowd.submit(send, throttle, DATA[: 2 * PIECE_SIZE]) for _ in range(count)]:
            sent.result()
    slower = background(send, Throttle(MIB // 2))
    send(throttle)
    assert not slower.done()


def test_changes_of_the_rate_let_nothing_through(background):
    throttle, size = Throttle(MIB), 3 * PIECE_SIZE
    sent = background(send, throttle, DATA[:size])
    changes = 0
    while not sent.done():
        changes += 1
        throttle.rate = MIB + changes % 2
        os.sched_yield()
    assert_paced(sent.result(), size, MIB)
    assert changes > 10


@pytest.mark.parametrize("rate", [0, RATE_LIMIT_MIN - 1, -1, 10**16])
def test_a_rate_at_which_peers_give_up_is_refused(rate):
    throttle = Throttle(4 * MIB)
    with pytest.raises(ValueError, match="take a transfer for stalled"):
        throttle.rate = rate
    assert throttle.rate == 4 * MIB
