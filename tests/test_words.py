"""Heads and short answers on a socket: all of them and in time, or an error that says what happened."""

import os
import socket
import threading

import pytest

from nodes import WAIT_S
from snapstore import _fastpipe

#: Silence long enough to be seen, short enough for a test.
SHORT_S = 0.05

#: More than two sockets hold.
LONG = bytes(64 * 1024 * 1024)


@pytest.fixture
def line():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def test_what_is_sent_is_received_and_then_the_end(line):
    ours, theirs = line
    _fastpipe.send_words(ours.fileno(), b"GET / HTTP/1.1\r\n", timeout_s=WAIT_S)
    ours.shutdown(socket.SHUT_WR)
    heard = [_fastpipe.receive_words(theirs.fileno(), timeout_s=WAIT_S) for _ in range(2)]
    assert heard == [b"GET / HTTP/1.1\r\n", b""]


def test_more_than_a_socket_holds_goes_as_it_is_taken(line, background):
    ours, theirs = line
    words = os.urandom(4 * 1024 * 1024)
    sending = background(_fastpipe.send_words, ours.fileno(), words, timeout_s=WAIT_S)
    heard = bytearray()
    while len(heard) < len(words):
        heard += _fastpipe.receive_words(theirs.fileno(), timeout_s=WAIT_S)
    sending.result(WAIT_S)
    assert heard == words


def test_a_peer_that_says_nothing_is_waited_for_so_long(line):
    with pytest.raises(TimeoutError):
        _fastpipe.receive_words(line[0].fileno(), timeout_s=SHORT_S)


def test_a_peer_that_takes_nothing_is_waited_for_so_long(line):
    with pytest.raises(TimeoutError):
        _fastpipe.send_words(line[0].fileno(), LONG, timeout_s=SHORT_S)


def test_a_peer_that_takes_byte_by_byte_gains_no_time_by_it(line):
    """It has room now and then, so that no single wait is too long."""
    ours, theirs = line
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)  # The least that the system has.

    def sip():
        while theirs.recv(1):
            pass

    sipping = threading.Thread(target=sip)
    sipping.start()
    try:
        with pytest.raises(TimeoutError):
            _fastpipe.send_words(ours.fileno(), bytes(1024 * 1024), timeout_s=SHORT_S)
    finally:
        theirs.shutdown(socket.SHUT_RD)
        sipping.join()


def test_who_waits_is_woken_where_the_line_is_cut(line, background):
    ours = line[0]
    receiving = background(_fastpipe.receive_words, ours.fileno(), timeout_s=2 * WAIT_S)
    ours.shutdown(socket.SHUT_RDWR)
    assert receiving.result(WAIT_S) == b""


def test_a_peer_that_left_is_an_error(line):
    ours, theirs = line
    theirs.close()
    with pytest.raises(ConnectionError):
        _fastpipe.send_words(ours.fileno(), LONG, timeout_s=WAIT_S)
    for call in (
        lambda: _fastpipe.send_words(-1, b"words", timeout_s=WAIT_S),
        lambda: _fastpipe.receive_words(-1, timeout_s=WAIT_S),
    ):
        with pytest.raises(OSError, match="Bad file descriptor"):
            call()


@pytest.mark.parametrize("timeout_s", [0, -1, float("nan")])
def test_a_time_that_is_none_is_refused(line, timeout_s):
    for call in (_fastpipe.receive_words, lambda fd, **time: _fastpipe.send_words(fd, b"words", **time)):
        with pytest.raises(ValueError, match=r"^timeout_s must be above 0"):
            call(line[0].fileno(), timeout_s=timeout_s)
