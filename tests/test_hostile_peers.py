"""Peers that stall, drip, reset, vanish or do not read, and those of another cluster or index.

Each meets a real server; a good push goes on beside it. What lies in heads and bodies is
test_hostile_heads.py's and test_hostile_bodies.py's, crowds are test_peer_storms.py's.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import time

import pytest

from bystander import (
    GOOD_INDEX,
    assert_nothing_but_the_good,
    assert_one_line,
    heard_of,
    hostile_lines,
    met,
    push_the_good,
    statuses,
    undisturbed,
)
from nodes import (
    META,
    UNIT,
    Follower,
    RawPeer,
    frames,
    push,
    put_head,
    reset_at_close,
    wait_until,
    written,
)
from snapstore.transport.http import SnapshotClient
from snapstore.transport.patience import Deadlines

pytestmark = pytest.mark.usefixtures("nothing_lost")

#: A short time that a test has to wait out.
SHORT_S = 0.15

#: Silence, its answer and what is still listened to for a while; with a loaded machine's share.
ANSWER_S_MAX = 15.0

#: Linux: a socket in this mode is closed without a word to the other side (linux/tcp.h).
TCP_REPAIR = 19

GET = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"

CONTENT = bytes(range(256)) * 17


@pytest.mark.parametrize(
    "cluster", [None, "", "Blue", "blue2", "blu", "blue blue", "bl\xfce", "b" * 129, "*"]
)
def test_a_peer_of_another_cluster_is_refused_with_one_line(tmp_path, caplog, cluster):
    caplog.set_level(logging.INFO)
    with Follower(tmp_path / "follower", cluster="blue") as follower:
        said = put_head(CONTENT, expect=False, Snapstore_Cluster=cluster), frames(CONTENT)
        assert statuses(heard_of(follower, *said, Snapstore_Cluster="blue")) == [412]
    assert_one_line(caplog, "belongs to cluster 'blue'")
    met("clusters")


@pytest.mark.parametrize(
    "index",
    ["-1", "+7", "0x7", "7.0", "7e0", "7_0", "%37", "7%00", "7/", "7/..", "../7", "..%2f7", "7?x", "7#x",
     "7;x", "\xb2", "7 7", "2^64", str(2**64), "9" * 21, "9" * 400, "*", "~", "snapshot"],
)  # fmt: skip
def test_a_push_to_an_index_that_is_none_is_refused_with_one_line(follower, caplog, index):
    caplog.set_level(logging.INFO)
    (status,) = statuses(heard_of(follower, put_head(CONTENT, index=index, expect=False), frames(CONTENT)))
    assert status in (400, 404)
    follower.server.close()
    assert_one_line(caplog, "refused")
    met("indexes")


# Behaviour: each does what it does, and then waits for its answer.


def drip(peer, data):
    """Say `data` byte by byte, often enough not to be silent, until the other side answers."""
    peer.socket.settimeout(SHORT_S / 10)
    with contextlib.suppress(ConnectionError):
        for place in range(len(data)):
            peer.say(data[place : place + 1])
            with contextlib.suppress(TimeoutError):
                peer.socket.recv(1, socket.MSG_PEEK)
                break
    peer.socket.settimeout(ANSWER_S_MAX)


def offered(*said):
    """Make a sound offer, be told to go on, and say this much of the body."""

    def behave(peer):
        peer.say(put_head(CONTENT))
        peer.hear_continue()
        peer.say(*said)

    return behave


def saying(*said):
    return lambda peer: peer.say(*said)


SOUND = frames(CONTENT)

#: name: (what it does, the statuses it hears, how many lines the log has)
STALLS = {
    "says nothing": (lambda peer: None, [], 0),
    "says a letter": (saying(b"P"), [408], 1),
    "stalls in its head": (saying(put_head(CONTENT)[:-1]), [408], 1),
    "drips its head": (lambda peer: drip(peer, put_head(CONTENT)), [408], 1),
    "stalls after 100 Continue": (offered(), [408], 1),
    "stalls in a frame's head": (offered(SOUND[:7]), [408], 1),
    "stalls in a chunk": (offered(SOUND[:1000]), [408], 1),
    "stalls between two chunks": (offered(SOUND[: UNIT + 20]), [408], 1),
    "stalls before the last byte": (offered(SOUND[:-1]), [408], 1),
    "stalls uninvited": (saying(put_head(CONTENT, expect=False), SOUND[:100]), [408], 1),
    "stalls in a chunk's size": (
        saying(
            put_head(
                CONTENT, expect=False, Content_Length=None, Snapstore_Size=None, Transfer_Encoding="chunked"
            ),
            b"10",
        ),
        [408],
        1,
    ),
    "stalls after an answer": (saying(GET), [200], 0),
    "stalls in its second head": (saying(GET, GET[:-2]), [200, 408], 1),
    "stalls after a refusal": (saying(put_head(CONTENT, Snapstore_Term=None)), [400], 1),
    "stalls in a body that nobody asked for": (
        saying(b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n"),
        [400],
        1,
    ),
}


@pytest.fixture
def impatient(nothing_lost, tmp_path):
    with Follower(
        tmp_path / "follower", deadlines=Deadlines(idle_timeout_s=SHORT_S, head_timeout_s=SHORT_S)
    ) as follower:
        yield follower


@pytest.mark.parametrize(("behave", "wanted", "lines"), STALLS.values(), ids=STALLS)
def test_a_peer_that_stalls_is_told_in_time_and_others_go_on(
    impatient, caplog, behave, wanted, lines, background
):
    caplog.set_level(logging.INFO)
    began = time.monotonic()
    with RawPeer(impatient.url) as peer:
        pushed = background(push_the_good, impatient)
        behave(peer)
        heard = peer.hear_all()
    assert statuses(heard) == wanted
    assert time.monotonic() - began < ANSWER_S_MAX
    assert not pushed.result().existed
    assert_nothing_but_the_good(impatient)
    impatient.server.close()
    assert len(hostile_lines(caplog)) == lines
    if lines:
        assert_one_line(caplog, "refused")
    met("stalls")


def reset(peer):
    """Leave without a FIN: with a RST at once."""
    reset_at_close(peer.socket)


def half_close(peer):
    peer.end()
    peer.hear_all()


def vanish(peer):
    """Be gone as a machine without power is: no FIN, no RST; only the silence tells."""
    try:
        peer.socket.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)
    except PermissionError:
        pytest.skip("NO VANISHING PEERS: TCP_REPAIR needs root")


#: Whatever was said before leaving, so that each state of a connection sees each way of leaving.
SAID = {
    "in a head": saying(put_head(CONTENT)[:40]),
    "at the go on": saying(put_head(CONTENT)),
    "before the body": offered(),
    "in a frame's head": offered(SOUND[:7]),
    "in a chunk": offered(SOUND[:1000]),
    "before the last byte": offered(SOUND[:-1]),
}


@pytest.mark.parametrize(
    "leave", [reset, half_close, lambda peer: None, vanish], ids=["reset", "half", "fin", "gone"]
)
@pytest.mark.parametrize("behave", SAID.values(), ids=SAID)
def test_a_peer_that_leaves_anywhere_costs_one_line_and_leaves_nothing(
    impatient, caplog, behave, leave, background
):
    caplog.set_level(logging.INFO)
    with RawPeer(impatient.url) as peer:
        pushed = background(push_the_good, impatient)
        behave(peer)
        leave(peer)
    assert not pushed.result().existed
    wait_until(lambda: hostile_lines(caplog))
    assert_one_line(caplog)
    assert_nothing_but_the_good(impatient)
    # An honest one who comes after it, and whose snapshot is the same, is not kept out by what it left.
    with written(CONTENT) as stream:
        assert not SnapshotClient().send_snapshot(impatient.url, stream, chunk_size=UNIT).existed
    met("leavers")


@pytest.mark.parametrize(
    "said", [b"GET /v1/snapshots/5 HTTP/1.1\r\nHost: x\r\n\r\n", GET * 200_000], ids=["image", "many"]
)
def test_a_peer_that_asks_and_does_not_read_is_cut(impatient, caplog, said):
    """Its answers fill what the sockets hold, and then it is silent like one that does not speak."""
    impatient.directory.save_from(bytes(32 * 1024 * 1024), GOOD_INDEX)
    caplog.set_level(logging.INFO)
    with RawPeer(impatient.url) as peer:
        peer.socket.settimeout(ANSWER_S_MAX)
        peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        with contextlib.suppress(ConnectionError, TimeoutError):
            peer.say(said)
        wait_until(lambda: hostile_lines(caplog))
        assert push(impatient, written()).index == META.index
    impatient.server.close()
    assert [line.exc_info for line in hostile_lines(caplog)] == [None]
    met("slow readers")


def test_a_peer_that_comes_again_and_again_gets_no_more_room(follower, caplog):
    """A thousand refusals, one after the other: nothing grows, and the good push still comes to its end."""
    with undisturbed(follower):
        for turn in range(1000):
            with RawPeer(follower.url) as peer:
                peer.say(b"nonsense %d\r\n\r\n" % turn)
                peer.end()
                assert statuses(peer.hear_all()) == [400]
    follower.server.close()
    assert len(hostile_lines(caplog)) == 1000
