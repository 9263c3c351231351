"""Lines that break, servers that have no time, processes that are killed: what was done stays done."""

from __future__ import annotations

import threading

import pytest

from archive_places import CONTENT, PART_SIZE, PARTS, archive_on, archived, stored
from archive_server import gets, obstore, part_puts
from command_line import END_S_MAX
from nodes import stored_names
from snapstore._fastpipe import Progress
from snapstore.archive import bucket, download, upload
from snapstore.archive.layout import inventory_name
from snapstore.errors import PeerRejected, PeerUnreachable, PipeClosed, TransportError
from snapstore.reception import partial_name

pytestmark = pytest.mark.usefixtures("small_parts")


@pytest.fixture
def at_once(monkeypatch):
    """Without retries, and one request after the other: it is known then what was done before a fault."""
    monkeypatch.setattr(bucket, "RETRIES_MAX", 0)
    monkeypatch.setattr(upload, "PARTS_AT_ONCE", 1)
    monkeypatch.setattr(download, "READS_AT_ONCE", 1)


def failing(fault, *, method, name):
    """A fault of every such request."""

    def find(request):
        return fault if request.method == method and request.path.endswith(name) else None

    return find


def once(fault, *, method, name):
    """A fault of the first such request."""
    left = [fault]

    def find(request):
        found = request.method == method and request.path.endswith(name)
        return left.pop() if found and left else None

    return find


def no_archive_thread():
    return not [thread for thread in threading.enumerate() if thread.name == "snapstore-archive"]


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ("cut", PeerUnreachable),
        pytest.param("500 InternalError", PeerRejected, marks=pytest.mark.slow),
        pytest.param("403 No", PeerRejected, marks=pytest.mark.slow),
    ],
)
def test_a_push_goes_on_with_the_parts_that_are_missing(server, tmp_path, target, at_once, fault, kind):
    archive = archive_on(server)
    server.fault = failing(fault, method="PUT", name="part-00003")
    with stored(tmp_path / "d") as snapshot:
        with pytest.raises(kind, match="part-00003"):
            archive.push(snapshot)
        assert archive.list() == []
        assert no_archive_thread()
        server.fault = lambda request: None
        server.forget()
        pushed = archive.push(snapshot)
    assert part_puts(server.requests) == PARTS[3:]
    assert (pushed.sent, pushed.existed) == (len(CONTENT) - 3 * PART_SIZE, False)
    assert archive.pull(7, target).path.read_bytes() == CONTENT


def test_of_several_parts_under_way_none_that_arrived_is_sent_again(server, tmp_path, monkeypatch):
    monkeypatch.setattr(bucket, "RETRIES_MAX", 0)
    server.fault = failing("cut", method="PUT", name="part-00003")
    with stored(tmp_path / "d") as snapshot:
        with pytest.raises(PeerUnreachable):
            archive_on(server).push(snapshot)
        arrived = server.whole_parts(PART_SIZE)
        server.fault = lambda request: None
        server.forget()
        archive_on(server).push(snapshot)
    assert arrived.isdisjoint(part_puts(server.requests))


def test_a_break_before_the_inventory_costs_the_inventory_alone(server, tmp_path, at_once):
    server.fault = failing("cut", method="PUT", name=inventory_name(7))
    with stored(tmp_path / "d") as snapshot:
        with pytest.raises(PeerUnreachable):
            archive_on(server).push(snapshot)
        assert archive_on(server).list() == []
        server.fault = lambda request: None
        server.forget()
        assert archive_on(server).push(snapshot).sent == 0
    assert part_puts(server.requests) == []
    assert len(archive_on(server).list()) == 1


def test_an_inventory_whose_answer_was_lost_is_the_one_it_should_be(server, tmp_path, at_once):
    # Every time: a line that was open before may be tried a second time below obstore.
    server.fault = failing("lost", method="PUT", name=inventory_name(7))
    with stored(tmp_path / "d") as snapshot:
        with pytest.raises(PeerUnreachable):
            archive_on(server).push(snapshot)
        server.fault = lambda request: None
        assert archive_on(server).push(snapshot).existed
    assert [found.problem for found in archive_on(server).list()] == [None]


def test_a_part_that_the_server_forgets_is_no_success(server, tmp_path):
    server.fault = failing("200 OK", method="PUT", name="part-00002")
    with stored(tmp_path / "d") as snapshot, pytest.raises(TransportError, match="does not list it"):
        archive_on(server).push(snapshot)
    assert archive_on(server).list() == []


@pytest.mark.parametrize("fault", ["503 SlowDown", pytest.param("cut", marks=pytest.mark.slow)])
def test_one_break_is_nobodys_business(server, tmp_path, target, fault):
    server.fault = once(fault, method="PUT", name="part-00001")
    with stored(tmp_path / "d") as snapshot:
        archive_on(server).push(snapshot)
    assert part_puts(server.requests).count("part-00001") == 2
    server.fault = once(fault, method="GET", name="part-00001")
    assert archive_on(server).pull(7, target).path.read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ("half", PeerUnreachable),
        pytest.param("cut", PeerUnreachable, marks=pytest.mark.slow),
        pytest.param("503 SlowDown", PeerRejected, marks=pytest.mark.slow),
    ],
)
def test_a_pull_goes_on_behind_what_was_verified(tmp_path, target, at_once, fault, kind):
    with archived(tmp_path / "d") as server:
        server.fault = failing(fault, method="GET", name="part-00003")
        with pytest.raises(kind, match="part-00003"):
            archive_on(server).pull(7, target)
        assert stored_names(target.path) == []
        assert list(target.list()) == []
        assert no_archive_thread()
        server.fault = lambda request: None
        server.forget()
        archive = archive_on(server)
        assert archive.pull(7, target).path.read_bytes() == CONTENT
        assert [it.bytes for it in archive.registry.transfers()] == [len(CONTENT)]
        asked = [name for name in gets(server.requests) if name.startswith("part-")]
    # What was in the pipe when the line broke is lost, and it holds less than a part.
    assert asked in (PARTS[2:], PARTS[3:])


def test_what_rotted_between_two_pulls_is_asked_for_again(tmp_path, target, at_once):
    with archived(tmp_path / "d") as server:
        server.fault = failing("cut", method="GET", name="part-00003")
        with pytest.raises(PeerUnreachable):
            archive_on(server).pull(7, target)
        with open(target.path / partial_name(7), "r+b") as file:
            file.write(bytes([CONTENT[0] ^ 1]))
        server.fault = lambda request: None
        server.forget()
        archive = archive_on(server)
        assert archive.pull(7, target).path.read_bytes() == CONTENT
        assert [it.bytes for it in archive.registry.transfers()] == [len(CONTENT)]
        assert "part-00000" in gets(server.requests)


def test_a_part_that_arrived_short_is_sent_again(server, tmp_path, target, at_once):
    server.fault = failing("cut", method="PUT", name="part-00003")
    with stored(tmp_path / "d") as snapshot:
        with pytest.raises(PeerUnreachable):
            archive_on(server).push(snapshot)
        first, *_ = server.names()
        obstore.put(server.objects, first, CONTENT[: PART_SIZE - 1])
        server.fault = lambda request: None
        server.forget()
        archive_on(server).push(snapshot)
    assert part_puts(server.requests) == [PARTS[0], *PARTS[3:]]
    assert archive_on(server).pull(7, target).path.read_bytes() == CONTENT


def test_a_save_that_fails_ends_the_pull_though_nobody_answers(tmp_path, target):
    with archived(tmp_path / "d") as server:
        reached, release = server.hold("part-00002")
        progress, outcome = Progress(), []

        def pull():
            with pytest.raises(PipeClosed):
                archive_on(server).pull(7, target, progress=progress)
            outcome.append("ended")

        puller = threading.Thread(target=pull)
        puller.start()
        assert reached.wait(END_S_MAX)
        progress.cancel()
        puller.join(END_S_MAX)  # While the server still holds its answer.
        release.set()
    assert outcome == ["ended"]
    assert no_archive_thread()
