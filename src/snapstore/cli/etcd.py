"""`snapstore fetch etcd://...`: an etcd server's database into a directory of snapshots.

Reads the options that are etcd's, and the password, which nobody has to put on a command line: there
every user of the machine could read it.
"""

from __future__ import annotations

import getpass
import os
import sys
from typing import TYPE_CHECKING

from snapstore.cli.exits import ExitCode, UsageError
from snapstore.cli.screen import transfer_bar
from snapstore.cli.stored import saved_fields, saved_text
from snapstore.directory import SnapshotDir
from snapstore.etcd.dial import EtcdTls
from snapstore.etcd.pull import EtcdClient

if TYPE_CHECKING:
    import argparse

    from snapstore.cli.screen import Screen

#: Where the password is taken from when nothing else says it; etcdctl's own variable.
PASSWORD_VARIABLE = "ETCDCTL_PASSWORD"

#: bcrypt, in which etcd keeps them, looks at no more than 72 bytes.
_PASSWORD_LENGTH_MAX = 1024

_USAGE = (
    "usage: snapstore fetch etcd://HOST:PORT --dir DIR [--cacert FILE [--cert FILE --key FILE]]"
    " [--user NAME [--password-file FILE]]"
)


def fetch(args: argparse.Namespace, screen: Screen) -> int:
    """Pull the server's database as it is now; its revision becomes the index."""
    if args.index is not None:
        raise UsageError("etcd gives what it has now: an INDEX cannot be asked for", _USAGE)
    if args.tls_cert or args.tls_key or args.tls_ca or args.token_file:
        raise UsageError("towards etcd the options are --cacert, --cert, --key and --user", _USAGE)
    client = _client_of(args)
    size = client.status().size  # Before the directory is made: where nobody answers, nothing is.
    with (
        SnapshotDir(args.dir, throttle=args.rate) as directory,
        transfer_bar(screen, f"fetch {args.url}", size) as progress,
    ):
        saved = client.pull(directory, progress=progress)
    screen.result(saved_fields(saved), saved_text(saved))
    return ExitCode.DONE


def _client_of(args: argparse.Namespace) -> EtcdClient:
    if args.cacert is None and (args.cert or args.key):
        raise UsageError("TLS needs --cacert, the authority that signs the server's certificate", _USAGE)
    tls = None if args.cacert is None else EtcdTls(args.cacert, args.cert, args.key)
    user, password = _user_of(args)
    try:
        return EtcdClient(
            args.url, tls=tls, user=user, password=password, password_in_clear=args.token_in_clear
        )
    except ValueError as error:
        raise UsageError(str(error), f"{_USAGE}, or --token-in-clear") from None


def _user_of(args: argparse.Namespace) -> tuple[str | None, str | None]:
    """Return the user and the password, from the first of the places that has one."""
    name, colon, password = (args.user or "").partition(":")
    if args.password_file is not None and (not name or colon):
        raise UsageError("--password-file goes with --user NAME, and no password behind the name", _USAGE)
    if args.user is None:
        return None, None
    if colon:
        return name, password
    if args.password_file is not None:
        with open(args.password_file, encoding="utf-8", errors="replace") as file:
            return name, file.read(_PASSWORD_LENGTH_MAX).removesuffix("\n")
    if PASSWORD_VARIABLE in os.environ:
        return name, os.environ[PASSWORD_VARIABLE]
    if sys.stdin is not None and sys.stdin.isatty():
        return name, getpass.getpass(f"password of {name}: ")
    raise UsageError(f"no password for {name}: give --password-file, or {PASSWORD_VARIABLE}", _USAGE)
