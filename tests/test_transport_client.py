"""The leader's side of peers that leave, stall, or speak otherwise: one clear error, in bounded time."""

from __future__ import annotations

import json
import os
import threading

import pytest

from nodes import (
    CONTENT,
    CONTINUE,
    UNIT,
    Impostor,
    endless,
    read_head,
    saying,
    written,
)
from snapstore.directory import SnapshotDir
from snapstore.errors import PeerRejected, PeerUnreachable, TransportError
from snapstore.transport.http import SnapshotClient
from snapstore.transport.patience import Deadlines

ANSWER = {"index": 7, "size": len(CONTENT), "digest": "crc32c:00000000", "existed": True, "sync_s": 0.1}

#: A short time that a test has to wait out.
SHORT_S = 0.15


pytestmark = pytest.mark.usefixtures("nothing_lost")


def answer(status, body, *lines):
    head = [f"HTTP/1.1 {status} Words", f"Content-Length: {len(body)}", *lines, "", ""]
    return "\r\n".join(head).encode() + body


def send(url, stream=None, **timeouts):
    with stream or written() as stream:
        return SnapshotClient(deadlines=Deadlines(**timeouts)).send_snapshot(url, stream, chunk_size=UNIT)


def outcome(behave, stream=None, **timeouts):
    with Impostor(behave) as peer, pytest.raises(TransportError) as raised:
        send(peer.url, stream, **timeouts)
    return raised.value


def test_nobody_there_is_unreachable(tmp_path):
    for url in (f"http+unix://{str(tmp_path).replace('/', '%2F')}%2Fnobody", "http://127.0.0.1:1"):
        with pytest.raises(PeerUnreachable, match="cannot be reached"):
            send(url)


def test_a_peer_that_leaves_without_an_answer_is_unreachable():
    assert isinstance(outcome(lambda connection: None), PeerUnreachable)
    assert isinstance(outcome(read_head), PeerUnreachable)


def test_a_peer_that_leaves_in_the_middle_is_unreachable():
    def behave(connection):
        read_head(connection)
        connection.sendall(CONTINUE)
        connection.recv(1000)

    assert isinstance(outcome(behave, endless()), PeerUnreachable)


@pytest.mark.parametrize(
    ("said", "stream"),
    [(b"", written), (b"HTTP/1.1 100 C", written), (CONTINUE, endless), (CONTINUE, written)],
    ids=["at the offer", "in a head", "in the body", "at the answer"],
)
def test_a_peer_that_falls_silent_is_unreachable(said, stream):
    def behave(connection):
        read_head(connection)
        connection.sendall(said)
        assert done.wait(20)

    done = threading.Event()
    with Impostor(behave) as peer:
        short = dict.fromkeys(
            ["offer_timeout_s", "idle_timeout_s", "connect_timeout_s", "fsync_timeout_s"], SHORT_S
        )
        with pytest.raises(PeerUnreachable, match="fell silent"):
            send(peer.url, stream(), **short)
        done.set()


@pytest.mark.parametrize("garbage", [b"220 mail.example.org ESMTP\r\n\r\n", b"\0" * 100 + b"\r\n\r\n"])
def test_a_peer_that_speaks_something_else_is_named(garbage):
    assert "does not speak our HTTP" in str(outcome(saying(garbage)))
    assert "does not speak our HTTP" in str(outcome(saying(CONTINUE, garbage)))


def test_a_head_without_an_end_is_not_read_for_ever():
    assert "does not speak our HTTP" in str(outcome(saying(b"HTTP/1.1 200 OK\r\n", b"X: y\r\n" * 50_000)))


def test_an_answer_without_an_end_is_not_read_for_ever():
    def behave(connection):
        read_head(connection)
        connection.sendall(b"HTTP/1.1 500 Words\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            connection.sendall(b"1000\r\n" + bytes(4096) + b"\r\n")

    assert "more than 1048576 bytes" in str(outcome(behave))


@pytest.mark.parametrize("length", ["99999999999999999999", "9" * 5000, "-1", "9223372036854775807"])
def test_an_absurd_length_is_a_transport_error(length):
    said = f"HTTP/1.1 500 Words\r\nContent-Length: {length}\r\n\r\n".encode()
    assert str(outcome(saying(said), idle_timeout_s=SHORT_S))


def test_an_answer_that_breaks_off_is_a_transport_error():
    def behave(connection):
        read_head(connection)
        connection.sendall(answer(503, b"{}" * 50)[:-1])

    assert "broke off" in str(outcome(behave))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"saved",
        b"{}",
        b"[" * 100_000,
        json.dumps(ANSWER | {"index": 8}).encode(),
        json.dumps(ANSWER | {"size": "13"}).encode(),
        json.dumps(ANSWER | {"digest": None}).encode(),
        json.dumps(ANSWER | {"existed": 0}).encode(),
    ],
)
def test_a_yes_in_other_words_is_no_yes(body):
    assert "not one to this offer" in str(outcome(saying(answer(200, body))))


def test_a_yes_before_the_body_counts_only_for_what_existed():
    with Impostor(saying(answer(200, json.dumps(ANSWER | {"news": 1}).encode()))) as peer:
        assert send(peer.url).existed
    claim = answer(201, json.dumps(ANSWER | {"existed": False}).encode())
    assert "claims to have saved" in str(outcome(saying(CONTINUE + claim)))
    assert "claims to have saved" in str(outcome(saying(CONTINUE, claim)))


def test_informational_answers_are_passed_over():
    said = [b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n", CONTINUE, CONTINUE]
    error = outcome(saying(*said, answer(503, b'{"error":"busy"}', "Retry-After: 7")), endless())
    assert (error.status, error.reason, error.retry_after_s) == (503, "busy", 7.0)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b'{"error":"in words"}', "in words"),
        (b"<h1>Bad Gateway</h1>", "<h1>Bad Gateway</h1>"),
        (b"\xff\xfe", "\ufffd\ufffd"),
        (b"", "no reason given"),
        (b"{}", "no reason given"),
        (b"x" * 10_000, "x" * 200),
    ],
)
@pytest.mark.parametrize("status", [301, 404, 502])
def test_a_no_in_any_words_is_a_rejection_and_redirects_are_not_followed(status, body, reason):
    location = "Location: http://127.0.0.1:1/"
    error = outcome(saying(answer(status, body, location, "Retry-After: Wed, 21 Oct 2015 07:28:00 GMT")))
    assert isinstance(error, PeerRejected)
    assert (error.status, error.reason, error.retry_after_s) == (status, reason, None)


@pytest.mark.parametrize("listed", [b"{}", b'{"snapshots": 7}', b'{"snapshots": [7]}'])
def test_a_list_that_is_none_is_a_transport_error(listed):
    with Impostor(saying(answer(200, listed))) as peer, pytest.raises(TransportError, match="list of snap"):
        SnapshotClient().list(peer.url)


def test_a_manifest_that_is_none_leaves_nothing(tmp_path):
    for body in (b"{}", b"", b"x" * 100):
        with Impostor(saying(answer(200, body))) as peer, SnapshotDir(tmp_path / "target") as target:
            with pytest.raises(Exception, match="manifest is broken"):
                SnapshotClient().fetch(peer.url, 7, target)
            assert os.listdir(target.path) == []


def test_a_cluster_name_that_fits_no_header_is_refused_at_once():
    with pytest.raises(ValueError, match="printable ASCII"):
        SnapshotClient(cluster="a\r\nb")
