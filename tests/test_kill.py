"""SIGKILL in the middle of a send: the follower has the old state or the whole new one, and goes on."""

from __future__ import annotations

import os
import random
import time
from http import HTTPStatus

import pytest

from nodes import Follower, RawPeer, frames, put_head, stored_names, wait_until, written
from processes import Process
from residue import names
from snapstore._fastpipe import CHUNK_SIZE_DEFAULT, Progress
from snapstore.directory import SnapshotDir
from snapstore.errors import PeerRejected, PeerUnreachable
from snapstore.meta import SnapshotMeta
from snapstore.transport.http import SnapshotClient

#: More than all buffers between the two hold, so that the follower has written part of it.
CONTENT = os.urandom(1024 * 1024) * 24

#: How much was sent when the killing begins: whole chunks, so that the follower has some to keep.
REACHED = 3 * CHUNK_SIZE_DEFAULT

#: What a small save takes with its fsyncs, and some more.
SAVE_S_MAX = 0.012

#: A dead leader's connection is noticed at once; even a loaded machine is long past it by then.
ATTEMPTS_MAX = 1000

SOON, LATER = SnapshotMeta(5, 1), SnapshotMeta(7, 3)

FOLLOWER = """
    from snapstore.transport.http import SnapshotServer
    path, address, nameless = sys.argv[1:]
    directory = SnapshotDir(path, nameless=nameless == "nameless")
    with directory, SnapshotServer(directory, address) as server:
        say(server.url)
        sys.stdin.readline()
"""

LEADER = """
    from snapstore._fastpipe import Progress
    from snapstore.transport.http import SnapshotClient
    from nodes import wait_until, written
    from test_kill import REACHED, LATER

    content = sys.stdin.buffer.read(int(sys.argv[2]))

    def pace(offset):
        if offset >= REACHED:
            wait_until(lambda: progress.bytes >= REACHED)
            say("half")
            sys.stdin.buffer.read(1)

    progress = Progress()
    with written(content, LATER, pace=pace, size_known=sys.argv[3] == "sized", piece_size=65536) as stream:
        SnapshotClient().send_snapshot(sys.argv[1], stream, progress=progress)
"""

#: A small push whose end comes at once: nearly all of its time is fsync and naming.
SMALL = os.urandom(64 * 1024)
HEAD, BODY = put_head(SMALL, expect=False), frames(SMALL)

kinds_of_save = pytest.mark.parametrize("kind", ["nameless", "named"])
kinds_of_size = pytest.mark.parametrize("size", ["sized", "unsized"])


pytestmark = pytest.mark.usefixtures("nothing_lost")


def old_state(path):
    """A follower's directory with an older snapshot in it."""
    with SnapshotDir(path) as directory:
        directory.save_from(b"old", SOON)
    return path


def assert_old_or_new(path):
    """Reopened, the directory has the old snapshot, perhaps the new one as a whole, and nothing else.

    What was verified of a new one is kept beside them, until it is stored.
    """
    with SnapshotDir(path) as directory:
        indexes = [saved.index for saved in directory.list()]
        assert indexes in ([5], [5, 7])
        for index in indexes:
            directory.verify(index)
    wanted = [f"{index:016x}.{kind}" for index in indexes for kind in ("db", "json")]
    assert (names if indexes == [5, 7] else stored_names)(path) == sorted(wanted)
    return indexes == [5, 7]


def send(url, *, size_known=True):
    """Send as a leader does: again, while the follower has not noticed yet that the one before died."""
    for _ in range(ATTEMPTS_MAX):
        with written(CONTENT, LATER, piece_size=1024 * 1024, size_known=size_known) as stream:
            try:
                return SnapshotClient().send_snapshot(url, stream)
            except PeerRejected as rejected:
                if rejected.status != HTTPStatus.SERVICE_UNAVAILABLE:
                    raise
    pytest.fail(f"the follower was busy {ATTEMPTS_MAX} times")


def assert_next_send_succeeds(path, address="127.0.0.1:0", *, size_known=True):
    had_it = assert_old_or_new(path)
    with Follower(path, address) as follower:
        # It may have had nothing on its disk yet: a kill takes what was on the way there.
        assert send(follower.url, size_known=size_known).existed == had_it
        assert follower.directory.verify(7).path.read_bytes() == CONTENT
        assert follower.indexes == [5, 7]


@kinds_of_size
def test_a_leader_killed_in_the_middle_leaves_the_follower_as_it_was(tmp_path, size):
    path = old_state(tmp_path / "follower")
    before = names(path)
    with Process(FOLLOWER, path, "127.0.0.1:0", "nameless") as follower:
        url = follower.hear()
        with Process(LEADER, url, len(CONTENT), size) as leader:
            leader.stdin.buffer.write(CONTENT)
            leader.stdin.flush()
            assert leader.hear() == "half"
            leader.kill()
            leader.wait()
        # The same follower shows nothing of the half, and takes the rest.
        assert stored_names(path) == before
        sent = send(url, size_known=size == "sized")
        assert not sent.existed
        assert sent.kept >= CHUNK_SIZE_DEFAULT
        follower.finish()
    assert_next_send_succeeds(path)


@kinds_of_size
def test_a_follower_killed_in_the_middle_starts_again_with_what_it_had(tmp_path, size):
    path = old_state(tmp_path / "follower")
    before = names(path)
    address = f"unix:{tmp_path}/node.sock"
    with Process(FOLLOWER, path, address, "nameless") as follower:
        url = follower.hear()

        def pace(offset):
            if offset >= REACHED and follower.returncode is None:
                wait_until(lambda: progress.bytes >= REACHED)
                follower.kill()
                follower.wait()

        progress = Progress()
        stream = written(CONTENT, LATER, pace=pace, size_known=size == "sized", piece_size=65536)
        with pytest.raises(PeerUnreachable), stream:
            SnapshotClient().send_snapshot(url, stream, progress=progress)
    assert stored_names(path) == before
    assert not assert_old_or_new(path)
    # The name of its socket was left, too, and the next start takes it over.
    assert_next_send_succeeds(path, address, size_known=size == "sized")


@kinds_of_save
@pytest.mark.parametrize("kills", [3, pytest.param(12, marks=pytest.mark.slow)])
def test_a_follower_killed_at_any_moment_has_the_old_state_or_the_whole_new_one(tmp_path, kind, kills):
    """The kills fall at random moments between the last bytes, the fsyncs, the names and the answer."""
    chance = random.Random(f"{kind} {kills}")
    for kill in range(kills):
        path = old_state(tmp_path / f"follower-{kill}")
        with Process(FOLLOWER, path, "127.0.0.1:0", kind) as follower, RawPeer(follower.hear()) as peer:
            peer.say(HEAD, BODY)
            until = time.perf_counter() + chance.uniform(0, SAVE_S_MAX)
            while time.perf_counter() < until:
                os.sched_yield()
            follower.kill()
            told = b" 201 " in peer.hear_all()
        has_it = assert_old_or_new(path)
        assert has_it or not told, "it was told as saved, and is gone"
