"""Every way that a node's bytes take keeps to the throttle that it was given: one for all, or several."""

from __future__ import annotations

import time

import pytest

import etcd_peers as etcd
from etcd_peers import Member
from etcd_sending import Stored
from etcd_sending import send as send_to_etcd
from nodes import META, Follower, ImagedSnapshot, push
from paced import DATA, MIB, assert_paced, assert_shared
from snapstore._fastpipe import Throttle
from snapstore.directory import SnapshotDir
from snapstore.stream import SnapshotStream
from snapstore.transport.http import SnapshotClient

RATE = 4 * MIB

#: Of two MiB, which the time that other things take does not hide.
DATABASE = etcd.database(2 * 256)

pytestmark = pytest.mark.usefixtures("nothing_lost")


class Ways:
    """The ways by name; each moves at least a MiB with `throttle` where it stands, and with none elsewhere.

    `options` are those of the call, as `urgent` and `progress`.
    """

    def __init__(self, path):
        self._path = path
        self._count = 0

    def send(self, throttle, **options):
        with self._node() as follower, self._stream() as stream:
            SnapshotClient(throttle=throttle).send_snapshot(follower.url, stream, **options)

    def receive(self, throttle):
        with self._node(limits={"throttle": throttle}) as follower:
            push(follower, self._stream())

    def give(self, throttle):
        with self._node(throttle=throttle) as peer, self._directory() as directory:
            peer.directory.save_from(DATA * 2, META)
            SnapshotClient().fetch(peer.url, META.index, directory)

    def fetch(self, throttle, **options):
        with self._node() as peer, self._directory(throttle=throttle) as directory:
            peer.directory.save_from(DATA * 2, META)
            SnapshotClient().fetch(peer.url, META.index, directory, **options)

    def save(self, throttle, **options):
        with self._directory(throttle=throttle) as directory:
            directory.save_from(DATA * 2, META, **options)

    def send_etcd(self, throttle, **options):
        with Member(self._new_path()) as member, Stored(self._new_path()) as stored:
            client = SnapshotClient(throttle=throttle)
            send_to_etcd(member.url, stored(DATABASE), client=client, **options)

    def _node(self, **options):
        return Follower(self._new_path(), **options)

    def _directory(self, **options):
        return SnapshotDir(self._new_path(), **options)

    def _stream(self):
        path = self._new_path()
        path.write_bytes(DATA * 2)
        return SnapshotStream(META, ImagedSnapshot(path))

    def _new_path(self):
        self._count += 1
        return self._path / str(self._count)


@pytest.fixture
def ways(tmp_path):
    return Ways(tmp_path)


@pytest.mark.parametrize("way", ["send", "receive", "give", "fetch", "save", "send_etcd"])
def test_it_keeps_to_the_rate(ways, way):
    throttle = Throttle(RATE)
    began_s = time.monotonic()
    getattr(ways, way)(throttle)
    assert_paced(time.monotonic() - began_s, throttle.bytes, RATE)
    assert throttle.bytes >= 2 * MIB


@pytest.mark.parametrize(
    "way", ["send", *(pytest.param(way, marks=pytest.mark.slow) for way in ("fetch", "save", "send_etcd"))]
)
def test_what_is_not_urgent_yields(ways, way, background):
    assert_shared(
        background,
        lambda throttle, progress: getattr(ways, way)(throttle, urgent=False, progress=progress),
    )


def test_one_throttle_is_for_all_that_a_node_sends_gives_and_saves(tmp_path, ways, background):
    throttle = Throttle(2 * RATE)
    began_s = time.monotonic()
    moved = [background(getattr(ways, way), throttle) for way in ("receive", "give", "save")]
    for way in moved:
        way.result()
    assert throttle.bytes >= 6 * MIB
    assert_paced(time.monotonic() - began_s, throttle.bytes, 2 * RATE, transfers=3)
