"""The awaited calls: as the blocking ones are, bounded, and when a task is cancelled nothing goes on."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import os
import threading

import pytest

from nodes import CONTENT, META, UNIT, WAIT_S, Impostor, endless, read_head, saying, wait_until, written
from snapstore import _fastpipe
from snapstore.aio import _THREADS, THREADS_MAX, AsyncClient, opened, save_from
from snapstore.directory import SnapshotDir
from snapstore.errors import PeerUnreachable, SnapshotCorrupt, SnapshotExists, SnapshotNotFound
from snapstore.retry import RetryPolicy
from snapstore.transport.http import SnapshotClient

pytestmark = pytest.mark.usefixtures("nothing_lost")


@pytest.fixture
def directory(nothing_lost, tmp_path):
    with SnapshotDir(tmp_path / "own", chunk_size=UNIT) as directory:
        yield directory


def run(main):
    """Run `main(loop)`, with a limit that only a failure meets."""

    async def limited():
        return await asyncio.wait_for(main(asyncio.get_running_loop()), WAIT_S)

    return asyncio.run(limited())


class WatchedClient(SnapshotClient):
    """Knows how many threads are in its calls."""

    inside = 0
    lock = threading.Lock()

    @contextlib.contextmanager
    def _entered(self):
        with self.lock:
            WatchedClient.inside += 1
        try:
            yield
        finally:
            with self.lock:
                WatchedClient.inside -= 1

    def send_snapshot(self, *arguments, **options):
        with self._entered():
            return super().send_snapshot(*arguments, **options)

    def fetch(self, *arguments, **options):
        with self._entered():
            return super().fetch(*arguments, **options)

    def list(self, url):
        with self._entered():
            return super().list(url)


class Gate:
    """A reader of `CONTENT` whose first `read` waits until it may; notes who is in it."""

    def __init__(self, on_read=lambda: None):
        self.open = threading.Event()
        self.entered = 0
        self.most = 0
        self._lock = threading.Lock()
        self._on_read = on_read

    def reader(self):
        return _GatedReader(self)

    def enter(self):
        with self._lock:
            self.entered += 1
            self.most = max(self.most, self.entered)
        self._on_read()
        try:
            assert self.open.wait(WAIT_S)
        finally:
            with self._lock:
                self.entered -= 1


class _GatedReader:
    def __init__(self, gate):
        self._gate, self._rest = gate, None

    def read(self, size):
        if self._rest is None:
            self._gate.enter()
            self._rest = CONTENT
        piece, self._rest = self._rest[:size], self._rest[size:]
        return piece


async def cancelled(task):
    """Await `task`, which was cancelled: it has to say so."""
    with pytest.raises(asyncio.CancelledError):
        await task


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
        saved.path.write_bytes(CONTENT[:-1] + b"?")
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


def test_a_hundred_at_once_are_bounded_and_the_loops_own_threads_stay_free(directory):
    async def main(loop):
        full = asyncio.Event()
        gate = Gate(on_read=lambda: gate.entered == THREADS_MAX and loop.call_soon_threadsafe(full.set))
        saves = [asyncio.ensure_future(save_from(directory, gate.reader(), index)) for index in range(1, 101)]
        await full.wait()
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
        full = asyncio.Event()
        gate = Gate(on_read=lambda: gate.entered == THREADS_MAX and loop.call_soon_threadsafe(full.set))
        saves = [
            asyncio.ensure_future(save_from(directory, gate.reader(), index + 1))
            for index in range(THREADS_MAX)
        ]
        await full.wait()
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


def test_a_cancelled_task_waits_for_its_thread_however_often_it_is_cancelled(directory):
    async def main(loop):
        begun = asyncio.Event()
        gate = Gate(on_read=lambda: loop.call_soon_threadsafe(begun.set))
        progress = _fastpipe.Progress()
        save = asyncio.ensure_future(save_from(directory, gate.reader(), 7, progress=progress))
        await begun.wait()
        for _ in range(3):
            save.cancel()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert not save.done()  # The thread is in `read`, of which nobody can get it out.
        assert progress.cancelled
        gate.open.set()
        await cancelled(save)
        assert gate.entered == 0

    run(main)
    assert directory.list() == []


@pytest.mark.parametrize("pieces", [0, 1, 2, 5, 20, 63])
def test_a_send_that_is_cancelled_in_its_body_has_let_go(follower, pieces):
    async def main(loop):
        def pace(offset):
            if offset == pieces * UNIT:
                loop.call_soon_threadsafe(lambda: sending.cancel())

        retrying = WatchedClient(retry=RetryPolicy())  # It must not try again either.
        with written(bytes(64 * UNIT), pace=pace) as stream:
            sending = asyncio.ensure_future(
                AsyncClient(retrying).send_snapshot(follower.url, stream, chunk_size=UNIT)
            )
            with contextlib.suppress(asyncio.CancelledError):  # The last piece may be the quicker one.
                assert (await sending).index == 7
            assert WatchedClient.inside == 0
            assert not stream.closed

    run(main)


@pytest.mark.parametrize("turns", [*range(12), 20, 50, 200, 1000, 5000])
def test_calls_that_are_cancelled_at_any_turn_of_the_loop_leave_nothing(follower, directory, turns):
    """Before the thread, in the handshake, in the body, in the fsync, and when it is all over."""
    follower.directory.save_from(CONTENT, 1)
    directory.save_from(CONTENT, 2)
    directory.save_from(CONTENT, 3)

    async def read():
        async with opened(directory, 2):
            await asyncio.Event().wait()

    async def main(loop):
        client = AsyncClient(WatchedClient())
        with endless() as stream:
            tasks = [
                asyncio.ensure_future(call)
                for call in (
                    client.send_snapshot(follower.url, stream),
                    client.fetch(follower.url, 1, directory),
                    client.list(follower.url),
                    save_from(directory, CONTENT, 9),
                    read(),
                )
            ]
            for _ in range(turns):
                await asyncio.sleep(0)
            for task in tasks:
                task.cancel()
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(outcomes[0], asyncio.CancelledError)
        for outcome in outcomes:
            assert isinstance(outcome, asyncio.CancelledError) or not isinstance(outcome, BaseException)
        assert WatchedClient.inside == 0

    run(main)
    kept = {saved.index for saved in directory.list()}
    assert set(directory.purge(keep=1)) == kept - {max(kept)}  # Nobody leases anything any more.


def silent_from(stage, heard):
    """An impostor's behaviour: fall silent at this stage of a push, and listen."""

    def behave(connection, *_):
        if stage != "handshake":
            read_head(connection)
        if stage == "answer":
            connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            received = b""
            while not received.endswith(b"0\r\n\r\n"):  # The end of a chunked body.
                received = (received + connection.recv(65536))[-5:]
        heard()
        while connection.recv(65536):
            pass

    return behave


@pytest.mark.parametrize("stage", ["offer", "answer"])
def test_a_peer_that_says_nothing_holds_no_task(stage):
    """No progress is looked at there, and the peer has minutes: only a cut line ends it."""

    async def main(loop):
        silent = asyncio.Event()
        with (
            Impostor(silent_from(stage, lambda: loop.call_soon_threadsafe(silent.set))) as peer,
            written() as stream,
        ):
            sending = asyncio.ensure_future(
                AsyncClient(WatchedClient(retry=RetryPolicy())).send_snapshot(peer.url, stream)
            )
            await silent.wait()
            begun_s = loop.time()
            sending.cancel()
            await cancelled(sending)
            assert WatchedClient.inside == 0
            assert loop.time() - begun_s < WAIT_S / 4

    run(main)


def test_a_handshake_that_does_not_end_holds_no_task(node):
    async def main(loop):
        silent = asyncio.Event()
        behave = silent_from("handshake", lambda: loop.call_soon_threadsafe(silent.set))
        with Impostor(behave) as peer:
            listing = asyncio.ensure_future(
                AsyncClient(WatchedClient(tls=node.client)).list(peer.url.replace("http", "https"))
            )
            await silent.wait()
            listing.cancel()
            await cancelled(listing)
            assert WatchedClient.inside == 0

    run(main)


def test_a_wait_between_two_attempts_ends_with_the_task():
    async def main(loop):
        waiting = asyncio.Event()
        slept = threading.Event()

        def sleep(duration_s):
            loop.call_soon_threadsafe(waiting.set)
            slept.wait(duration_s)

        busy = b"HTTP/1.1 503 x\r\nContent-Length: 2\r\nRetry-After: 1000\r\nConnection: close\r\n\r\n{}"
        client = WatchedClient(retry=RetryPolicy(sleep=sleep, elapsed_s_max=10000.0))
        with Impostor(saying(busy)) as peer:
            listing = asyncio.ensure_future(AsyncClient(client).fetch(peer.url, 7, None))
            await waiting.wait()
            listing.cancel()
            await cancelled(listing)
            assert WatchedClient.inside == 0

    run(main)


class HookedDir(SnapshotDir):
    """Calls `then` when a snapshot is open, before anybody has it."""

    def open(self, *arguments, **options):
        stored = super().open(*arguments, **options)
        self.then()
        self.stored = stored
        return stored


def test_what_was_opened_for_a_task_that_is_cancelled_is_closed(tmp_path):
    async def main(loop):
        async def read():
            async with opened(directory, 1):
                pytest.fail("it was cancelled")

        reading = asyncio.ensure_future(read())
        directory.then = lambda: loop.call_soon_threadsafe(reading.cancel)
        await cancelled(reading)
        assert directory.purge(keep=1) == [1]

    with HookedDir(tmp_path / "hooked", chunk_size=UNIT) as directory:
        directory.save_from(CONTENT, 1)
        directory.save_from(CONTENT, 2)
        directory.then = lambda: None
        directory.verify(2)
        run(main)


def test_what_was_opened_for_a_loop_that_is_no_more_is_closed(tmp_path, caplog):
    """Nobody should do that; `asyncio.run` does not."""
    loop, begun, go_on = asyncio.new_event_loop(), asyncio.Event(), threading.Event()

    def then():
        loop.call_soon_threadsafe(begun.set)
        assert go_on.wait(WAIT_S)

    async def read():
        async with opened(directory, 1):
            pytest.fail("there is no loop")

    with HookedDir(tmp_path / "hooked", chunk_size=UNIT) as directory:
        directory.save_from(CONTENT, 1)
        directory.save_from(CONTENT, 2)
        directory.then = then
        reading = loop.create_task(read())
        loop.run_until_complete(begun.wait())
        loop.close()
        go_on.set()
        directory.then = lambda: None
        wait_until(lambda: directory.purge(keep=1) == [1])
        del reading
        gc.collect()
    assert [record.message.split("\n")[0] for record in caplog.records] == [
        "Task was destroyed but it is pending!"
    ]


def test_a_forked_child_has_threads_of_its_own(directory):
    """Those of its parent are counted no more, be they all at work."""

    async def main(loop):
        full = asyncio.Event()
        gate = Gate(on_read=lambda: gate.entered == THREADS_MAX and loop.call_soon_threadsafe(full.set))
        saves = [
            asyncio.ensure_future(save_from(directory, gate.reader(), index + 1))
            for index in range(THREADS_MAX)
        ]
        await full.wait()
        child = os.fork()
        if child == 0:
            ended = threading.Event()
            _THREADS.run(ended.set)
            os._exit(0 if ended.wait(WAIT_S) else 1)
        gate.open.set()
        await asyncio.gather(*saves)
        return os.waitpid(child, 0)[1]

    assert run(main) == 0


def test_a_block_that_is_left_by_cancellation_gives_the_lease_back(directory):
    directory.save_from(CONTENT, 1)
    directory.save_from(CONTENT, 2)

    async def main(loop):
        async def read():
            async with opened(directory, 1):
                inside.set()
                await asyncio.Event().wait()

        inside = asyncio.Event()
        reading = asyncio.ensure_future(read())
        await inside.wait()
        assert directory.purge(keep=1) == []
        reading.cancel()
        await cancelled(reading)
        assert directory.purge(keep=1) == [1]

    run(main)


def test_a_thread_that_cannot_be_had_is_an_error_and_later_calls_work(directory, monkeypatch):
    def refuse(thread):
        raise RuntimeError("can't start new thread")

    async def main(loop):
        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", refuse)
            with pytest.raises(RuntimeError, match="thread"):
                await save_from(directory, CONTENT, 7)
        assert (await save_from(directory, CONTENT, 7)).index == 7

    run(main)
