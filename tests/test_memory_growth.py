"""A snapshot of 4 GiB through both sides, each in a process of its own that watches its memory.

Counted are anonymous memory (slots, buffers, Python's heap) and file-backed memory (LMDB's map of
the data file, which the kernel may take back at any time). The streaming reads the data file by
pread into slots and the save writes from slots, so neither grows with the snapshot: what grows is
the rings (4 slots of 4 MiB on the follower, one piece on the leader) and the page map of the leader.
"""

import json
import subprocess
import sys

import pytest

SIZE = 4 << 30
GROWTH_MAX = 64 << 20

WATCH = """
import json, re, sys, threading

class Watch:
    '''The growth of this process's memory, by kind, from now on.'''
    def __init__(self):
        self.before, self.most, self.ended = self.read(), {}, threading.Event()
        self.thread = threading.Thread(target=self.run)
        self.thread.start()
    def read(self):
        with open('/proc/self/status') as file:
            found = re.findall(r'(RssAnon|RssFile|RssShmem):\\s+(\\d+) kB', file.read())
        return {kind: int(kib) * 1024 for kind, kib in found}
    def run(self):
        while True:
            for kind, size in self.read().items():
                self.most[kind] = max(self.most.get(kind, 0), size - self.before[kind])
            if self.ended.wait(0.01):
                return
    def end(self):
        self.ended.set()
        self.thread.join()
        return self.most
"""

FILL = """
import lmdb, os, sys
path, size = sys.argv[1], int(sys.argv[2])
env = lmdb.open(path, map_size=2 * size, sync=False)
value, number = os.urandom(60_000), 0
while number * 64 * 1024 < size:
    with env.begin(write=True) as txn:
        for number in range(number, number + 1000):
            txn.put(b'%012d' % number, value, append=True)
    number += 1
env.sync(True)
env.close()
"""

FOLLOWER = """
import threading
from snapstore import SnapshotDir
from snapstore.transport.http import SnapshotServer
watch = None
def on_offer(offer):
    global watch
    watch = Watch()
with SnapshotDir(sys.argv[1]) as directory, SnapshotServer(directory, on_offer=on_offer) as server:
    print(server.url, flush=True)
    sys.stdin.readline()
    growth = watch.end()
    print(json.dumps({'growth': growth, 'size': directory.newest().size}), flush=True)
"""

LEADER = """
from snapstore import SnapshotMeta, SnapshotStream
from snapstore.kv.lmdb import LmdbKV
from snapstore.transport.http import SnapshotClient
path, size, url = sys.argv[1], int(sys.argv[2]), sys.argv[3]
kv = LmdbKV(path, map_size=2 * size)
watch = Watch()
with SnapshotStream(SnapshotMeta(7, 1), kv.snapshot()) as stream:
    sent = SnapshotClient().send_snapshot(url, stream)
print(json.dumps({'growth': watch.end(), 'size': sent.size}), flush=True)
kv.close()
"""


@pytest.mark.slow
def test_four_gibibytes_pass_both_sides_in_little_memory(tmp_path):
    subprocess.run([sys.executable, "-c", FILL, tmp_path / "kv", str(SIZE)], check=True)
    follower = subprocess.Popen(
        [sys.executable, "-c", WATCH + FOLLOWER, tmp_path / "snapshots"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with follower:
        url = follower.stdout.readline().strip()
        ran = subprocess.run(
            [sys.executable, "-c", WATCH + LEADER, tmp_path / "kv", str(SIZE), url],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
        follower.stdin.write("\n")
        follower.stdin.flush()
        reports = {"leader": json.loads(ran.stdout), "follower": json.loads(follower.stdout.readline())}
    for side, report in reports.items():
        print(side, {kind: f"{size / 2**20:.1f} MiB" for kind, size in report["growth"].items()})
        assert report["size"] > SIZE * 0.9
        assert sum(report["growth"].values()) < GROWTH_MAX, side
