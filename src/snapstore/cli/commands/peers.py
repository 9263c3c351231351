"""What the commands between nodes take: serve, send, fetch."""

from __future__ import annotations

from snapstore.cli.arguments import (
    checked,
    parse_cluster,
    parse_count,
    parse_etcd_id,
    parse_index,
    parse_listen_address,
    parse_peer_url,
    parse_source_url,
    parse_store,
    parse_throttle,
)
from snapstore.cli.commands.argument import AT_INDEX, RATE, TO_DIR, argument
from snapstore.cli.commands.command import Command
from snapstore.retry import ATTEMPTS_MAX

#: As in `transport.address`, which brings sockets in; a test holds the two together.
LISTEN_DEFAULT = "127.0.0.1:0"

URL = argument("url", metavar="URL", type=checked(parse_peer_url), help="http[s]://HOST:PORT of a peer")
_CLUSTER = argument(
    "--cluster",
    metavar="NAME",
    type=checked(parse_cluster),
    default="",
    help="the cluster's name; a server that has one refuses others",
)
ACCESS = (
    argument("--tls-cert", metavar="FILE", help="speak TLS: this node's certificate and chain, PEM"),
    argument("--tls-key", metavar="FILE", help="its key, PEM, without passphrase"),
    argument("--tls-ca", metavar="FILE", help="the authority that signs the peers' certificates, PEM"),
    argument(
        "--token-file",
        metavar="FILE",
        help="the token that peers share, on one line (default: $SNAPSTORE_TOKEN)",
    ),
)
TOKEN_IN_CLEAR = argument(
    "--token-in-clear",
    action="store_true",
    help="show the token, or the password, to another machine without TLS",
)
ATTEMPTS = argument(
    "--attempts",
    metavar="N",
    type=parse_count,
    default=ATTEMPTS_MAX,
    help="how often it is tried while nothing gets through; each goes on where the one before it came "
    f"to (default: {ATTEMPTS_MAX})",
)
_FROM_ETCD = (
    argument("--cacert", metavar="FILE", help="of etcd: the authority that signs its certificate, PEM"),
    argument("--cert", metavar="FILE", help="of etcd: a client's certificate, PEM"),
    argument("--key", metavar="FILE", help="of etcd: its key, PEM, without passphrase"),
    argument(
        "--user",
        metavar="NAME[:PASSWORD]",
        help="of etcd: a user with the role root; the password comes from --password-file, from "
        "$ETCDCTL_PASSWORD, or is asked for",
    ),
    argument("--password-file", metavar="FILE", help="of etcd: the password, on one line"),
)

SERVE = Command(
    "serve",
    "take and give snapshots over HTTP",
    "peers:serve",
    (
        TO_DIR,
        argument(
            "--listen",
            metavar="ADDRESS",
            type=checked(parse_listen_address),
            default=LISTEN_DEFAULT,
            help=f"HOST:PORT, [IPV6]:PORT or unix:PATH (default: {LISTEN_DEFAULT}, any free port)",
        ),
        _CLUSTER,
        argument(
            "--etcd-cluster-id",
            metavar="HEX",
            type=checked(parse_etcd_id),
            help="be a learner of this etcd cluster, and take its snapshots",
        ),
        argument(
            "--rate-out",
            metavar="RATE",
            type=checked(parse_throttle),
            help="bytes a second at most that all peers together fetch, as 50MB/s (default: no limit)",
        ),
        argument(
            "--rate-in",
            metavar="RATE",
            type=checked(parse_throttle),
            help="bytes a second at most that are saved of what all of them send (default: no limit)",
        ),
        *ACCESS,
    ),
    "Open to this machine only, unless --listen says otherwise. With TLS a peer needs a certificate of "
    "the authority, with a token the token; without either, whoever reaches the address can read and "
    "add snapshots. An etcd cluster is told of its learner by `etcdctl member add NAME --learner "
    "--peer-urls=URL`; etcd shows no token. Renewed certificates are taken for the next connection; at "
    "SIGHUP it says what it finds. SIGINT or SIGTERM ends it.",
)

SEND = Command(
    "send",
    "pin a store and send its snapshot to a peer",
    "peers:send",
    (
        argument("--kv", metavar="STORE", type=parse_store, required=True, help="lmdb:PATH or sqlite:PATH"),
        AT_INDEX,
        argument("--term", metavar="T", type=parse_index, required=True, help="its term"),
        _CLUSTER,
        ATTEMPTS,
        RATE,
        *ACCESS,
        TOKEN_IN_CLEAR,
        URL,
    ),
)

FETCH = Command(
    "fetch",
    "fetch a snapshot from a peer, or the database of an etcd server, verified",
    "peers:fetch",
    (
        argument(
            "url",
            metavar="URL",
            type=checked(parse_source_url),
            help="http[s]://HOST:PORT of a peer, or etcd://HOST:PORT",
        ),
        argument("index", metavar="INDEX", nargs="?", type=parse_index, help="raft's index; not with etcd"),
        TO_DIR,
        ATTEMPTS,
        RATE,
        *ACCESS,
        TOKEN_IN_CLEAR,
        *_FROM_ETCD,
    ),
    "etcd gives its database as it is now, and its revision becomes the index. The file is what "
    "`etcdctl snapshot save` writes, and what `snapstore restore` makes of it is what `etcdctl snapshot "
    "restore` takes.",
)
