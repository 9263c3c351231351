"""Fixtures that several test modules share."""

from __future__ import annotations

import gc
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

import bystander
import nodes
from pipes_at_work import SIZE
from snapstore import _fastpipe
from snapstore.directory import SnapshotDir

#: Else gRPC opens descriptors anew in this process whenever it forks, which look like ours that were lost.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """What collecting makes stays: to look through it for garbage takes longer each time."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


def pytest_collection_finish():
    """Let what comes with the first thread, a sanitizer's own, be there before threads are counted."""
    first = threading.Thread(target=int)
    first.start()
    first.join()


def pytest_terminal_summary(terminalreporter):
    if bystander.MET:
        met = ", ".join(f"{count} {kind}" for kind, count in sorted(bystander.MET.items()))
        terminalreporter.write_line(f"hostile peers met: {bystander.MET.total()} ({met})")


@pytest.fixture(scope="module", autouse=True)
def others_leave_nothing_to_look_at():
    """What earlier modules left alive is looked at once; else each collection takes longer than the last."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def nothing_lost():
    """No descriptor and no thread is left when the test, and the fixtures it asked for, are over."""
    with nodes.nothing_lost():
        yield


@pytest.fixture
def follower(nothing_lost, tmp_path):
    with nodes.Follower(tmp_path / "follower") as follower:
        yield follower


@pytest.fixture(scope="module")
def small_parts():
    """An archive may have parts of a few chunks, and the pipe of a pull holds less than a part."""
    import archive_places

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("snapstore.archive.layout.PART_SIZE_MIN", archive_places.PART_SIZE)
        patched.setattr("snapstore.archive.download._SLOT_SIZE", archive_places.CHUNK_SIZE)
        yield


@pytest.fixture
def server():
    """A server that speaks S3, with nothing in it: where a module says no other, `server` is an archive's."""
    from archive_server import ArchiveServer

    with ArchiveServer() as server:
        yield server


@pytest.fixture
def target(tmp_path):
    """A directory to receive into, empty."""
    with SnapshotDir(tmp_path / "target") as target:
        yield target


@pytest.fixture
def quick_doctor(monkeypatch):
    """An examination writes little and syncs seldom: how much it does for real is one test's."""
    monkeypatch.setattr("snapstore.doctor.pace.PROBE_SIZE", 4 * 2**20)
    monkeypatch.setattr("snapstore.doctor.pace.SYNCS_MAX", 2)


@pytest.fixture
def background():
    with ThreadPoolExecutor() as pool:
        yield pool.submit


@pytest.fixture
def pair(background):
    reader, writer = _fastpipe.pipe(chunk_size=SIZE, chunks=2)
    yield reader, writer
    reader.close()  # Whoever still waits after a failure is let go.
    writer.close()


@pytest.fixture(scope="session")
def authority(tmp_path_factory):
    """Signs certificates. Imported here, so that only tests of TLS need what it takes."""
    from certificates import Authority

    return Authority(tmp_path_factory.mktemp("certificates") / "ours")


@pytest.fixture(scope="session")
def node(authority):
    """Credentials of a node on this machine."""
    return authority.issue("127.0.0.1", "localhost")


@pytest.fixture
def secured(nothing_lost, tmp_path, node):
    """A follower that speaks TLS."""
    with nodes.Follower(tmp_path / "follower", tls=node.server) as follower:
        yield follower
