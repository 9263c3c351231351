"""Three followers at once from one pin, against one: where the network is the limit, they take as long.

Each follower's network is a token bucket of its own, which neither disk nor cores come near.
"""

from __future__ import annotations

import threading
from contextlib import ExitStack
from functools import partial

from snapstore import SnapshotDir, SnapshotMeta, SnapshotStream, Throttle
from snapstore.bench.report import Line
from snapstore.bench.saves import forget
from snapstore.bench.ways import Way
from snapstore.transport.http import SnapshotClient, SnapshotServer

#: What a follower's network takes, in bytes/s: 1 Gbit/s.
LINE_RATE = 125_000_000

#: Enough for a line that is so slow, in bytes.
SIZE_MAX = 128 * 1024 * 1024

FOLLOWERS = 3


def test_three_followers_at_once_against_one(race, neighbour, content, tmp_path):
    size = min(content.size, SIZE_MAX)
    with ExitStack() as opened:
        leader = opened.enter_context(SnapshotDir(tmp_path / "leader"))
        leader.save_from(content.memory[:size], SnapshotMeta(1, 1))
        image = opened.enter_context(leader.open(1, verify=False)).image()
        followers = [
            opened.enter_context(SnapshotDir(tmp_path / f"follower-{number}", throttle=Throttle(LINE_RATE)))
            for number in range(FOLLOWERS)
        ]
        urls = [opened.enter_context(SnapshotServer(follower)).url for follower in followers]

        def send(url):
            with SnapshotStream(SnapshotMeta(1, 1), _Shared(image)) as stream:
                SnapshotClient().send_snapshot(url, stream)

        def send_to(count):
            threads = [threading.Thread(target=send, args=(url,)) for url in urls[:count]]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

        def check(count):
            for follower in followers[:count]:
                assert follower.verify(1).size == size
                forget(follower, 1)

        # The time is what counts, so each moves one snapshot's bytes; the CPU is of as many as there are.
        ways = [
            Way(name, partial(send_to, count), partial(check, count), tells_cpu=False)
            for name, count in (("one follower", 1), ("three followers", FOLLOWERS))
        ]
        race.run(ways, size=size)
        race.judge(Line("three-followers-against-one", "three followers", "one follower"))


class _Shared:
    """What a store hands out: the same image for each stream, closed by whoever pinned it."""

    def __init__(self, image):
        self.size = image.size
        self._image = image

    def image(self):
        return self._image

    def close(self):
        pass
