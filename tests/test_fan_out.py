"""One pinned snapshot to several followers at once, over real sockets: each has its own end."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from nodes import META, WAIT_S, Follower, Impostor, read_head
from snapstore._fastpipe import Progress, Throttle
from snapstore.errors import PeerRejected, PeerUnreachable, SnapshotTemporarilyUnavailable
from snapstore.kv.lmdb import LmdbKV
from snapstore.store import SnapshotStore
from snapstore.testing import FakeClock
from snapstore.transfer import State
from snapstore.transfers import TransferRegistry
from snapstore.transport.http import SnapshotClient
from snapstore.transport.patience import Deadlines

pytestmark = pytest.mark.usefixtures("nothing_lost")

MIB = 1024 * 1024

#: What each follower's network takes, in bytes/s: far less than what the source gives.
LINE_RATE = 64 * MIB

#: What one may have read before the next one came, and what lies in sockets.
APART_SIZE = 8 * MIB


class Node:
    def __init__(self, kv):
        self.kv = kv

    def snapshot(self):
        return self.kv.snapshot()

    def capture(self, take):
        return META, take()


@pytest.fixture
def store(tmp_path):
    """Of 24 MiB, and for three at once; its registry is the node's."""
    clock = FakeClock()
    with LmdbKV(tmp_path / "kv", map_size=2**26, sync=False) as kv:
        with kv.env.begin(write=True) as transaction:
            for number in range(24):
                transaction.put(b"%d" % number, bytes([number]) * (MIB - 8192))
        node = Node(kv)
        with SnapshotStore(node, node, clock=clock, streams_max=3, registry=TransferRegistry()) as store:
            with pytest.raises(SnapshotTemporarilyUnavailable):
                store.get_snap()
            clock.run_pending()
            yield store


@pytest.fixture
def followers(tmp_path):
    with ExitStack() as opened:
        yield [
            opened.enter_context(
                Follower(tmp_path / f"follower-{number}", limits={"throttle": Throttle(LINE_RATE)})
            )
            for number in range(3)
        ]


def send_to_all(store, urls, **options):
    """Send the store's snapshot to each, at once: what came of each, and how often each byte was read."""
    client = SnapshotClient(registry=store.registry, **options)
    streams = [store.get_snap() for _ in urls]
    image, begin = streams[0].source, threading.Barrier(len(urls))

    def send(url, stream):
        with stream:
            begin.wait(WAIT_S)
            return client.send_snapshot(url, stream, progress=Progress())

    with ThreadPoolExecutor(len(urls)) as pool:
        sent = [pool.submit(send, url, stream) for url, stream in zip(urls, streams, strict=True)]
    return sent, image.bytes_read


def test_three_followers_have_it_of_one_read(store, followers):
    sent, bytes_read = send_to_all(store, [follower.url for follower in followers])
    sizes = {follower.directory.verify(META.index).size for follower in followers}
    digests = {follower.directory.stat(META.index).digest for follower in followers}
    assert [end.result().existed for end in sent] == [False] * 3
    assert len(sizes) == len(digests) == 1
    size = sizes.pop()
    assert size <= bytes_read <= size + APART_SIZE
    assert [transfer.state for transfer in store.transfers()] == [State.DONE] * 3
    assert {transfer.peer for transfer in store.transfers()} == {follower.url for follower in followers}
    assert all(transfer.progress.bytes == size for transfer in store.transfers())


def test_one_that_refuses_and_one_that_stalls_leave_the_third_alone(store, followers):
    third = followers[0]
    third.directory.save_from(b"what it has", 5)
    stalled = threading.Event()

    def stall(connection):
        read_head(connection)
        connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        stalled.wait(WAIT_S)

    with (
        Follower(followers[1].directory.path / "other", cluster="another") as refusing,
        Impostor(stall) as impostor,
    ):
        urls = [third.url, refusing.url, impostor.url]
        deadlines = Deadlines(idle_timeout_s=0.2, connect_timeout_s=0.5)
        (sent, refused, silent), bytes_read = send_to_all(store, urls, deadlines=deadlines)
        stalled.set()
    assert not sent.result().existed
    with pytest.raises(PeerRejected, match="cluster"):
        refused.result()
    with pytest.raises(PeerUnreachable):
        silent.result()
    size = third.directory.verify(META.index).size
    assert size <= bytes_read <= size + APART_SIZE
    states = {transfer.peer: transfer.state for transfer in store.transfers()}
    assert states == {third.url: State.DONE, refusing.url: State.REFUSED, impostor.url: State.FAILED}
