"""Servers that lie, stall or never end: what each does with a connection, and a table of such.

What is no answer, whatever was asked, stands here; the rest with the tests of what was asked.
"""

from __future__ import annotations

import threading
import time

import pytest

from bystander import met
from nodes import WAIT_S, Impostor, read_head, reset_at_close, saying
from snapstore.errors import SnapshotCorrupt, SnapshotTooLarge, TransportError
from snapstore.transport.http import SnapshotClient
from snapstore.transport.patience import Deadlines

#: A short time that a test has to wait out, and the patience of these clients.
SHORT_S = 0.15

#: Far above their patience, and far below for ever.
ENDED_S_MAX = 15.0

#: An error is read by people, in logs and on terminals, whatever the peer said.
ERROR_SIZE_MAX = 1000

HINT = b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


class Impostors(Impostor):
    """An impostor for several connections, one after the other; each has a behaviour of its own.

    A behaviour is called with its connection and an event that is set when the client is done.
    """

    def __init__(self, *behaviours):
        self.done = threading.Event()
        super().__init__(behaviours)

    def _run(self, behaviours):
        for behave in behaviours:
            super()._run(lambda connection, behave=behave: behave(connection, self.done))


def answer(status, body=b"", *lines, length=None):
    length = len(body) if length is None else length
    head = [f"HTTP/1.1 {status} Words", f"Content-Length: {length}", *lines, "", ""]
    return "\r\n".join(head).encode("latin-1") + body


def hanging(*parts):
    """Hear the head, say this, and then neither read nor speak."""

    def behave(connection, done):
        read_head(connection)
        for part in parts:
            connection.sendall(part)
        assert done.wait(WAIT_S)

    return behave


def leaving(*parts, reset=False):
    """Hear the head, say this, and be gone."""

    def behave(connection, done):
        read_head(connection)
        for part in parts:
            connection.sendall(part)
        if reset:
            reset_at_close(connection)

    return behave


def without_end(opening, again):
    """Hear the head, say `opening`, and then `again` for as long as somebody takes it."""

    def behave(connection, done):
        read_head(connection)
        connection.sendall(opening)
        while True:
            connection.sendall(again)

    return behave


def dripping(opening, again):
    """Hear the head, say `opening`, and then `again` in single bytes, often enough not to be silent."""

    def behave(connection, done):
        read_head(connection)
        connection.sendall(opening)
        until = time.monotonic() + ENDED_S_MAX
        while not done.wait(SHORT_S / 8) and time.monotonic() < until:
            connection.sendall(again)

    return behave


def no_answers():
    """(name, what it does): what is no answer to anything, whatever was asked."""
    yield "silent", hanging()
    yield "silent in its head", hanging(b"HTTP/1.1 200 OK\r\nX: ")
    yield "silent in its body", hanging(answer(200, b"{", length=100))
    yield "silent in a chunk's size", hanging(CHUNKED + b"1")
    yield "leaves", leaving()
    yield "leaves in its head", leaving(b"HTTP/1.1 200 OK\r\n")
    yield "leaves in its body", leaving(answer(200, b"{", length=100))
    yield "leaves in a chunk", leaving(CHUNKED + b"5\r\n{")
    yield "leaves before the last chunk", leaving(CHUNKED + b"2\r\n{}\r\n")
    yield "resets", leaving(reset=True)
    yield "resets in its head", leaving(b"HTTP/1.1 200 OK\r\n", reset=True)
    yield "1,000 informational heads", hanging(HINT * 1000)
    yield "informational heads without an end", without_end(b"", HINT)
    yield "informational heads in one line each", without_end(b"", b"HTTP/1.1 102 .\r\n\r\n" * 100)
    yield "a header without an end", without_end(b"HTTP/1.1 200 OK\r\nX: ", b"x" * 4096)
    yield "headers without an end", without_end(b"HTTP/1.1 200 OK\r\n", b"X: y\r\n" * 100)
    yield "a line without an end", without_end(b"HTTP/1.1 200 ", b"O" * 4096)
    yield "JSON without an end", without_end(CHUNKED, b"1000\r\n" + b"[" * 4096 + b"\r\n")
    yield "JSON of 2^62", without_end(answer(200, b'{"error": "', length=2**62), b"x" * 4096)
    yield "JSON of 2^62 that says no", without_end(answer(500, b'{"error": "', length=2**62), b"x" * 4096)
    yield "a chunk's extension without an end", without_end(CHUNKED + b"1;", b"x" * 4096)
    yield "a trailer without an end", without_end(CHUNKED + b"2\r\n{}\r\n0\r\n", b"X: y\r\n" * 100)
    yield "zeros without an end", without_end(b"", bytes(4096))
    yield "lines without an end", without_end(b"", b"\r\n" * 100)
    yield "JSON that drips", dripping(CHUNKED, b"1\r\n[\r\n")
    yield "a head that drips", dripping(b"HTTP/1.1 200 OK\r\nX: ", b"x")
    for length in (
        "2",
        "-1",
        "+2",
        "0x2",
        "2 2",
        "1, 2",
        "2^2",
        str(2**63),
        str(2**64),
        "9" * 5000,
        "\xb2",
        "",
    ):
        yield f"length {length[:30]!r}", hanging(answer(200, b"{", length=length))
    for name, lines in {
        "both lengths": "Transfer-Encoding: chunked",
        "two lengths": "Content-Length: 3",
        "coding xchunked": "Transfer-Encoding: xchunked",
        "coding gzip, chunked": "Transfer-Encoding: gzip, chunked",
        "a folded line": "X: y\r\n z",
        "a bare LF": "X: y\nContent-Length: 3",
        "a bare CR": "X: y\rz",
        "a NUL": "X: y\0z",
        "a space before a colon": "X : y",
        "no colon": "X",
        "a field of ours twice": "Snapstore-Term: 1\r\nSnapstore-Term: 2",
    }.items():
        yield name, saying(answer(200, b"{}", lines))
    for size in (
        b"-2",
        b"+2",
        b"0x2",
        b" 2",
        b"g",
        b"",
        b"%x" % 2**63,
        b"%x" % 2**64,
        b"0" * 400,
        b"1",
        b"3",
    ):
        yield f"chunk size {size[:30].decode()!r}", hanging(CHUNKED + size + b"\r\n{}\r\n0\r\n\r\n")
    for name, line in {
        "HTTP/2": b"HTTP/2 200\r\n\r\n",
        "HTTP/0.9": b"<h1>200</h1>\r\n\r\n",
        "status 99": b"HTTP/1.1 99 Words\r\n\r\n",
        "status 1000": b"HTTP/1.1 1000 Words\r\n\r\n",
        "status in letters": b"HTTP/1.1 2OO Words\r\n\r\n",
        "no status": b"HTTP/1.1 \r\n\r\n",
        "a request": b"PUT /v1/snapshots/7 HTTP/1.1\r\nHost: x\r\n\r\n",
        "a TLS alert": b"\x15\x03\x01\x00\x02\x02\x46",
        "SSH": b"SSH-2.0-OpenSSH_9.2p1\r\n",
        "an HTTP/2 frame": bytes((0, 0, 0, 4, 0, 0, 0, 0, 0)),
        "another protocol agreed on": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\n\r\n",
    }.items():
        yield name, leaving(line)


def impatient():
    """A client that waits a short time for everything."""
    names = ["connect_timeout_s", "offer_timeout_s", "idle_timeout_s", "fsync_timeout_s"]
    return SnapshotClient(deadlines=Deadlines(**dict.fromkeys(names, SHORT_S)))


def outcome(call, *behaviours):
    """What `call(url)` raises against these behaviours, and that it does so in bounded time."""
    with Impostors(*behaviours) as server:
        began = time.monotonic()
        try:
            with pytest.raises((TransportError, SnapshotCorrupt, SnapshotTooLarge)) as raised:
                call(server.url)
        finally:
            server.done.set()
    assert time.monotonic() - began < ENDED_S_MAX
    assert str(raised.value).isprintable()
    assert len(str(raised.value)) <= ERROR_SIZE_MAX
    met("servers")
    return raised.value


def table(*rows):
    """The parameters of a test: each row's behaviour, under its name."""
    return pytest.mark.parametrize("behave", [pytest.param(row, id=name) for name, row in rows])


def assert_distinct(*rows):
    """Each row has a name of its own."""
    found = [name for name, _ in rows]
    assert sorted(set(found)) == sorted(found)
