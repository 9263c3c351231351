"""Peers that break off, stall, lie or come in crowds: nothing is saved of it and nothing is left."""

from __future__ import annotations

import contextlib
import socket
import threading

import pytest

from nodes import (
    CONTENT,
    META,
    Follower,
    RawPeer,
    endless,
    frames,
    put_head,
    reset_at_close,
    wait_until,
    written,
)
from snapstore.errors import PeerRejected
from snapstore.transport import connection
from snapstore.transport.http import SnapshotClient
from snapstore.transport.patience import Deadlines
from snapstore.wire import pack_data

#: A short time that a test has to wait out.
SHORT_S = 0.15

#: One chunk and a closing frame: every field of the protocol is in it.
SMALL = b"snapshot"

GET = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"


pytestmark = pytest.mark.usefixtures("nothing_lost")


def pushed(follower, body, **head):
    """The status that a push of `body` gets whose sender then ends; None where the line was cut."""
    with RawPeer(follower.url) as peer:
        peer.say(put_head(SMALL, expect=False, **head), body)
        peer.end()
        heard = peer.hear_all()
    return int(heard.split()[1]) if heard else None


def chunked(body):
    return b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)


@pytest.mark.parametrize("size_known", [True, False])
def test_a_body_cut_off_anywhere_saves_nothing(follower, size_known):
    body, changes = frames(SMALL), {}
    if not size_known:
        body = chunked(body)
        changes = {"Content_Length": None, "Snapstore_Size": None, "Transfer_Encoding": "chunked"}
    for length in range(len(body)):
        assert pushed(follower, body[:length], **changes) == 422
        assert follower.names() == []
    assert pushed(follower, body, **changes) == 201


def test_a_body_with_any_bit_turned_saves_nothing(follower):
    body = frames(SMALL)
    for bit in range(len(body) * 8):
        turned = bytearray(body)
        turned[bit // 8] ^= 1 << bit % 8
        assert pushed(follower, bytes(turned)) in (413, 422)
        assert follower.names() == []


@pytest.mark.slow
def test_a_body_of_unknown_size_with_any_bit_turned_saves_nothing(follower):
    body = chunked(frames(SMALL))
    head = {"Content_Length": None, "Snapstore_Size": None, "Transfer_Encoding": "chunked"}
    for bit in range(len(body) * 8):
        turned = bytearray(body)
        turned[bit // 8] ^= 1 << bit % 8
        status = pushed(follower, bytes(turned), **head)
        if status == 201:  # The coding's own letters may be capitals, and its trailer may say anything.
            assert (follower.directory.path / f"{7:016x}.db").read_bytes() == SMALL
            for name in follower.names():
                (follower.directory.path / name).unlink()
        else:
            assert status in (413, 422)
            assert follower.names() == []


def test_bytes_after_the_closing_frame_save_nothing(follower):
    body = frames(SMALL) + b"x"
    assert pushed(follower, body, Content_Length=str(len(body)), Snapstore_Size=None) == 422
    assert follower.names() == []


def test_bytes_after_the_body_are_another_request(follower):
    with RawPeer(follower.url) as peer:
        peer.say(put_head(SMALL, expect=False), frames(SMALL), b"nonsense\r\n\r\n")
        assert peer.hear()[0] == 201
        assert peer.hear()[0] == 400
    assert follower.indexes == [7]


def test_chunks_larger_than_offered_save_nothing(follower):
    """Memory is taken by the offer; a frame must not claim more."""
    body = bytearray(frames(SMALL))
    body[4:8] = (2**32 - 1).to_bytes(4, "big")
    assert pushed(follower, bytes(body), Snapstore_Size=None) == 422


@pytest.mark.parametrize("content", [CONTENT, b""])
def test_a_body_of_another_size_than_offered_saves_nothing(follower, content):
    status = pushed(follower, frames(content), Snapstore_Size=None, Content_Length=str(len(frames(SMALL))))
    assert status == 422
    assert follower.names() == []


def test_data_that_is_not_as_announced_saves_nothing(follower):
    body = bytearray(pack_data(b"engine") + frames(SMALL))
    body[17] ^= 1
    status = pushed(follower, bytes(body), Snapstore_Data_Size="6", Content_Length=str(len(body)))
    assert status == 422
    assert follower.names() == []


def test_a_peer_that_falls_silent_is_told_and_its_place_is_free_again(tmp_path):
    with Follower(
        tmp_path / "follower", deadlines=Deadlines(idle_timeout_s=SHORT_S), saves_max=1
    ) as follower:
        for said in (b"", frames()[:-1]):
            with RawPeer(follower.url) as peer:
                peer.say(put_head())
                peer.hear_continue()
                peer.say(said)
                assert peer.hear()[0] == 408
        assert follower.names() == []
        with RawPeer(follower.url) as peer:
            peer.say(put_head(expect=False), frames())
            assert peer.hear()[0] == 201


@pytest.mark.parametrize("reset", [True, False], ids=["reset", "closed"])
def test_a_peer_that_leaves_frees_its_place(tmp_path, reset):
    with Follower(tmp_path / "follower", saves_max=1) as follower:
        with RawPeer(follower.url) as peer:
            peer.say(put_head())
            peer.hear_continue()
            peer.say(frames()[:-1])
            if reset:
                reset_at_close(peer.socket)

        def is_free():
            with contextlib.suppress(PeerRejected), written() as stream:
                return SnapshotClient().send_snapshot(follower.url, stream)

        wait_until(is_free)
        assert follower.directory.verify(7).size == len(CONTENT)


def test_a_head_that_does_not_end_is_refused_and_an_idle_line_is_closed(tmp_path):
    with Follower(tmp_path / "follower", deadlines=Deadlines(head_timeout_s=SHORT_S)) as follower:
        with RawPeer(follower.url) as peer:
            peer.say(GET[:-1])
            status, headers, words = peer.hear("GET")
            assert (status, headers["Connection"]) == (408, "close")
            assert b"0.15 s" in words
        with RawPeer(follower.url) as peer:
            assert peer.hear_all() == b""
        with RawPeer(follower.url) as peer:
            peer.say(GET)
            assert peer.hear("GET")[0] == 200
            assert peer.hear_all() == b""


def test_a_head_that_drips_is_refused_in_time(tmp_path):
    """A byte now and then must not keep a connection: the deadline is for the whole head."""
    with (
        Follower(tmp_path / "follower", deadlines=Deadlines(head_timeout_s=SHORT_S)) as follower,
        RawPeer(follower.url) as peer,
    ):
        peer.socket.settimeout(SHORT_S / 10)
        heard = b""
        with contextlib.suppress(ConnectionError):
            peer.say(b"GET / HTTP/1.1\r\nX: ")
            while not heard:
                peer.say(b"x")
                with contextlib.suppress(TimeoutError):
                    heard = peer.socket.recv(100)
        assert heard.startswith(b"HTTP/1.1 408")


def test_a_peer_that_does_not_read_an_image_is_cut(tmp_path):
    with Follower(tmp_path / "follower", deadlines=Deadlines(idle_timeout_s=SHORT_S)) as follower:
        follower.directory.save_from(bytes(32 * 1024 * 1024), 7)
        with RawPeer(follower.url) as peer:
            peer.say(b"GET /v1/snapshots/7 HTTP/1.1\r\nHost: x\r\n\r\n")
            wait_until(lambda: not follower.server._crew.connections)
            assert len(peer.hear_all()) < 32 * 1024 * 1024


def test_a_half_open_line_still_gets_its_answer(follower):
    assert pushed(follower, frames(SMALL)) == 201


def test_connections_beyond_the_limit_are_told_so(tmp_path):
    with Follower(tmp_path / "follower", connections_max=2) as follower, contextlib.ExitStack() as peers:
        inside = [peers.enter_context(RawPeer(follower.url)) for _ in range(2)]
        for peer in inside:
            peer.say(GET)
            assert peer.hear("GET")[0] == 200
        with RawPeer(follower.url) as peer:
            status, headers, words = peer.hear("GET")
        assert (status, headers["Retry-After"], headers["Connection"]) == (503, "1", "close")
        assert b"more than 2 connections" in words
        with pytest.raises(PeerRejected, match="more than 2"), written() as stream:
            SnapshotClient().send_snapshot(follower.url, stream)
        inside[0].close()
        wait_until(lambda: len(follower.server._crew.connections) < 2)
        with written() as stream:
            assert SnapshotClient().send_snapshot(follower.url, stream).index == 7


def test_a_sender_that_is_refused_in_the_middle_reads_why(tmp_path):
    with Follower(tmp_path / "follower", limits={"size_max": 8 * 1024 * 1024}) as follower:
        for _ in range(5):
            with pytest.raises(PeerRejected) as raised, endless() as stream:
                SnapshotClient().send_snapshot(follower.url, stream)
            assert raised.value.status == 413
        assert follower.names() == []


def test_a_refused_sender_may_go_on_for_a_while_and_still_read_why(follower):
    with RawPeer(follower.url) as peer:
        peer.say(put_head(expect=False, Snapstore_Term=None))
        assert peer.socket.recv(1, socket.MSG_PEEK)
        peer.say(bytes(16 * 1024 * 1024))  # More than sockets hold: somebody has to read it.
        status, _, words = peer.hear()
    assert status == 400
    assert b"Snapstore-Term is missing" in words


def test_a_sender_that_never_stops_is_listened_to_for_a_while_only(tmp_path, monkeypatch):
    monkeypatch.setattr(connection, "LINGER_S", SHORT_S)
    with Follower(tmp_path / "follower") as follower, RawPeer(follower.url) as peer:
        peer.say(put_head(expect=False, Snapstore_Term=None))
        with pytest.raises(ConnectionError):
            peer.say(bytes(2**30))


def test_a_peer_that_was_told_of_a_stored_snapshot_need_not_send_it(follower):
    follower.directory.save_from(CONTENT, META)
    with RawPeer(follower.url) as peer:
        peer.say(put_head())
        status, headers, words = peer.hear()
        assert (status, headers["Connection"]) == (200, "close")
        assert b'"existed": true' in words


def test_many_peers_at_once_are_all_served(tmp_path):
    statuses = []

    def ask():
        with RawPeer(follower.url) as peer:
            for _ in range(5):
                peer.say(GET * 3)
                statuses.extend(peer.hear("GET")[0] for _ in range(3))

    with Follower(tmp_path / "follower") as follower:
        peers = [threading.Thread(target=ask) for _ in range(8)]
        for peer in peers:
            peer.start()
        for peer in peers:
            peer.join()
    assert statuses == [200] * 120
