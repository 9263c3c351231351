"""A task that is cancelled, wherever it is: it ends when its thread has let go, and nothing goes on."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import threading

import pytest

from nodes import CONTENT, UNIT, WAIT_S, Impostor, endless, read_head, saying, wait_until, written
from snapstore import _fastpipe
from snapstore.aio import AsyncClient, _awaited, opened, save_from
from snapstore.directory import SnapshotDir
from snapstore.retry import RetryPolicy
from snapstore.transport.severance import Severance
from tasks_at_work import Gate, WatchedClient, cancelled, run

pytestmark = pytest.mark.usefixtures("nothing_lost")


@pytest.fixture
def directory(nothing_lost, tmp_path):
    with SnapshotDir(tmp_path / "own", chunk_size=UNIT) as directory:
        yield directory


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


@pytest.mark.parametrize(
    "call", [lambda client, url: client.fetch(url, 7, None), lambda client, url: client.list(url)]
)
def test_a_wait_between_two_attempts_ends_with_the_task(call):
    async def main(loop):
        waiting = asyncio.Event()
        slept = threading.Event()

        def sleep(duration_s):
            loop.call_soon_threadsafe(waiting.set)
            slept.wait(duration_s)

        busy = b"HTTP/1.1 503 x\r\nContent-Length: 2\r\nRetry-After: 1000\r\nConnection: close\r\n\r\n{}"
        client = WatchedClient(retry=RetryPolicy(sleep=sleep, elapsed_s_max=10000.0))
        with Impostor(saying(busy)) as peer:
            calling = asyncio.ensure_future(call(AsyncClient(client), peer.url))
            await waiting.wait()
            calling.cancel()
            await cancelled(calling)
            assert WatchedClient.inside == 0

    run(main)


def test_a_call_that_was_cut_makes_no_line_any_more():
    severance, (ours, theirs) = Severance(), socket.socketpair()
    with ours, theirs:
        with severance.over(ours):
            severance.sever()
            assert theirs.recv(1) == b""
        with pytest.raises(ConnectionAbortedError), severance.over(theirs):
            pytest.fail("it was cut")


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


def test_what_was_opened_for_a_coroutine_that_was_closed_is_closed(tmp_path):
    """It cannot wait for its thread, whose result nobody takes any more."""

    async def main(loop):
        opening = _awaited(lambda: directory.open(1), lambda: None, undo=lambda stored: stored.close())
        opening.send(None)
        while not begun.is_set():
            await asyncio.sleep(0)
        opening.close()
        go_on.set()
        while directory.purge(keep=1) != [1]:
            await asyncio.sleep(0)

    begun, go_on = threading.Event(), threading.Event()

    def then():
        begun.set()
        assert go_on.wait(WAIT_S)

    with HookedDir(tmp_path / "hooked", chunk_size=UNIT) as directory:
        directory.save_from(CONTENT, 1)
        directory.save_from(CONTENT, 2)
        directory.then = lambda: None
        directory.verify(2)
        directory.then = then
        run(main)


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
