"""Hostile servers against a push and a list: one clear error in bounded time.

What a client is told by a server that merely leaves or says no is test_transport_client.py's; lies
about what is fetched are test_hostile_images.py's.
"""

from __future__ import annotations

import json

import pytest

from impostors import (
    HINT,
    Impostors,
    answer,
    assert_distinct,
    hanging,
    impatient,
    leaving,
    no_answers,
    outcome,
    saying,
    table,
    without_end,
)
from nodes import CONTENT, CONTINUE, UNIT, Follower, endless, push, read_head, written
from snapstore import _fastpipe
from snapstore.errors import PeerRejected, PeerUnreachable, TransportError
from snapstore.transport.http import SnapshotClient

pytestmark = pytest.mark.usefixtures("nothing_lost")

#: Nobody is busy for longer.
RETRY_AFTER_S_MAX = 3600

YES = json.dumps(
    {"index": 7, "size": len(CONTENT), "digest": "crc32c:00000000", "existed": False, "sync_s": 0.1}
).encode()


def in_the_middle(said):
    """Let the body begin, and answer while it still comes."""

    def behave(connection, done):
        read_head(connection)
        connection.sendall(CONTINUE)
        connection.recv(1000)
        connection.sendall(said)
        while connection.recv(65536):
            pass

    return behave


def bad_answers_to_a_push():
    """(name, what it does): answers that are none to an offer, before, in or after the body."""
    yield "go on, then silent", hanging(CONTINUE)
    yield "go on, then gone", leaving(CONTINUE)
    yield "go on, then reset", leaving(CONTINUE, reset=True)
    yield "go on, 1,000 times", hanging(CONTINUE * 1000)
    yield "go on, without an end", without_end(b"", CONTINUE)
    yield "go on, with a body", saying(b"HTTP/1.1 100 Continue\r\nContent-Length: 5\r\n\r\nhello")
    for name, said in {
        "garbage": bytes(100) + b"\r\n\r\n",
        "a yes": answer(201, YES),
        "a no": answer(413, b'{"error": "too large"}'),
        "half an answer": answer(413, b"{")[:20],
        "hints without an end": HINT * 10_000,
    }.items():
        yield f"{name} in the middle", in_the_middle(said)
    for status in (200, 201):
        for name, body in {
            "nothing": b"",
            "a list": b"[]",
            "a number": b"7",
            "null": b"null",
            "half an object": YES[:-1],
            "two objects": YES * 2,
            "another index": YES.replace(b'"index": 7', b'"index": 8'),
            "an index of 2^64 more": YES.replace(b'"index": 7', b'"index": %d' % (7 + 2**64)),
            "no digest": YES.replace(b"digest", b"digset"),
            "a digest that is none": YES.replace(b'"crc32c:00000000"', b"0"),
            "another digest": YES,
            "latin-1": YES.replace(b"digest", b"d\xefgest"),
            "zeros": bytes(1000),
            "brackets": b"[" * 100_000,
            "a long number": b"9" * 100_000,
        }.items():
            yield f"{status} with {name}", saying(answer(status, body))
            yield f"{status} with {name}, after the go on", saying(CONTINUE, answer(status, body))
    for name, words in {
        "a long reason": "x" * 100_000,
        "a reason of several lines": "no\nWARNING all is well",
        "a reason for terminals": "\x1b[2J\x1b]0;owned\x07",
        "a reason that is none": [["no"] * 1000],
    }.items():
        yield name, saying(answer(507, json.dumps({"error": words}).encode()))
        yield f"{name} in a yes", saying(answer(200, json.dumps({"error": words}).encode()))
    for seconds in ("9" * 400, "9" * 5000, "-1", "1e9", "\xb2", "inf", "Thu, 01 Jan 99999 00:00:00 GMT"):
        yield (
            f"come again after {seconds[:5]!r}, {len(seconds)}",
            saying(answer(503, b"{}", f"Retry-After: {seconds}")),
        )
    for status in (202, 204, 226, 301, 304, 308, 401, 407, 417, 426, 500, 599, 999):
        yield f"status {status}", saying(answer(status, YES, "Location: http://127.0.0.1:1/"))
    for offset in (
        "1",
        str(UNIT),
        str(len(CONTENT)),
        "-1",
        "x",
        str(2**63),
        str(2**64 - 1),
        str(2**64),
        "9" * 400,
    ):
        kept = f"HTTP/1.1 100 Continue\r\nSnapstore-Offset: {offset}\r\n\r\n".encode()
        yield f"a kept prefix of {offset[:30]}", hanging(kept)
    kept = b"HTTP/1.1 100 Continue\r\nSnapstore-Offset: %d\r\n\r\n" % (2**62)
    yield "a kept prefix beyond all sizes, then gone", leaving(kept)


@table(*no_answers(), *bad_answers_to_a_push())
@pytest.mark.parametrize(
    "stream", [written, pytest.param(endless, marks=pytest.mark.slow)], ids=["sized", "endless"]
)
def test_a_push_to_a_hostile_server_ends_with_one_error(behave, stream):
    with stream() as snapshot:
        error = outcome(lambda url: impatient().send_snapshot(url, snapshot, chunk_size=UNIT), behave)
    assert isinstance(error, TransportError)
    # Who waits as long as he is told to must not wait for ever.
    assert (getattr(error, "retry_after_s", None) or 0) <= RETRY_AFTER_S_MAX


@table(*no_answers())
def test_a_list_from_a_hostile_server_ends_with_one_error(behave):
    assert isinstance(outcome(impatient().list, behave), TransportError)


def test_the_lies_are_refused_for_themselves_alone():
    """What the table bends is taken when it is not bent."""
    digest = b"crc32c:%08x" % _fastpipe.crc32c_portable(CONTENT)

    def behave(connection, done):
        read_head(connection)
        connection.sendall(HINT * 5 + CONTINUE)
        heard = b""
        while not heard.endswith(b"\r\n0\r\n\r\n"):
            heard += connection.recv(65536)
        connection.sendall(answer(201, YES.replace(b"crc32c:00000000", digest)))

    with Impostors(behave) as server, written() as stream:
        assert SnapshotClient().send_snapshot(server.url, stream, chunk_size=UNIT).size == len(CONTENT)


def test_the_tables_name_each_server_once():
    assert_distinct(*no_answers(), *bad_answers_to_a_push())


def test_a_leader_that_met_a_hostile_server_sends_to_a_good_one(tmp_path):
    """The stream is as it was where nothing was read of it, and another attempt is a new one."""
    with (
        pytest.raises(PeerUnreachable),
        Impostors(leaving(CONTINUE, reset=True)) as server,
        endless() as stream,
    ):
        SnapshotClient().send_snapshot(server.url, stream)
    with pytest.raises(PeerRejected), Impostors(saying(answer(503))) as server, written() as stream:
        SnapshotClient().send_snapshot(server.url, stream)
    with Follower(tmp_path / "follower") as follower:
        assert not push(follower, written()).existed
