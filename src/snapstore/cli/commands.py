"""The commands by name: what each takes, and where it is done.

A table; nothing runs here, and `parser.py` makes a parser of it. A command's module is imported when it
is called, so that `snapstore --help` needs no store and no network, and a new command is one more row.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from snapstore.cli.arguments import (
    checked,
    parse_cluster,
    parse_count,
    parse_duration,
    parse_etcd_id,
    parse_index,
    parse_index_or_newest,
    parse_interval,
    parse_listen_address,
    parse_peer_url,
    parse_size,
    parse_source_url,
    parse_store,
    parse_throttle,
)
from snapstore.retry import ATTEMPTS_MAX

#: Big enough that a disk and a network show what they do, small enough for a minute.
DEMO_SIZE_DEFAULT = "1GiB"

#: Of `demo raft`, which has as many copies as nodes, and one more whose transfer is watched.
RAFT_DEMO_SIZE_DEFAULT = "256MiB"

#: The fewest that go on without one of them.
RAFT_DEMO_NODES = 3

#: As in `transport.address`, which brings sockets in; a test holds the two together.
LISTEN_DEFAULT = "127.0.0.1:0"

SHELLS = ("bash", "zsh", "tcsh")

#: Between two looks of `top`: as often as an eye follows; the server works nothing out in between.
TOP_INTERVAL_S = 1.0


@dataclass(frozen=True, slots=True)
class Argument:
    """One `add_argument`: its names and its options."""

    names: tuple[str, ...]
    options: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Command:
    """A command: `run` is `module:function` below `snapstore.cli`."""

    name: str
    summary: str
    run: str
    arguments: Sequence[Argument] = ()
    details: str = ""


def _argument(*names: str, **options: Any) -> Argument:
    return Argument(names, options)


def _node_count(text: str) -> int:
    count = parse_count(text)
    if count < RAFT_DEMO_NODES:
        raise argparse.ArgumentTypeError(f"{count} nodes have no majority without one of them")
    return count


_DIR = _argument("dir", metavar="DIR", help="a directory of snapshots")
_TO_DIR = _argument("--dir", metavar="DIR", required=True, help="a directory of snapshots; made if missing")
_INDEX = _argument("index", metavar="INDEX", type=parse_index, help="raft's index, decimal or 0x...")
_AT_INDEX = _argument("--index", metavar="N", type=parse_index, required=True, help="the last applied index")
_AT_TERM = _argument("--term", metavar="T", type=parse_index, default=0, help="its term (default: 0)")
_KV = _argument("--kv", metavar="STORE", type=parse_store, required=True, help="lmdb:PATH or sqlite:PATH")
_URL = _argument("url", metavar="URL", type=checked(parse_peer_url), help="http[s]://HOST:PORT of a peer")
_CLUSTER = _argument(
    "--cluster",
    metavar="NAME",
    type=checked(parse_cluster),
    default="",
    help="the cluster's name; a server that has one refuses others",
)
_ACCESS = (
    _argument("--tls-cert", metavar="FILE", help="speak TLS: this node's certificate and chain, PEM"),
    _argument("--tls-key", metavar="FILE", help="its key, PEM, without passphrase"),
    _argument("--tls-ca", metavar="FILE", help="the authority that signs the peers' certificates, PEM"),
    _argument(
        "--token-file",
        metavar="FILE",
        help="the token that peers share, on one line (default: $SNAPSTORE_TOKEN)",
    ),
)
_TOKEN_IN_CLEAR = _argument(
    "--token-in-clear",
    action="store_true",
    help="show the token, or the password, to another machine without TLS",
)
_ATTEMPTS = _argument(
    "--attempts",
    metavar="N",
    type=parse_count,
    default=ATTEMPTS_MAX,
    help="how often it is tried while nothing gets through; each goes on where the one before it came "
    f"to (default: {ATTEMPTS_MAX})",
)
_RATE = _argument(
    "--rate",
    metavar="RATE",
    type=checked(parse_throttle),
    help="bytes a second at most, as 50MB/s (default: no limit)",
)
_FROM_ETCD = (
    _argument("--cacert", metavar="FILE", help="of etcd: the authority that signs its certificate, PEM"),
    _argument("--cert", metavar="FILE", help="of etcd: a client's certificate, PEM"),
    _argument("--key", metavar="FILE", help="of etcd: its key, PEM, without passphrase"),
    _argument(
        "--user",
        metavar="NAME[:PASSWORD]",
        help="of etcd: a user with the role root; the password comes from --password-file, from "
        "$ETCDCTL_PASSWORD, or is asked for",
    ),
    _argument("--password-file", metavar="FILE", help="of etcd: the password, on one line"),
)

_ARCHIVE = (
    _argument("url", metavar="URL", help="s3://BUCKET/PREFIX, or file:///PATH where one is mounted"),
    _argument("--endpoint", metavar="URL", help="http[s]://HOST:PORT of a server that speaks S3, if not AWS"),
)
_ARCHIVE_DETAILS = (
    "Credentials and the region are taken from AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_REGION. "
    "After a break do it again: what was done stays done."
)

COMMANDS: tuple[Command, ...] = (
    Command(
        "demo",
        "watch a leader hand a snapshot to a follower, with real processes and sockets",
        "demo:run",
        (
            _argument(
                "play",
                nargs="?",
                choices=("walk", "raft"),
                default="walk",
                help="walk: one snapshot, step by step (default); raft: a PySyncObj cluster",
            ),
            _argument(
                "--size",
                type=parse_size,
                help=f"of the store (default: {DEMO_SIZE_DEFAULT}, raft: {RAFT_DEMO_SIZE_DEFAULT})",
            ),
            _argument("--dir", metavar="DIR", help="where the stores lie meanwhile (default: $TMPDIR)"),
            _argument(
                "--nodes",
                metavar="N",
                type=_node_count,
                help=f"of raft: how many, {RAFT_DEMO_NODES} or more (default: {RAFT_DEMO_NODES})",
            ),
            _argument(
                "--baseline",
                action="store_true",
                help="of raft: play it again with PySyncObj's own dumps, and compare",
            ),
            _argument(
                "--paced",
                action="store_true",
                help="of raft: play it again with transfers that yield to the nodes' ticks, and compare",
            ),
            _argument(
                "--kv-dir",
                metavar="DIR",
                help="of raft: where the nodes' stores lie apart from their logs, as /dev/shm",
            ),
            _argument(
                "--fsync-log", action="store_true", help="of raft: nodes fsync their logs in each tick"
            ),
            _argument(
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
    ),
    Command(
        "save",
        "save a file, a store or standard input durably as a snapshot",
        "stored:save",
        (
            _argument("source", metavar="SOURCE", help="a file, lmdb:PATH, sqlite:PATH, or - for stdin"),
            _TO_DIR,
            _AT_INDEX,
            _AT_TERM,
        ),
    ),
    Command(
        "ls",
        "list the snapshots of a directory, or of an archive",
        "archive:ls",
        (
            _argument("dir", metavar="DIR", help="a directory of snapshots, or s3://BUCKET/PREFIX"),
            _ARCHIVE[1],
        ),
    ),
    Command(
        "verify",
        "read snapshots and compare them with their digests",
        "stored:verify",
        (_DIR, _argument("index", metavar="INDEX", nargs="?", type=parse_index, help="only this one")),
    ),
    Command("path", "print where a snapshot lies", "stored:path", (_DIR, _INDEX)),
    Command(
        "restore",
        "make a file or a store of a snapshot, verified",
        "stored:restore",
        (
            _DIR,
            _INDEX,
            _argument("target", metavar="TARGET", help="a new file, lmdb:PATH or sqlite:PATH"),
            _argument("--replace", action="store_true", help="replace a store that exists"),
        ),
        "Stop the node before a store of its own is replaced. Plain files are never replaced.",
    ),
    Command(
        "purge",
        "remove all but the newest snapshots",
        "stored:purge",
        (
            _DIR,
            _argument(
                "--keep",
                metavar="N",
                type=parse_count,
                help="how many stay in any case (default: 1, where another option says what goes)",
            ),
            _argument(
                "--older-than",
                metavar="TIME",
                type=parse_duration,
                help="of the others only those saved longer ago go: 90s, 30m, 36h, 7d or 2w",
            ),
            _argument(
                "--max-size",
                metavar="SIZE",
                type=parse_size,
                help="of the others the oldest go that do not fit in SIZE with all newer ones",
            ),
        ),
        "One that stays is read back from the disk before any goes. What is being read stays.",
    ),
    Command(
        "doctor",
        "say what is wrong with a directory, or with the disk below it, and what to change",
        "doctor:doctor",
        (
            _DIR,
            _argument("--fix", action="store_true", help="remove what dead savers left, as a node does"),
            _argument("--read", action="store_true", help="read every byte of every snapshot, too"),
        ),
        "A node may be at work in DIR. Without --fix nothing there is changed. To see how fast the disk is, "
        "64 MiB are written to a file without a name, which is gone at the end, after a kill, too.",
    ),
    Command(
        "explain",
        "say all that is known of a snapshot",
        "doctor:explain",
        (_DIR, _INDEX, _argument("--read", action="store_true", help="read every byte of it, too")),
    ),
    Command(
        "serve",
        "take and give snapshots over HTTP",
        "peers:serve",
        (
            _TO_DIR,
            _argument(
                "--listen",
                metavar="ADDRESS",
                type=checked(parse_listen_address),
                default=LISTEN_DEFAULT,
                help=f"HOST:PORT, [IPV6]:PORT or unix:PATH (default: {LISTEN_DEFAULT}, any free port)",
            ),
            _CLUSTER,
            _argument(
                "--etcd-cluster-id",
                metavar="HEX",
                type=checked(parse_etcd_id),
                help="be a learner of this etcd cluster, and take its snapshots",
            ),
            _argument(
                "--rate-out",
                metavar="RATE",
                type=checked(parse_throttle),
                help="bytes a second at most that all peers together fetch, as 50MB/s (default: no limit)",
            ),
            _argument(
                "--rate-in",
                metavar="RATE",
                type=checked(parse_throttle),
                help="bytes a second at most that are saved of what all of them send (default: no limit)",
            ),
            *_ACCESS,
        ),
        "Open to this machine only, unless --listen says otherwise. With TLS a peer needs a certificate of "
        "the authority, with a token the token; without either, whoever reaches the address can read and "
        "add snapshots. An etcd cluster is told of its learner by `etcdctl member add NAME --learner "
        "--peer-urls=URL`; etcd shows no token. Renewed certificates are taken for the next connection; at "
        "SIGHUP it says what it finds. SIGINT or SIGTERM ends it.",
    ),
    Command(
        "send",
        "pin a store and send its snapshot to a peer",
        "peers:send",
        (
            _KV,
            _AT_INDEX,
            _argument("--term", metavar="T", type=parse_index, required=True, help="its term"),
            _CLUSTER,
            _ATTEMPTS,
            _RATE,
            *_ACCESS,
            _TOKEN_IN_CLEAR,
            _URL,
        ),
    ),
    Command(
        "fetch",
        "fetch a snapshot from a peer, or the database of an etcd server, verified",
        "peers:fetch",
        (
            _argument(
                "url",
                metavar="URL",
                type=checked(parse_source_url),
                help="http[s]://HOST:PORT of a peer, or etcd://HOST:PORT",
            ),
            _argument(
                "index", metavar="INDEX", nargs="?", type=parse_index, help="raft's index; not with etcd"
            ),
            _TO_DIR,
            _ATTEMPTS,
            _RATE,
            *_ACCESS,
            _TOKEN_IN_CLEAR,
            *_FROM_ETCD,
        ),
        "etcd gives its database as it is now, and its revision becomes the index. The file is what "
        "`etcdctl snapshot save` writes, and what `snapstore restore` makes of it is what `etcdctl snapshot "
        "restore` takes.",
    ),
    Command(
        "top",
        "watch the transfers of a server",
        "top:top",
        (
            _URL,
            _argument(
                "--interval",
                metavar="S",
                type=parse_interval,
                default=TOP_INTERVAL_S,
                help=f"seconds between two looks (default: {TOP_INTERVAL_S:g})",
            ),
            _argument("--count", metavar="N", type=parse_count, help="end after so many looks"),
            _argument(
                "--leases", action="store_true", help="show who holds which snapshot, and what it costs"
            ),
            _ATTEMPTS,
            *_ACCESS,
            _TOKEN_IN_CLEAR,
        ),
        "Shows what is under way, and the last few that have ended, until Ctrl-C; with --json it looks once.",
    ),
    Command(
        "push",
        "put a snapshot into an archive, from which a lost cluster comes back",
        "archive:push",
        (
            _DIR,
            _argument(
                "index",
                metavar="INDEX",
                type=parse_index_or_newest,
                help="raft's index, decimal or 0x..., or newest",
            ),
            *_ARCHIVE,
            _argument(
                "--keep",
                metavar="N",
                type=parse_count,
                help="then remove all but the N newest of the archive",
            ),
            _RATE,
        ),
        _ARCHIVE_DETAILS,
    ),
    Command(
        "pull",
        "take a snapshot out of an archive, verified",
        "archive:pull",
        (
            *_ARCHIVE,
            _argument("index", metavar="INDEX", nargs="?", type=parse_index, help="default: the newest"),
            _TO_DIR,
            _RATE,
        ),
        _ARCHIVE_DETAILS,
    ),
    Command(
        "completion",
        "print a script that completes commands and options in a shell",
        "completion:run",
        (_argument("shell", choices=SHELLS, help="the shell"),),
        'For bash: eval "$(snapstore completion bash)"',
    ),
)
