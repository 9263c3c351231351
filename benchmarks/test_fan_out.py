"""Three followers at once from one pin, against one: where the network is the limit, they take as long.

Each follower's network is a token bucket of its own, which neither disk nor cores come near.
"""

import os
import threading
from contextlib import ExitStack

from snapstore import SnapshotDir, SnapshotMeta, SnapshotStream, Throttle
from snapstore.transport.http import SnapshotClient, SnapshotServer

#: What a follower's network takes, in bytes/s: 1 Gbit/s.
LINE_RATE = 125_000_000

#: One follower's seconds by three followers': 1.3 times as long is the most.
FLOOR = 1 / 1.3


def test_three_followers_at_once_against_one(pairs, neighbour, benchmark, tmp_path, data):
    data = data[: len(data) // 2]
    reads = benchmark.extra_info["reads_of_each_byte"] = []
    with ExitStack() as opened:
        leader = opened.enter_context(SnapshotDir(tmp_path / "leader"))
        leader.save_from(data, SnapshotMeta(1, 1))
        followers = [
            opened.enter_context(SnapshotDir(tmp_path / f"follower-{number}", throttle=Throttle(LINE_RATE)))
            for number in range(3)
        ]
        urls = [opened.enter_context(SnapshotServer(follower)).url for follower in followers]

        def send_to(count):
            with leader.open(1, verify=False) as stored:
                image = stored.image()

                def send(url):
                    stream = SnapshotStream(stored.meta, _Shared(image))
                    with stream:
                        assert not SnapshotClient().send_snapshot(url, stream).existed

                threads = [threading.Thread(target=send, args=(url,)) for url in urls[:count]]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
                reads.append(round(image.bytes_read / len(data), 2))
            for follower in followers[:count]:
                os.unlink(follower.get_snap_file_path(1))
                follower.remove_orphans()

        assert pairs.run(lambda: send_to(3), lambda: send_to(1), len(data)) > FLOOR


class _Shared:
    """What a store hands out: the same image for each stream, closed by whoever pinned it."""

    def __init__(self, image):
        self.size = image.size
        self._image = image

    def image(self):
        return self._image

    def close(self):
        pass
