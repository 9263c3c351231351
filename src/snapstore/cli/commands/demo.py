"""What `demo` takes."""

from __future__ import annotations

import argparse

from snapstore.cli.arguments import checked, parse_count, parse_size, parse_throttle
from snapstore.cli.commands.argument import argument
from snapstore.cli.commands.command import Command

#: Big enough that a disk and a network show what they do, small enough for a minute.
DEMO_SIZE_DEFAULT = "1GiB"

#: Of `demo raft`, which has as many copies as nodes, and one more whose transfer is watched.
RAFT_DEMO_SIZE_DEFAULT = "256MiB"

#: The fewest that go on without one of them.
RAFT_DEMO_NODES = 3


def _node_count(text: str) -> int:
    count = parse_count(text)
    if count < RAFT_DEMO_NODES:
        raise argparse.ArgumentTypeError(f"{count} nodes have no majority without one of them")
    return count


DEMO = Command(
    "demo",
    "watch a leader hand a snapshot to a follower, with real processes and sockets",
    "demo:run",
    (
        argument(
            "play",
            nargs="?",
            choices=("walk", "raft"),
            default="walk",
            help="walk: one snapshot, step by step (default); raft: a PySyncObj cluster",
        ),
        argument(
            "--size",
            type=parse_size,
            help=f"of the store (default: {DEMO_SIZE_DEFAULT}, raft: {RAFT_DEMO_SIZE_DEFAULT})",
        ),
        argument("--dir", metavar="DIR", help="where the stores lie meanwhile (default: $TMPDIR)"),
        argument(
            "--nodes",
            metavar="N",
            type=_node_count,
            help=f"of raft: how many, {RAFT_DEMO_NODES} or more (default: {RAFT_DEMO_NODES})",
        ),
        argument(
            "--baseline",
            action="store_true",
            help="of raft: play it again with PySyncObj's own dumps, and compare",
        ),
        argument(
            "--paced",
            action="store_true",
            help="of raft: play it again with transfers that yield to the nodes' ticks, and compare",
        ),
        argument(
            "--kv-dir",
            metavar="DIR",
            help="of raft: where the nodes' stores lie apart from their logs, as /dev/shm",
        ),
        argument("--fsync-log", action="store_true", help="of raft: nodes fsync their logs in each tick"),
        argument(
            "--busy-disk",
            metavar="RATE",
            type=checked(parse_throttle),
            help="of raft: with a neighbour who writes and fsyncs so many bytes a second, as 20MB/s",
        ),
    ),
    "A leader process fills an LMDB store and goes on writing to it while a snapshot of it is pinned and "
    "sent to a follower process, which saves it durably and restores it. Then the restored store is "
    "compared with the pinned one. Takes three times SIZE of disk space, and gives it back at the end. "
    "`snapstore demo raft`: writes flow through a cluster; a node is killed and loses its directory; the "
    "log is compacted past it; it comes back with nothing, is handed a snapshot while writes go on, and "
    "ends equal to the others.",
)
