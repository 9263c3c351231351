"""The commands around an archive: push, pull, and ls for both kinds of places.

Reads arguments and says what came of it. What is in the environment for AWS's own tools, credentials
above all, counts here too, so that no secret has to stand on a command line.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from snapstore.cli import stored
from snapstore.cli.exits import ExitCode, UsageError
from snapstore.cli.screen import format_size, transfer_bar
from snapstore.directory import SnapshotDir
from snapstore.errors import SnapstoreError

if TYPE_CHECKING:
    import argparse

    from snapstore._fastpipe import Throttle
    from snapstore.archive import Archive
    from snapstore.cli.screen import Screen

_USAGE = "usage: s3://BUCKET/PREFIX [--endpoint URL], or file:///PATH"


def push(args: argparse.Namespace, screen: Screen) -> int:
    """Put a snapshot of a directory into the archive; then give up old ones, where told to."""
    archive = _archive_of(args.url, args, args.rate)
    with (
        stored.open_existing(args.dir) as directory,
        # The push itself compares all bytes.
        directory.open_newest(verify=False)
        if args.index is None
        else directory.open(args.index, verify=False) as snapshot,
        transfer_bar(screen, f"push {snapshot.meta.index}", snapshot.size) as progress,
    ):
        pushed = archive.push(snapshot, progress=progress)
    verb = "the archive had" if pushed.existed else "archived"
    words = f"{verb} snapshot {pushed.index} ({format_size(pushed.size)}, {pushed.digest}"
    words += f", {format_size(pushed.sent)} sent)"
    try:
        removed = [] if args.keep is None else list(archive.purge(keep=args.keep))
    except (SnapstoreError, OSError):
        screen.note(f"{words}; what is older was not all removed")  # Else it looks as if nothing was done.
        raise
    fields = {
        "index": pushed.index,
        "size": pushed.size,
        "digest": pushed.digest,
        "sent": pushed.sent,
        "existed": pushed.existed,
        "removed": removed,
    }
    more = f", removed {', '.join(map(str, removed))}" if removed else ""
    screen.result(fields, f"{words}{more}")
    return ExitCode.DONE


def pull(args: argparse.Namespace, screen: Screen) -> int:
    """Save a snapshot of the archive in a directory, compared chunk by chunk."""
    archive = _archive_of(args.url, args)
    found = archive.find(args.index)
    with (
        SnapshotDir(args.dir, throttle=args.rate) as directory,
        transfer_bar(screen, f"pull {found.index}", found.manifest.size) as progress,
    ):
        saved = archive.pull(found.index, directory, progress=progress)
    screen.result(stored.saved_fields(saved), stored.saved_text(saved))
    return ExitCode.DONE


def ls(args: argparse.Namespace, screen: Screen) -> int:
    """List what a directory or an archive has; with their problems, where inventories are broken."""
    if "://" not in args.dir:
        if args.endpoint is not None:
            raise UsageError("--endpoint is for archives, and this is a directory", _USAGE)
        return stored.ls(args, screen)
    listed = [archived.to_json() for archived in _archive_of(args.dir, args).list()]
    rows = [
        (
            str(fields["index"]),
            str(fields["term"]),
            format_size(fields["size"]),
            fields["digest"] or "-",
            fields["problem"] or "ok",
        )
        for fields in listed
    ]
    screen.table({"snapshots": listed}, ("INDEX", "TERM", "SIZE", "DIGEST", "STATE"), rows)
    return ExitCode.DONE


def _archive_of(url: str, args: argparse.Namespace, throttle: Throttle | None = None) -> Archive:
    from snapstore.archive import Archive

    try:
        return Archive(url, endpoint=args.endpoint, throttle=throttle)
    except ValueError as error:
        raise UsageError(str(error), _USAGE) from None
