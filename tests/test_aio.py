"""The awaited calls: as the blocking ones are, and so many at once as there may be."""

from __future__ import annotations

import asyncio
import contextvars
import os
import threading

import pytest

from nodes import CONTENT, META, UNIT, WAIT_S, wait_until, written
from rotten import rot
from snapstore import _fastpipe
from snapstore.aio import _THREADS, THREADS_MAX, AsyncClient, opened, save_from
from snapstore.directory import SnapshotDir
from snapstore.errors import PeerUnreachable, SnapshotCorrupt, SnapshotExists, SnapshotNotFound
from snapstore.transport.http import SnapshotClient
from tasks_at_work import Gate, cancelled, run

pytestmark = pytest.mark.usefixtures("nothing_lost")


@pytest.fixture
def directory(nothing_lost, tmp_path):
    with SnapshotDir(tmp_path / "own", chunk_size=UNIT) as directory:
        yield directory


def test_a_snapshot_goes_the_whole_way(follower, directory):
    async def main(loop):
        client = AsyncClient(SnapshotClient())
        sent_bytes = _fastpipe.Progress()
        with written() as stream:
            sent = await client.send_snapshot(follower.url, stream, chunk_size=UNIT, progress=sent_bytes)
        assert (sent.index, sent.size, sent_bytes.bytes) == (7, len(CONTENT), len(CONTENT))
        assert [entry["index"] for entry in await client.list(follower.url)] == [7]
        fetched = await client.fetch(follower.url, 7, directory, digest=sent.digest)
        assert fetched.meta == META
        saved = await save_from(directory, CONTENT, 8, size=len(CONTENT))
        assert saved.path.read_bytes() == CONTENT
        async with opened(directory, 8) as stored:
            assert stored.path.read_bytes() == CONTENT
            assert directory.purge(keep=1) == [7]

    run(main)


def test_errors_come_as_they_are(follower, directory):
    class Broken(Exception):
        pass

    def breaks(offset):
        raise Broken

    async def main(loop):
        client = AsyncClient(SnapshotClient())
        with written(pace=breaks) as stream, pytest.raises(Broken):
            await client.send_snapshot(follower.url, stream)
        with pytest.raises(PeerUnreachable):
            await client.list("http://127.0.0.1:1")
        with pytest.raises(ValueError, match="URL"):
            await client.fetch("nonsense", 7, directory)
        saved = await save_from(directory, CONTENT, 7)
        with pytest.raises(SnapshotExists):
            await save_from(directory, CONTENT, 7)
        rot(saved.path)
        with pytest.raises(SnapshotCorrupt):
            async with opened(directory, 7):
                pytest.fail("it is broken")
        with pytest.raises(SnapshotNotFound):
            async with opened(directory, 7):
                pytest.fail("it was set aside")

    run(main)


def test_the_callers_context_goes_along(directory):
    owner = contextvars.ContextVar("owner")
    seen = []
    gate = Gate(on_read=lambda: seen.append(owner.get()))
    gate.open.set()

    async def save(index):
        owner.set(index)
        await save_from(directory, gate.reader(), index)

    async def main(loop):
        await asyncio.gather(save(1), save(2))

    run(main)
    assert sorted(seen) == [1, 2]


async def all_threads_taken(directory, count=THREADS_MAX):
    """So many saves, and the gate at which those wait that have a thread: as many as there may be."""
    loop, full = asyncio.get_running_loop(), asyncio.Event()
    gate = Gate(on_read=lambda: gate.entered == THREADS_MAX and loop.call_soon_threadsafe(full.set))
    saves = [
        asyncio.ensure_future(save_from(directory, gate.reader(), index)) for index in range(1, count + 1)
    ]
    await full.wait()
    return gate, saves


def test_a_hundred_at_once_are_bounded_and_the_loops_own_threads_stay_free(directory):
    async def main(loop):
        gate, saves = await all_threads_taken(directory, 100)
        assert await asyncio.to_thread(int, "1") == 1
        threads = [thread for thread in threading.enumerate() if thread.name == "snapstore-aio"]
        assert len(threads) == THREADS_MAX
        gate.open.set()
        assert sorted(saved.index for saved in await asyncio.gather(*saves)) == list(range(1, 101))
        assert gate.most <= THREADS_MAX

    run(main)
    assert len(directory.list()) == 100


def test_one_that_is_cancelled_before_it_has_a_thread_never_begins(directory):
    async def main(loop):
        gate, saves = await all_threads_taken(directory)
        late = asyncio.ensure_future(save_from(directory, CONTENT, 1000))
        await asyncio.sleep(0)
        late.cancel()
        await cancelled(late)
        gate.open.set()
        await asyncio.gather(*saves)

    run(main)
    assert len(directory.list()) == THREADS_MAX
    with pytest.raises(SnapshotNotFound):
        directory.stat(1000)


def test_a_forked_child_has_threads_of_its_own(directory):
    """Those of its parent are counted no more, be they all at work."""

    async def main(loop):
        gate, saves = await all_threads_taken(directory)
        child = os.fork()
        if child == 0:
            ended = threading.Event()
            _THREADS.run(ended.set)
            os._exit(0 if ended.wait(WAIT_S) else 1)
        gate.open.set()
        await asyncio.gather(*saves)
        return os.waitpid(child, 0)[1]

    assert run(main) == 0


def test_a_thread_that_cannot_be_had_is_an_error_and_later_calls_work(directory, monkeypatch):
    def refuse(thread):
        raise RuntimeError("can't start new thread")

    async def main(loop):
        progress = _fastpipe.Progress()
        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", refuse)
            with pytest.raises(RuntimeError, match="thread"):
                await save_from(directory, CONTENT, 7, progress=progress)
        assert (await save_from(directory, CONTENT, 7, progress=progress)).index == 7

    run(main)


def test_ctrl_c_while_a_thread_begins_is_raised_and_ends_what_began(directory, monkeypatch):
    start = threading.Thread.start

    def interrupted(thread):
        start(thread)
        raise KeyboardInterrupt

    async def main(loop):
        gate, progress = Gate(), _fastpipe.Progress()
        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", interrupted)
            with pytest.raises(KeyboardInterrupt):
                await save_from(directory, gate.reader(), 7, progress=progress)
        assert progress.cancelled
        gate.open.set()
        saves = [save_from(directory, CONTENT, index) for index in range(8, 40)]
        assert len(await asyncio.gather(*saves)) == 32

    run(main)
    wait_until(lambda: _THREADS._count == 0)
