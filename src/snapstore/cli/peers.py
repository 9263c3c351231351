"""The commands between nodes: serve, send, fetch."""

from __future__ import annotations

import logging
import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING

from snapstore.cli.access import client_of, reach_of, server_tls, token_of
from snapstore.cli.exits import ExitCode, UsageError
from snapstore.cli.screen import format_size, transfer_bar
from snapstore.cli.stored import saved_fields, saved_text
from snapstore.directory import SnapshotDir
from snapstore.meta import SnapshotMeta
from snapstore.transport.http import SnapshotServer

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator, Sequence

    from snapstore.cli.screen import Screen
    from snapstore.stored import SavedSnapshot
    from snapstore.transport.routes import Route
    from snapstore.transport.tls import ReloadingContext

_END_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def serve(args: argparse.Namespace, screen: Screen) -> int:
    """Serve until SIGINT or SIGTERM. The first line says where; then comes one for each save.

    With TLS, SIGHUP has the certificates read anew, and says what came of it; without, it ends as ever.
    """

    def on_saved(saved: SavedSnapshot) -> None:
        screen.result({"event": "saved", **saved_fields(saved)}, saved_text(saved))

    tls, token = server_tls(args), token_of(args)
    if args.etcd_cluster_id is not None and token is not None:
        raise UsageError("etcd's members show no token: protect this by TLS", "usage: --tls-cert FILE ...")
    signals = _END_SIGNALS if tls is None else (*_END_SIGNALS, signal.SIGHUP)
    with (
        logged_to(screen),
        _signals_held(signals),
        SnapshotDir(args.dir, throttle=args.rate_in) as directory,
        SnapshotServer(
            directory,
            args.listen,
            on_saved=on_saved,
            cluster=args.cluster,
            tls=tls,
            token=token,
            throttle=args.rate_out,
            routes=_etcd_routes(args.etcd_cluster_id, directory, on_saved),
        ) as server,
    ):
        reach, warning = reach_of(server.address, token)
        screen.note(warning or f"open {reach}")
        fields = {"event": "listening", "url": server.url, "reach": reach, "warning": warning}
        screen.result(fields, f"listening on {server.url}")
        while signal.sigwait(signals) == signal.SIGHUP and tls is not None:
            _reload(tls, screen)
    return ExitCode.DONE


def _reload(tls: ReloadingContext, screen: Screen) -> None:
    try:
        tls.reload()
    except (OSError, ValueError) as error:
        screen.note(f"the certificates from before stay in use: {error}")
    else:
        screen.note("the certificates were read anew")


def _etcd_routes(
    cluster_id: int | None, directory: SnapshotDir, on_saved: Callable[[SavedSnapshot], object]
) -> dict[str, Route]:
    if cluster_id is None:
        return {}
    from snapstore.etcd.member import EtcdMember

    return EtcdMember(directory, cluster_id=cluster_id, on_saved=lambda saved, _: on_saved(saved)).routes


def send(args: argparse.Namespace, screen: Screen) -> int:
    """Pin a store and send it; done when the peer has saved it for good."""
    from snapstore.cli.stores import pinned_stream

    client = client_of(args, cluster=args.cluster, throttle=args.rate)
    with (
        logged_to(screen),
        pinned_stream(args.kv, SnapshotMeta(args.index, args.term)) as stream,
        transfer_bar(screen, f"send {args.index}", stream.size) as progress,
    ):
        sent = client.send_snapshot(args.url, stream, progress=progress)
    fields = {
        "index": sent.index,
        "size": sent.size,
        "digest": sent.digest,
        "existed": sent.existed,
        "sync_s": sent.sync_s,
    }
    verb = "the peer had" if sent.existed else "the peer saved"
    screen.result(fields, f"{verb} snapshot {sent.index} ({format_size(sent.size)}, {sent.digest})")
    return ExitCode.DONE


def fetch(args: argparse.Namespace, screen: Screen) -> int:
    """Fetch a snapshot into a directory, verified chunk by chunk."""
    if args.url.startswith("etcd:"):
        from snapstore.cli.etcd import fetch as fetch_from_etcd

        return fetch_from_etcd(args, screen)
    if args.index is None:
        raise UsageError("which one? give its INDEX", "usage: snapstore fetch URL INDEX --dir DIR")
    if args.cacert or args.cert or args.key or args.user or args.password_file:
        raise UsageError("--cacert, --cert, --key and --user are for etcd", "usage: --tls-ca FILE ...")
    client = client_of(args)
    with logged_to(screen):
        sizes = {entry.get("index"): entry.get("size") for entry in client.list(args.url)}
        with (
            SnapshotDir(args.dir, throttle=args.rate) as directory,
            transfer_bar(screen, f"fetch {args.index}", sizes.get(args.index)) as progress,
        ):
            saved = client.fetch(args.url, args.index, directory, progress=progress)
    screen.result(saved_fields(saved), saved_text(saved))
    return ExitCode.DONE


@contextmanager
def _signals_held(signals: Sequence[signal.Signals]) -> Iterator[None]:
    """Keep them for `sigwait`, also from the server's threads, which inherit the mask."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def logged_to(screen: Screen) -> Iterator[None]:
    """Show the package's warnings as notes: refusals, peers that left, and when one is tried again."""
    handler = _NoteHandler(screen)
    logger = logging.getLogger("snapstore")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


class _NoteHandler(logging.Handler):
    """Hands log records to a screen."""

    def __init__(self, screen: Screen) -> None:
        super().__init__(logging.WARNING)
        self._screen = screen

    def emit(self, record: logging.LogRecord) -> None:
        self._screen.note(self.format(record))
