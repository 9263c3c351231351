"""Several at one archive: pushes of one index, and a purge meanwhile; what was told to be there is there."""

from __future__ import annotations

import pytest

from archive_places import CONTENT, PART_SIZE, PARTS, archive_on, archived, stored
from archive_server import obstore
from snapstore.archive import bucket, upload
from snapstore.archive.layout import Inventory, inventory_name
from snapstore.directory import SnapshotDir
from snapstore.errors import PeerUnreachable, SnapshotExists, TransportError

pytestmark = pytest.mark.usefixtures("small_parts")


def race(server, tmp_path, content):
    """Push CONTENT; just before its inventory, another push of `content` comes to its end."""
    other = archive_on(server)

    def be_quicker(request):
        if request.method == "PUT" and request.path.endswith(".json"):
            server.fault = lambda request: None
            with stored(tmp_path / "other", content) as snapshot:
                other.push(snapshot)

    server.fault = be_quicker
    with stored(tmp_path / "d") as snapshot:
        return archive_on(server).push(snapshot)


def test_who_loses_the_race_for_an_index_leaves_nothing(server, tmp_path, target):
    with pytest.raises(SnapshotExists, match="has another snapshot of index 7"):
        race(server, tmp_path, CONTENT[::-1])
    assert len(server.names()) == len(PARTS) + 1
    assert archive_on(server).pull(None, target).path.read_bytes() == CONTENT[::-1]


def test_who_loses_the_race_to_the_same_snapshot_has_won_too(server, tmp_path, target):
    assert race(server, tmp_path, CONTENT).sent == len(CONTENT)
    assert len(server.names()) == len(PARTS) + 1
    assert archive_on(server).pull(None, target).path.read_bytes() == CONTENT


def test_who_cannot_see_who_won_the_race_removes_nothing(server, tmp_path, target, monkeypatch):
    """The inventory may be its own: the answer to the first attempt was lost, and then the line broke."""
    monkeypatch.setattr(bucket, "RETRIES_MAX", 0)

    own = []

    def break_off(request):
        if request.method == "PUT" and request.path.endswith(".json"):
            server.fault = lambda request: None
            obstore.put(server.objects, inventory_name(7), own[0])
            server.fault = lambda request: "cut" if request.method == "GET" else None

    server.fault = break_off
    with stored(tmp_path / "d") as snapshot:
        own.append(Inventory(snapshot.saved.manifest, PART_SIZE).to_bytes())
        with pytest.raises(PeerUnreachable):
            archive_on(server).push(snapshot)
    server.fault = lambda request: None
    assert archive_on(server).pull(7, target).path.read_bytes() == CONTENT


def test_a_snapshot_that_is_purged_while_it_is_mended_is_there_afterwards(tmp_path, target):
    with archived(tmp_path / "d") as server, SnapshotDir(tmp_path / "d") as directory:
        obstore.delete(server.objects, next(name for name in server.names() if name.endswith("part-00002")))

        def purge(request):
            if request.is_part_put:
                server.fault = lambda request: None
                obstore.delete(server.objects, inventory_name(7))

        server.fault = purge
        with directory.open(7) as snapshot:
            archive_on(server).push(snapshot)
        assert archive_on(server).pull(7, target).path.read_bytes() == CONTENT


def test_parts_that_a_purge_takes_while_they_are_compared_are_no_success(server, tmp_path, monkeypatch):
    monkeypatch.setattr(bucket, "RETRIES_MAX", 0)
    server.fault = lambda request: "cut" if request.method == "PUT" and ".json" in request.path else None
    with stored(tmp_path / "d") as snapshot:
        with pytest.raises(PeerUnreachable):
            archive_on(server).push(snapshot)
        server.fault = lambda request: None
        read = upload._read

        def read_and_be_overtaken(image, inventory, part, *options):
            obstore.delete(server.objects, part.name)
            return read(image, inventory, part, *options)

        monkeypatch.setattr(upload, "_read", read_and_be_overtaken)
        with pytest.raises(TransportError, match="does not list it: push again"):
            archive_on(server).push(snapshot)
    assert archive_on(server).list() == []
