"""Crowds: a thousand connections at once, and again and again. A real server process is watched from outside.

What it may use is bounded whatever comes: threads, descriptors, memory. A push that is under way goes
on, and when the storm is over the next one is taken.
"""

from __future__ import annotations

import contextlib
import os
import re
import resource
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from bystander import met
from nodes import (
    CONTENT,
    META,
    UNIT,
    WAIT_S,
    RawPeer,
    frames,
    push,
    put_head,
    reset_at_close,
    wait_until,
    written,
)
from processes import Process
from snapstore.errors import PeerRejected, PeerUnreachable
from snapstore.meta import SnapshotMeta
from snapstore.transport.address import connect, parse_url

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("nothing_lost")]

#: How many come at once, and how many connections the server has room for.
CROWD, ROOM = 1000, 64

#: Reconnections of one storm, and how many at a time.
AGAIN, AT_A_TIME = 2000, 16

#: The threads of a server without a connection, with some that Python or the core starts.
THREADS_MAX = ROOM + 8

#: For each connection its socket, a snapshot that it reads and, while it opens that, the manifest; and
#: what a process has anyway.
DESCRIPTORS_MAX = 3 * ROOM + 32

#: 64 connections with a buffer of 64 KiB and a head of 64 KiB each, and the C library's own arenas.
GROWTH_MAX = 48 << 20

SERVER = """
    import logging
    from snapstore.transport.http import SnapshotServer
    from snapstore.transport.patience import Deadlines
    logging.basicConfig(filename=sys.argv[2], level=logging.INFO)
    limits = Deadlines(head_timeout_s=1)
    with SnapshotDir(sys.argv[1]) as directory, SnapshotServer(directory, deadlines=limits) as server:
        say(server.url)
        for line in sys.stdin:
            say(*(directory.verify(saved.index).index for saved in directory.list()))
"""


class Watch:
    """The most of each that a process used meanwhile, seen from outside, sampled many times a second."""

    def __init__(self, pid):
        self._pid, self._ended = pid, threading.Event()
        self.before = self._read()
        self.most = dict(self.before)
        self._thread = threading.Thread(target=self._run)

    def _read(self):
        with open(f"/proc/{self._pid}/status") as file:
            found = dict(re.findall(r"(RssAnon|Threads):\s+(\d+)", file.read()))
        descriptors = len(os.listdir(f"/proc/{self._pid}/fd"))
        return {
            "memory": int(found["RssAnon"]) * 1024,
            "threads": int(found["Threads"]),
            "descriptors": descriptors,
        }

    def _run(self):
        while not self._ended.wait(0.005):
            now = self._read()
            self.most = {kind: max(most, now[kind]) for kind, most in self.most.items()}

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *exception):
        self._ended.set()
        self._thread.join()

    @property
    def growth(self):
        return self.most["memory"] - self.before["memory"]


@pytest.fixture
def many_descriptors():
    """Room for this process's side of the crowd."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = CROWD + 200
    if hard != resource.RLIM_INFINITY and hard < wanted:
        pytest.skip(f"NO STORM: {hard} descriptors are all this process may have")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture
def storm(tmp_path, many_descriptors):
    """A watched server in a process of its own, and a push that was begun before and ends after."""

    @contextlib.contextmanager
    def storm(name):
        log = tmp_path / "log"
        with Process(SERVER, tmp_path / "directory", log) as server:
            url = server.hear()
            push_to(url, 3)
            body = frames(CONTENT)
            with RawPeer(url) as good:
                good.say(put_head(index=5))
                good.hear_continue()
                good.say(body[: UNIT + 100])
                with Watch(server.pid) as watch:
                    yield url
                    good.say(body[UNIT + 100 :])
                    assert good.hear()[0] == 201
            push_to(url, 9)
            server.say()
            assert server.hear() == "3 5 9"
            wait_until(lambda: watch._read()["threads"] <= watch.before["threads"])
            server.finish()
        assert "Traceback" not in log.read_text(), log.read_text()[log.read_text().index("Traceback") - 500 :]
        print(f"{name}: {watch.growth / 2**20:.1f} MiB more, {watch.most}")
        assert watch.growth < GROWTH_MAX
        assert watch.most["threads"] <= THREADS_MAX
        assert watch.most["descriptors"] <= DESCRIPTORS_MAX
        met("storms", CROWD)

    return storm


class _Url:
    """All that `nodes.push` asks of a follower."""

    def __init__(self, url):
        self.url = url


def push_to(url, index):
    """Push as a leader does: again, while the server is busy."""

    def pushed():
        with contextlib.suppress(PeerRejected, PeerUnreachable):
            return push(_Url(url), written(meta=SnapshotMeta(index, META.term, META.conf_state)))

    wait_until(pushed)


def enter(stack, url):
    """A connection that is closed with the `stack`, as soon as the server's queue has room for it."""
    peer = stack.enter_context(connect(parse_url(url), WAIT_S))
    peer.settimeout(WAIT_S)
    return peer


GET_IMAGE = b"GET /v1/snapshots/3 HTTP/1.1\r\nHost: x\r\n\r\n"

#: What each one of the crowd says before it waits.
CROWDS = {
    "say nothing": b"",
    "begin a head": b"PUT /v1/snapshots/7 HTTP/1.1\r\nHost: x\r\n",
    "have a long head": b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 60_000,
    "offer and wait": put_head(),
    "push and stall": put_head(expect=False) + frames()[:-1],
    "announce much data": put_head(
        Snapstore_Data_Size=str(16 * 1024 * 1024),
        Content_Length=None,
        Snapstore_Size=None,
        Transfer_Encoding="chunked",
    ),
    "want the largest chunks": put_head(
        expect=False,
        Snapstore_Chunk_Size=str(64 * 1024 * 1024),
        Content_Length=None,
        Snapstore_Size=None,
        Transfer_Encoding="chunked",
    ),
    "ask for an image and do not read": GET_IMAGE * 1000,
    "speak nonsense": b"\0" * 10_000,
}


@pytest.mark.parametrize("said", CROWDS.values(), ids=CROWDS)
def test_a_crowd_takes_no_more_than_its_room(storm, said, request):
    with storm(request.node.callspec.id) as url, contextlib.ExitStack() as crowd:
        for _ in range(CROWD):
            peer = enter(crowd, url)
            with contextlib.suppress(ConnectionError, TimeoutError):
                peer.setblocking(False)
                peer.send(said)


@pytest.mark.parametrize(
    "said", [b"", GET_IMAGE, put_head(expect=False) + frames()[:-1]], ids=["silent", "get", "push"]
)
@pytest.mark.parametrize("leave", [reset_at_close, lambda peer: None], ids=["reset", "closed"])
def test_those_who_come_again_and_again_take_no_more_than_their_room(storm, said, leave, request):
    def come(_):
        with contextlib.suppress(ConnectionError), connect(parse_url(url), WAIT_S) as peer:
            leave(peer)
            peer.sendall(said)

    with storm(request.node.callspec.id) as url, ThreadPoolExecutor(AT_A_TIME) as pool:
        for _ in pool.map(come, range(AGAIN)):
            pass
