"""What a test of pacing asks: how much passed, and how much could at the most. No upper bound of time."""

from __future__ import annotations

import os
import socket
import threading
import time

from snapstore import _fastpipe
from snapstore._fastpipe import Progress, Throttle

MIB = 1024 * 1024
DATA = os.urandom(MIB)

#: What may pass at once: what was unused for a moment, and the piece that each transfer is at.
BURST_S = 0.05
PIECE_SIZE = 256 * 1024

#: What is left for the others beside what is urgent, in bytes/s: an eighth of the rate.
SHARE = MIB


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


def assert_paced(elapsed_s, size, rate, transfers=1):
    assert size <= rate * (elapsed_s + BURST_S) + transfers * PIECE_SIZE


def assert_shared(background, move):
    """`move(throttle, progress)`, which is not urgent, has its share beside what is, and comes to its end."""
    throttle = Throttle(8 * SHARE)
    urgent = background(send, throttle, DATA * 4)
    while not throttle.bytes:
        os.sched_yield()
    low, began_s = Progress(), time.monotonic()
    patient = background(move, throttle, low)
    urgent.result()
    passed, elapsed_s = low.bytes, time.monotonic() - began_s
    assert passed <= SHARE * (elapsed_s + BURST_S) + 2 * PIECE_SIZE
    patient.result()  # With all of it, when the urgent one was gone for a moment.
    assert throttle.bytes >= 4 * MIB + low.bytes
