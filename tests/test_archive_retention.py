"""What an archive gives up, in which order, and what it never does."""

from __future__ import annotations

import asyncio
import time

import pytest

from archive_places import PART_SIZE, archive_on, stored
from archive_server import ArchiveServer, obstore
from snapstore.archive import Archive, bucket, retention
from snapstore.archive.layout import inventory_name
from snapstore.errors import PeerUnreachable

pytestmark = pytest.mark.usefixtures("small_parts")

DAY_S = 24 * 3600


@pytest.fixture
def server(tmp_path):
    """One that has the snapshots 7, 8 and 9, of two parts each."""
    with ArchiveServer() as server:
        for index in (7, 8, 9):
            with stored(tmp_path / str(index), bytes([index]) * (PART_SIZE + 1), index) as snapshot:
                archive_on(server).push(snapshot)
        server.forget()
        yield server


def indexes(server):
    return [found.index for found in archive_on(server).list()]


def purge_at(server, now_s, keep=9):
    sound = [found.inventory for found in archive_on(server).list() if found.inventory]
    place = bucket.Bucket(server.objects, "here")
    return asyncio.run(retention.purge(place, sound, keep, now_s))


def test_the_oldest_go_with_their_parts(server):
    assert archive_on(server).purge(keep=2) == [7]
    assert indexes(server) == [8, 9]
    assert not [name for name in server.names() if name.startswith(f"{7:016x}")]
    assert archive_on(server).purge(keep=2) == []
    assert archive_on(server).purge(keep=1) == [8]
    assert len(server.names()) == 3


def test_where_there_are_no_more_nothing_goes(server):
    before = server.names()
    for keep in (3, 4):
        assert archive_on(server).purge(keep=keep) == []
    assert server.names() == before


def test_the_inventory_goes_before_the_parts(server, monkeypatch):
    monkeypatch.setattr(bucket, "RETRIES_MAX", 0)
    left = ["let the first removal pass"]
    server.fault = lambda request: "cut" if request.is_removal and not (left and left.pop()) else None
    with pytest.raises(PeerUnreachable):
        archive_on(server).purge(keep=2)
    server.fault = lambda request: None
    assert indexes(server) == [8, 9]
    assert any(name.startswith(f"{7:016x}/") for name in server.names())


def test_a_broken_one_does_not_count_as_kept(server):
    obstore.put(server.objects, inventory_name(9), b"broken")
    assert archive_on(server).purge(keep=2) == []
    assert archive_on(server).purge(keep=1) == [7]
    assert indexes(server) == [8, 9]


def test_one_that_lacks_a_part_does_not_count_as_kept(server):
    obstore.delete(server.objects, next(name for name in server.names() if name.startswith(f"{9:016x}/")))
    assert archive_on(server).purge(keep=2) == []
    assert archive_on(server).purge(keep=1) == [7]
    assert indexes(server) == [8, 9]


def test_parts_that_others_left_beside_a_snapshot_go_after_a_day(server):
    left = [f"{9:016x}/another-key/part-0000{number}" for number in range(2)]
    for name in left:
        obstore.put(server.objects, name, b"left")
    before = server.names()
    purge_at(server, time.time() + DAY_S - 600)
    assert server.names() == before
    purge_at(server, time.time() + DAY_S + 600)
    assert server.names() == sorted(set(before) - set(left))


def test_a_push_that_ends_while_its_old_parts_are_looked_at_keeps_them(server):
    """One that broke yesterday before its inventory, and has nothing else to send."""
    last = bytes(obstore.get(server.objects, inventory_name(8)).bytes())
    obstore.delete(server.objects, inventory_name(8))

    def end(request):
        if f"{8:016x}" in request.query:
            server.fault = lambda request: None
            obstore.put(server.objects, inventory_name(8), last)

    server.fault = end
    purge_at(server, time.time() + DAY_S + 600)
    assert indexes(server) == [7, 8, 9]
    assert len([name for name in server.names() if name.startswith(f"{8:016x}/")]) == 2


def test_parts_that_nobody_finished_go_after_a_day_and_not_before(server):
    obstore.delete(server.objects, inventory_name(8))
    before = server.names()
    purge_at(server, time.time())
    purge_at(server, time.time() + DAY_S - 600)
    assert server.names() == before
    purge_at(server, time.time() + DAY_S + 600)
    assert server.names() == [name for name in before if not name.startswith(f"{8:016x}")]
    assert indexes(server) == [7, 9]


def test_one_fresh_part_keeps_the_older_ones_of_its_push(server):
    obstore.delete(server.objects, inventory_name(8))
    changed = max(found["last_modified"] for found in obstore.list(server.objects, f"{8:016x}").collect())
    before = server.names()
    purge_at(server, changed.timestamp() + DAY_S - 0.5)
    assert server.names() == before


@pytest.mark.parametrize("keep", [0, -1, True, 1.5, None])
def test_keep_is_a_number_and_never_none(keep):
    with pytest.raises(ValueError, match="keep must be 1 or more"):
        Archive("s3://nobody-is-asked").purge(keep=keep)
