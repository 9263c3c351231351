"""Who may come in, as the command line says it: certificates, the token, and what a listener lets happen.

Reads files that are named and the environment; a token never stands on a command line, where every
user of the machine could read it.
"""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING

from snapstore.cli.exits import UsageError
from snapstore.retry import RetryPolicy
from snapstore.transport.http import SnapshotClient
from snapstore.transport.tls import ReloadingContext, client_context, server_context
from snapstore.transport.token import TOKEN_LENGTH_MAX, check_token, stays_here

if TYPE_CHECKING:
    import argparse
    import ssl
    from collections.abc import Callable

    from snapstore._fastpipe import Throttle
    from snapstore.transport.address import Address
    from snapstore.transport.tls import PemFile

#: Where the token is taken from when no --token-file is given.
TOKEN_VARIABLE = "SNAPSTORE_TOKEN"

_TLS_USAGE = "usage: --tls-cert FILE --tls-key FILE --tls-ca FILE"
_TOKEN_USAGE = f"usage: --token-file FILE, or {TOKEN_VARIABLE} in the environment"


def client_of(
    args: argparse.Namespace, *, cluster: str = "", throttle: Throttle | None = None
) -> SnapshotClient:
    """Return a client for `args.url`, with what `args` say about attempts, TLS and token.

    `throttle` is for what it sends. Raises UsageError.
    """
    client = SnapshotClient(
        cluster=cluster,
        # No raft log waits behind it: while bytes get through, an operator decides when it is enough.
        retry=RetryPolicy(attempts_max=args.attempts, elapsed_s_max=math.inf),
        throttle=throttle,
        tls=_tls(args, client_context),
        token=token_of(args),
        token_in_clear=args.token_in_clear,
    )
    try:
        client.check_url(args.url)
    except ValueError as error:
        raise UsageError(str(error), f"{_TLS_USAGE}, or --token-in-clear") from None
    return client


def server_tls(args: argparse.Namespace) -> ReloadingContext | None:
    """Return what a listener has in place of a context, or None. Raises UsageError, OSError."""
    if args.tls_cert is not None and args.listen.startswith("unix:"):
        raise UsageError("TLS needs HOST:PORT to listen on", _TLS_USAGE)
    return _tls(args, server_context)


def _tls(
    args: argparse.Namespace, make: Callable[[PemFile, PemFile, PemFile], ssl.SSLContext]
) -> ReloadingContext | None:
    files = (args.tls_cert, args.tls_key, args.tls_ca)
    if files == (None, None, None):
        return None
    if None in files:
        raise UsageError("a certificate, its key and the peers' authority go together", _TLS_USAGE)
    try:
        return ReloadingContext(make, *files)
    except ValueError as error:
        raise UsageError(str(error), _TLS_USAGE) from None


def token_of(args: argparse.Namespace) -> str | None:
    """Return the token, or None where none is given. Raises UsageError, and OSError for its file."""
    if args.token_file is None:
        token = os.environ.get(TOKEN_VARIABLE)
    else:
        # Bytes that are not ASCII become something that no token has.
        with open(args.token_file, encoding="ascii", errors="replace") as file:
            token = file.read(TOKEN_LENGTH_MAX + 3).removesuffix("\n")
    try:
        return check_token(token)
    except ValueError as error:
        place = args.token_file or TOKEN_VARIABLE
        raise UsageError(f"{place}: {error}", _TOKEN_USAGE) from None


def reach_of(address: Address, token: str | None) -> tuple[str, str | None]:
    """Say who reaches a listener at `address`, and what that lets happen, where it needs a warning."""
    if address.path is not None:
        return "to processes of this user only", None
    if stays_here(address):
        return "to this machine only", None
    if address.tls:
        return "to who has a certificate", None
    if token is None:
        warning = (
            f"WARNING: whoever reaches {address} can read all that is stored here, and can store snapshots "
            "that this node may restore from. Give --tls-cert, --tls-key, --tls-ca and --token-file, or "
            "listen on 127.0.0.1."
        )
        return "to everybody who reaches it", warning
    warning = (
        f"WARNING: without TLS everybody on the way to {address} can read the snapshots, and the token. "
        "Give --tls-cert, --tls-key and --tls-ca."
    )
    return "to who has the token", warning
