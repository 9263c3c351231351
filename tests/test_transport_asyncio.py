"""A node that lives in an event loop: neither a save nor a send in its process stalls the loop."""

from __future__ import annotations

import asyncio
import time

import pytest

from nodes import Follower, ImagedSnapshot
from processes import Process
from snapstore.meta import SnapshotMeta
from snapstore.stream import SnapshotStream
from snapstore.transport.http import SnapshotClient

MIB = 1024 * 1024

#: How often the loop wants to be called.
TICK_S = 0.005

#: In the plain run other tests and other machines' guests take the processor away; a loop that waits
#: for a transfer would be late by the whole of it, which is many times this.
LATE_S_MAX = 0.1

#: What is asked of a machine that is left alone: p99 of the delay during 1 GiB.
LATE_S_MAX_ALONE = 0.010

#: A neighbour's burst spoils one measurement, hardly three.
ATTEMPTS = 3


pytestmark = pytest.mark.usefixtures("nothing_lost")


async def late_ticks_during(work):
    """Run `work` in a thread and return by how many seconds each tick of the loop came late."""
    late = []
    running = asyncio.ensure_future(asyncio.to_thread(work))
    while not running.done():
        due = time.perf_counter() + TICK_S
        await asyncio.sleep(TICK_S)
        late.append(time.perf_counter() - due)
    await running
    return late


def percentile(values, part):
    return sorted(values)[min(len(values) - 1, int(len(values) * part))]


def sparse_file(path, size):
    with open(path, "wb") as file:
        file.truncate(size)
    return path


def test_a_loop_goes_on_while_its_process_sends_and_saves(tmp_path):
    image = sparse_file(tmp_path / "image", 256 * MIB)

    def transfer():
        with SnapshotStream(SnapshotMeta(7), ImagedSnapshot(image)) as stream:
            SnapshotClient().send_snapshot(follower.url, stream)

    async def node():
        late = await late_ticks_during(transfer)
        # What was saved is stepped in the loop itself, from the server's thread.
        assert await asyncio.wait_for(saved.get(), 20) == 7
        return late

    async def run():
        nonlocal follower, saved
        saved, loop = asyncio.Queue(), asyncio.get_running_loop()
        follower = Follower(
            tmp_path / "follower",
            on_saved=lambda snapshot: loop.call_soon_threadsafe(saved.put_nowait, snapshot.index),
        )
        with follower:
            return await node()

    follower = saved = None
    # The loop's own pool of threads is joined by `asyncio.run`.
    late = asyncio.run(run())
    assert len(late) >= 5
    assert percentile(late, 0.99) < LATE_S_MAX, sorted(late)[-5:]


def test_on_saved_may_wait_for_the_loop(tmp_path):
    """A node's raft lives in its loop: the server's thread hands over and waits for the outcome."""

    async def step(index):
        raise RuntimeError(f"raft refused {index}")

    async def run():
        loop = asyncio.get_running_loop()

        def hand_over(saved):
            asyncio.run_coroutine_threadsafe(step(saved.index), loop).result(20)

        def send():
            with SnapshotStream(SnapshotMeta(7), ImagedSnapshot(image)) as stream:
                SnapshotClient().send_snapshot(follower.url, stream)

        with Follower(tmp_path / "follower", on_saved=hand_over) as follower:
            with pytest.raises(Exception, match="raft refused 7"):
                await asyncio.to_thread(send)
            assert follower.indexes == [7]

    image = sparse_file(tmp_path / "image", MIB)
    asyncio.run(run())


FOLLOWER = """
    from snapstore.transport.http import SnapshotServer
    with SnapshotDir(sys.argv[1]) as directory, SnapshotServer(directory) as server:
        say(server.url)
        sys.stdin.readline()
"""

LEADER = """
    import asyncio, time
    from snapstore import _fastpipe
    from snapstore.meta import SnapshotMeta
    from snapstore.stream import SnapshotStream
    from snapstore.transport.http import SnapshotClient
    from nodes import ImagedSnapshot
    from pathlib import Path
    from test_transport_asyncio import late_ticks_during

    url, image, index = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])

    def transfer():
        with SnapshotStream(SnapshotMeta(index), ImagedSnapshot(image)) as stream:
            SnapshotClient().send_snapshot(url, stream)

    say(*asyncio.run(late_ticks_during(transfer)))
"""


@pytest.mark.slow
def test_the_leaders_loop_is_on_time_during_a_gibibyte(tmp_path):
    image = tmp_path / "image"
    with open(image, "wb") as file:
        file.writelines(block.to_bytes(8, "big") * (MIB // 8) for block in range(1024))
    measured = []
    for attempt in range(ATTEMPTS):
        with Process(FOLLOWER, tmp_path / f"follower-{attempt}") as follower:
            with Process(LEADER, follower.hear(), image, attempt) as leader:
                late = [float(word) for word in leader.hear().split()]
                leader.finish()
            follower.finish()
        p50, p99 = percentile(late, 0.50), percentile(late, 0.99)
        measured.append(p99)
        print(f"{len(late)} ticks, seconds late: p50 {p50:.5f}, p99 {p99:.5f}, max {max(late):.5f}")
        if p99 < LATE_S_MAX_ALONE:
            return
        (tmp_path / f"follower-{attempt}" / f"{attempt:016x}.db").unlink()
    pytest.fail(f"the loop was late in each of {ATTEMPTS} attempts: p99 {measured} s")
