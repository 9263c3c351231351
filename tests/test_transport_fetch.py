"""What a follower serves: lists, images, ranges, manifests, health; and a peer that pulls."""

from __future__ import annotations

import http.client
import json
import os
import threading

import pytest

from nodes import CONTENT, META, UNIT, Follower, RawPeer, stored_names
from snapstore import _fastpipe
from snapstore.directory import SnapshotDir
from snapstore.errors import PeerRejected, SnapshotCorrupt, SnapshotExists, SnapshotTruncated
from snapstore.manifest import Manifest
from snapstore.transport.http import SnapshotClient

IMAGE = "/v1/snapshots/7"


pytestmark = pytest.mark.usefixtures("nothing_lost")


@pytest.fixture
def follower(tmp_path):
    with Follower(tmp_path / "follower") as follower:
        follower.directory.save_from(CONTENT, META, chunk_size=UNIT)
        yield follower


def ask(follower, path, method="GET", **headers):
    """The answer as Python's own client reads it: status, headers, body."""
    address = follower.server.address
    line = http.client.HTTPConnection(address.host, address.port, timeout=20)
    try:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        line.request(method, path, headers=named)
        answer = line.getresponse()
        return answer.status, answer.headers, answer.read()
    finally:
        line.close()


def test_health_is_one_line(follower):
    assert ask(follower, "/healthz")[::2] == (200, b"ok\n")


def test_the_list_tells_what_is_stored_and_what_is_broken(follower):
    follower.directory.save_from(CONTENT, 9)
    (follower.directory.path / f"{9:016x}.json").unlink()
    status, headers, body = ask(follower, "/v1/snapshots")
    assert (status, headers["Content-Type"]) == (200, "application/json")
    sound, broken = json.loads(body)["snapshots"]
    digest = f"crc32c:{_fastpipe.crc32c(CONTENT):08x}"
    assert sound == {"index": 7, "term": 3, "size": len(CONTENT), "digest": digest, "problem": None}
    assert (broken["index"], broken["digest"]) == (9, None)
    assert "no manifest" in broken["problem"]
    assert SnapshotClient().list(follower.url) == [sound, broken]


def test_an_image_comes_with_what_a_puller_wants_to_know(follower):
    status, headers, body = ask(follower, IMAGE)
    assert (status, body) == (200, CONTENT)
    assert headers["Content-Length"] == str(len(CONTENT))
    assert headers["Accept-Ranges"] == "bytes"
    assert headers["Repr-Digest"].startswith("crc32c=:")
    assert headers["Snapstore-Term"] == "3"
    assert json.loads(headers["Snapstore-Conf-State"]) == META.conf_state.to_json()


@pytest.mark.parametrize(
    ("wanted", "part"),
    [
        ("bytes=0-0", slice(0, 1)),
        ("bytes=0-4095", slice(0, 4096)),
        ("bytes=5000-5003", slice(5000, 5004)),
        ("bytes=5000-", slice(5000, None)),
        ("bytes=5000-999999999", slice(5000, None)),
        ("bytes=-10", slice(-10, None)),
        ("bytes=-999999999", slice(0, None)),
    ],
)
def test_a_range_is_that_part_of_the_image(follower, wanted, part):
    status, headers, body = ask(follower, IMAGE, Range=wanted)
    assert (status, body) == (206, CONTENT[part])
    first = part.indices(len(CONTENT))[0]
    assert headers["Content-Range"] == f"bytes {first}-{first + len(body) - 1}/{len(CONTENT)}"


@pytest.mark.parametrize("wanted", [f"bytes={len(CONTENT)}-", "bytes=99999999-", "bytes=-0"])
def test_a_range_beyond_the_image_is_refused_with_its_size(follower, wanted):
    status, headers, _ = ask(follower, IMAGE, Range=wanted)
    assert (status, headers["Content-Range"]) == (416, f"bytes */{len(CONTENT)}")


@pytest.mark.parametrize("wanted", ["bytes=0-1,5-6", "bytes=5-4", "lines=1-2", "bytes", ""])
def test_ranges_that_are_not_served_mean_all_of_it(follower, wanted):
    assert ask(follower, IMAGE, Range=wanted)[::2] == (200, CONTENT)


def test_a_range_counts_only_for_the_version_it_was_meant_for(follower):
    etag = ask(follower, IMAGE, "HEAD")[1]["ETag"]
    assert ask(follower, IMAGE, Range="bytes=0-0", If_Range=etag)[0] == 206
    assert ask(follower, IMAGE, Range="bytes=0-0", If_Range='"another"')[::2] == (200, CONTENT)


@pytest.mark.parametrize("path", ["/healthz", "/v1/snapshots", IMAGE, IMAGE + "/manifest", "/nothing"])
def test_head_is_get_without_the_body(follower, path):
    with RawPeer(follower.url) as peer:
        request = f"{path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()
        peer.say(b"HEAD " + request)
        head = peer.hear_all()
    with RawPeer(follower.url) as peer:
        peer.say(b"GET " + request)
        whole = peer.hear_all()
    assert head.endswith(b"\r\n\r\n")
    assert whole.startswith(head)
    assert len(whole) > len(head)


def test_the_manifest_is_the_stored_one(follower):
    status, _, body = ask(follower, IMAGE + "/manifest")
    assert status == 200
    assert Manifest.from_bytes(body) == follower.directory.stat(7).manifest


@pytest.mark.parametrize(
    "path",
    ["/", "/v1", "/v1/snapshots/8", "/v1/snapshots/8/manifest", "/v1/snapshots/07x", "/v1/snapshots/../etc"]
    + [f"{IMAGE}{part}" for part in ("/", "/other", "/manifest/", "9" * 20)],
)
def test_what_is_not_there_is_not_found(follower, path):
    status, headers, body = ask(follower, path)
    assert status == 404
    assert json.loads(body)["error"]
    assert headers["Content-Type"] == "application/json"


def test_several_requests_share_a_line(follower):
    with RawPeer(follower.url) as peer:
        for _ in range(3):
            peer.say(f"GET {IMAGE} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            assert peer.hear("GET")[2] == CONTENT


def test_a_purge_does_not_take_away_what_is_being_fetched(tmp_path):
    large = os.urandom(1024 * 1024) * 32
    with Follower(tmp_path / "follower") as follower, RawPeer(follower.url) as peer:
        follower.directory.save_from(large, 7)
        follower.directory.save_from(b"newer", 8)
        peer.say(f"GET {IMAGE} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        answer = http.client.HTTPResponse(peer, method="GET")
        answer.begin()
        assert follower.directory.purge(keep=1) == []
        assert answer.read() == large
        peer.say(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")  # Answered when the lease was given back.
        assert peer.hear("GET")[0] == 200
        assert follower.directory.purge(keep=1) == [7]


def test_a_puller_saves_what_the_peer_has_with_its_meta(follower, target):
    progress = _fastpipe.Progress()
    saved = SnapshotClient().fetch(follower.url, 7, target, progress=progress)
    assert saved.path.read_bytes() == CONTENT
    assert saved.manifest == follower.directory.stat(7).manifest
    assert target.verify(7).meta == META
    assert progress.bytes == len(CONTENT)
    with pytest.raises(SnapshotExists):
        SnapshotClient().fetch(follower.url, 7, target)


def test_a_puller_hears_that_the_peer_has_no_such_snapshot(follower, target):
    with pytest.raises(PeerRejected, match="no snapshot of index 8") as raised:
        SnapshotClient().fetch(follower.url, 8, target)
    assert raised.value.status == 404
    with pytest.raises(TypeError, match="index must be an integer"):
        SnapshotClient().fetch(follower.url, "7", target)


def test_a_puller_of_a_damaged_snapshot_names_the_chunk_and_stores_nothing(follower, target):
    path = follower.directory.get_snap_file_path(7)
    damaged = bytearray(CONTENT)
    damaged[UNIT + 5] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(SnapshotCorrupt, match="chunk 1") as raised:
        SnapshotClient().fetch(follower.url, 7, target)
    assert raised.value.chunk == 1
    path.write_bytes(CONTENT[:-1])
    with pytest.raises(SnapshotTruncated):
        SnapshotClient().fetch(follower.url, 7, target)
    assert stored_names(target.path) == []


def test_a_manifest_of_another_index_is_not_believed(follower, target):
    manifest = follower.directory.stat(7).manifest
    (follower.directory.path / f"{8:016x}.json").write_bytes(manifest.to_bytes())
    (follower.directory.path / f"{8:016x}.db").write_bytes(CONTENT)
    with pytest.raises(PeerRejected, match="manifest is that of index 7"):
        SnapshotClient().fetch(follower.url, 8, target)


def test_pullers_at_once_get_the_same(follower, tmp_path):
    def pull(number):
        with SnapshotDir(tmp_path / f"puller-{number}") as directory:
            SnapshotClient().fetch(follower.url, 7, directory)
            contents.append(directory.verify(7).path.read_bytes())

    contents = []
    pullers = [threading.Thread(target=pull, args=(number,)) for number in range(6)]
    for puller in pullers:
        puller.start()
    for puller in pullers:
        puller.join()
    assert contents == [CONTENT] * 6
