"""The commands by name: what each takes, and where it is done.

Arguments only; nothing runs here. A command's module is imported when it is called, so that
`snapstore --help` needs no store and no network, and a new command is one more row.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from snapstore.cli.arguments import checked, parse_count, parse_index, parse_size, parse_store
from snapstore.cli.exits import exit_code_table
from snapstore.retry import ATTEMPTS_MAX

if TYPE_CHECKING:
    from snapstore.cli.screen import Screen

#: Big enough that a disk and a network show what they do, small enough for a minute.
DEMO_SIZE_DEFAULT = "1GiB"

#: As in `transport.address`, which brings sockets in; a test holds the two together.
LISTEN_DEFAULT = "127.0.0.1:0"

SHELLS = ("bash", "zsh", "tcsh")


class UsageError(Exception):
    """The command line is wrong; `usage` says how it should be."""

    def __init__(self, message: str, usage: str) -> None:
        super().__init__(message)
        self.usage = usage


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


def _peer_url(text: str) -> str:
    from snapstore.transport.address import parse_url

    parse_url(text)
    return text


def _source_url(text: str) -> str:
    if not text.startswith("etcd:"):
        return _peer_url(text)
    from snapstore.etcd.dial import parse_endpoint

    parse_endpoint(text)
    return text


def _listen_address(text: str) -> str:
    from snapstore.transport.address import parse_address

    parse_address(text)
    return text


def _cluster(text: str) -> str:
    from snapstore.wire import check_cluster

    return check_cluster(text)


def _etcd_id(text: str) -> int:
    from snapstore.etcd.handshake import parse_id

    return parse_id(text)


_DIR = _argument("dir", metavar="DIR", help="a directory of snapshots")
_TO_DIR = _argument("--dir", metavar="DIR", required=True, help="a directory of snapshots; made if missing")
_INDEX = _argument("index", metavar="INDEX", type=parse_index, help="raft's index, decimal or 0x...")
_AT_INDEX = _argument("--index", metavar="N", type=parse_index, required=True, help="the last applied index")
_AT_TERM = _argument("--term", metavar="T", type=parse_index, default=0, help="its term (default: 0)")
_KV = _argument("--kv", metavar="STORE", type=parse_store, required=True, help="lmdb:PATH or sqlite:PATH")
_URL = _argument("url", metavar="URL", type=checked(_peer_url), help="http[s]://HOST:PORT of a peer")
_CLUSTER = _argument(
    "--cluster",
    metavar="NAME",
    type=checked(_cluster),
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

COMMANDS: tuple[Command, ...] = (
    Command(
        "demo",
        "watch a leader hand a snapshot to a follower, with real processes and sockets",
        "demo:run",
        (
            _argument(
                "--size",
                type=parse_size,
                default=DEMO_SIZE_DEFAULT,
                help=f"of the store (default: {DEMO_SIZE_DEFAULT})",
            ),
            _argument("--dir", metavar="DIR", help="where the stores lie meanwhile (default: $TMPDIR)"),
        ),
        "A leader process fills an LMDB store and goes on writing to it while a snapshot of it is pinned and "
        "sent to a follower process, which saves it durably and restores it. Then the restored store is "
        "compared with the pinned one. Takes three times SIZE of disk space, and gives it back at the end.",
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
    Command("ls", "list the snapshots of a directory", "stored:ls", (_DIR,)),
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
            _argument("--keep", metavar="N", type=parse_count, required=True, help="how many stay"),
        ),
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
                type=checked(_listen_address),
                default=LISTEN_DEFAULT,
                help=f"HOST:PORT, [IPV6]:PORT or unix:PATH (default: {LISTEN_DEFAULT}, any free port)",
            ),
            _CLUSTER,
            _argument(
                "--etcd-cluster-id",
                metavar="HEX",
                type=checked(_etcd_id),
                help="be a learner of this etcd cluster, and take its snapshots",
            ),
            *_ACCESS,
        ),
        "Open to this machine only, unless --listen says otherwise. With TLS a peer needs a certificate of "
        "the authority, with a token the token; without either, whoever reaches the address can read and "
        "add snapshots. An etcd cluster is told of its learner by `etcdctl member add NAME --learner "
        "--peer-urls=URL`; etcd shows no token. SIGINT or SIGTERM ends it.",
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
                type=checked(_source_url),
                help="http[s]://HOST:PORT of a peer, or etcd://HOST:PORT",
            ),
            _argument(
                "index", metavar="INDEX", nargs="?", type=parse_index, help="raft's index; not with etcd"
            ),
            _TO_DIR,
            _ATTEMPTS,
            *_ACCESS,
            _TOKEN_IN_CLEAR,
            *_FROM_ETCD,
        ),
        "etcd gives its database as it is now, and its revision becomes the index. The file is what "
        "`etcdctl snapshot save` writes, and what `snapstore restore` makes of it is what `etcdctl snapshot "
        "restore` takes.",
    ),
    Command(
        "completion",
        "print a script that completes commands and options in a shell",
        "completion:run",
        (_argument("shell", choices=SHELLS, help="the shell"),),
        'For bash: eval "$(snapstore completion bash)"',
    ),
)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line; it raises UsageError."""
    epilog = f"exit codes:\n{exit_code_table()}"
    parser = _Parser(
        prog="snapstore",
        description="Point-in-time snapshots of a raft node's key-value store.",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_Version, help="print the version and exit")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command in COMMANDS:
        subparser = commands.add_parser(
            command.name, help=command.summary, description=_sentence(command), add_help=True
        )
        for argument in command.arguments:
            subparser.add_argument(*argument.names, **argument.options)
        subparser.add_argument("--json", action="store_true", help="say everything in JSON, for machines")
    return parser


def load(name: str) -> Callable[[argparse.Namespace, Screen], int]:
    """Import and return what runs the command `name`."""
    module, _, function = next(command.run for command in COMMANDS if command.name == name).partition(":")
    run: Callable[[argparse.Namespace, Screen], int] = getattr(
        importlib.import_module(f"snapstore.cli.{module}"), function
    )
    return run


def _sentence(command: Command) -> str:
    first = f"{command.summary[0].upper()}{command.summary[1:]}."
    return f"{first} {command.details}".rstrip()


class _Parser(argparse.ArgumentParser):
    """An ArgumentParser that raises: whether to answer in JSON is not its to know."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, self.format_usage().strip())


class _Version(argparse.Action):
    """Looks the version up only when it is asked for: that reads the installed metadata."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str | None = None) -> None:  # noqa: A002
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, default=argparse.SUPPRESS, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_rest: object) -> None:
        try:
            version = importlib.metadata.version("snapstore")
        except importlib.metadata.PackageNotFoundError:
            version = "(not installed)"
        print(f"snapstore {version}")
        parser.exit()
