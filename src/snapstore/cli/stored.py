"""The commands around a directory of snapshots: save, ls, verify, path, restore, purge."""

from __future__ import annotations

import errno
import os
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from snapstore import _fastpipe, disk
from snapstore.cli.arguments import find_store
from snapstore.cli.exits import ExitCode, UsageError
from snapstore.cli.screen import format_size, transfer_bar
from snapstore.directory import SnapshotDir
from snapstore.errors import SnapshotCorrupt
from snapstore.meta import SnapshotMeta

if TYPE_CHECKING:
    import argparse

    from snapstore.cli.screen import Screen
    from snapstore.manifest import Manifest
    from snapstore.stored import SavedSnapshot, StoredSnapshot
    from snapstore.stream import SnapshotStream


def saved_fields(saved: SavedSnapshot) -> dict[str, Any]:
    """Return what machines get to know of a snapshot; `size` in bytes, `sync_s` in seconds."""
    return {**saved.to_json(), "path": str(saved.path), "sync_s": round(saved.sync_s, 6)}


def saved_text(saved: SavedSnapshot) -> str:
    """Return the line that says that a snapshot is saved."""
    size = format_size(saved.size)
    return f"saved snapshot {saved.index} ({size}, {saved.digest}, last fsync {saved.sync_s * 1000:.1f} ms)"


def save(args: argparse.Namespace, screen: Screen) -> int:
    """Save a file, a store or standard input."""
    meta = SnapshotMeta(args.index, args.term)
    if args.source == "-" and sys.stdin is not None and sys.stdin.isatty():
        raise UsageError("standard input is a terminal", "usage: ... | snapstore save - --dir DIR --index N")
    with (
        _source(args.source, meta) as (source, size),
        SnapshotDir(args.dir) as directory,
        transfer_bar(screen, f"save {args.index}", size) as progress,
    ):
        saved = directory.save_from(source, meta, size=size, progress=progress)
    screen.result(saved_fields(saved), saved_text(saved))
    return ExitCode.DONE


def ls(args: argparse.Namespace, screen: Screen) -> int:
    """List what is stored, broken ones too, and what was set aside."""
    with open_existing(args.dir) as directory:
        listed, broken = directory.list(), directory.broken()
    fields = {
        "snapshots": [saved_fields(saved) for saved in listed],
        "broken": [{"index": found.index, "size": found.size, "path": str(found.path)} for found in broken],
    }
    rows = [
        (
            str(saved.index),
            str(saved.meta.term),
            format_size(saved.size),
            saved.digest or "-",
            saved.problem or "ok",
        )
        for saved in listed
    ]
    rows += [
        (str(found.index), "-", format_size(found.size), "-", f"broken, set aside as {found.path.name}")
        for found in broken
    ]
    screen.table(fields, ("INDEX", "TERM", "SIZE", "DIGEST", "STATE"), rows)
    return ExitCode.DONE


def verify(args: argparse.Namespace, screen: Screen) -> int:
    """Read one snapshot or all; OUTCOME_BAD when one is not what its manifest says. That is set aside."""
    with open_existing(args.dir) as directory:
        listed = directory.list() if args.index is None else [directory.stat(args.index)]
        problems = {}
        with transfer_bar(screen, "verify", sum(saved.size for saved in listed)) as progress:
            for saved in listed:
                try:
                    directory.verify(saved.index, progress=progress)
                except SnapshotCorrupt as error:
                    problems[saved.index] = str(error)
    checked = [{"index": saved.index, "problem": problems.get(saved.index)} for saved in listed]
    rows = [(str(saved.index), problems.get(saved.index, "ok")) for saved in listed]
    screen.table({"snapshots": checked}, ("INDEX", "STATE"), rows)
    return ExitCode.OUTCOME_BAD if problems else ExitCode.DONE


def path(args: argparse.Namespace, screen: Screen) -> int:
    """Print where a snapshot lies."""
    with open_existing(args.dir) as directory:
        found = str(directory.get_snap_file_path(args.index))
    screen.result({"index": args.index, "path": found}, found)
    return ExitCode.DONE


def restore(args: argparse.Namespace, screen: Screen) -> int:
    """Make a file or a store of a snapshot; not one byte that was not verified is put into place."""
    place = find_store(args.target)
    if place is None and os.path.lexists(args.target):
        raise FileExistsError(errno.EEXIST, "it exists; files are never replaced", args.target)
    with open_existing(args.dir) as directory:
        screen.note(f"verifying snapshot {args.index}")
        with directory.open(args.index) as stored:
            if place is not None:
                from snapstore.cli.stores import restore_store

                restore_store(stored.path, place, replace=args.replace)
            elif stored.saved.manifest is not None:  # It was verified by it.
                _restore_file(stored, stored.saved.manifest, args.target, screen)
    fields = {"index": args.index, "target": args.target}
    screen.result(fields, f"restored snapshot {args.index} to {args.target}")
    return ExitCode.DONE


def purge(args: argparse.Namespace, screen: Screen) -> int:
    """Remove the oldest, when a newer one was read back; those that are being read stay."""
    if args.keep is None and args.older_than is None and args.max_size is None:
        raise UsageError(
            "which ones stay?", "usage: snapstore purge DIR [--keep N] [--older-than TIME] [--max-size SIZE]"
        )
    with open_existing(args.dir) as directory, transfer_bar(screen, "read back", None) as progress:
        removed = list(
            directory.purge(
                keep=args.keep or 1, older_than_s=args.older_than, size_max=args.max_size, progress=progress
            )
        )
    words = f"removed {', '.join(map(str, removed))}" if removed else "nothing to remove"
    screen.result({"removed": removed}, words)
    return ExitCode.DONE


def open_existing(path: str) -> SnapshotDir:
    """Open a directory that is there: SnapshotDir would make one for a mistyped name."""
    if not os.path.isdir(path):
        raise FileNotFoundError(errno.ENOENT, "no directory of snapshots is here", path)
    return SnapshotDir(path)


@contextmanager
def _source(name: str, meta: SnapshotMeta) -> Iterator[tuple[int | SnapshotStream, int | None]]:
    """Yield what to save from, and its length in bytes where that is known."""
    place = find_store(name)
    if name == "-":
        yield 0, None
    elif place is not None:
        from snapstore.cli.stores import pinned_stream

        with pinned_stream(place, meta) as stream:
            yield stream, stream.size
    else:
        with open(name, "rb", buffering=0) as file:
            status = os.fstat(file.fileno())
            yield file.fileno(), status.st_size if stat.S_ISREG(status.st_mode) else None


def _restore_file(stored: StoredSnapshot, manifest: Manifest, target: str, screen: Screen) -> None:
    """Copy the snapshot beside the target, and give it its name when all of it is on the disk."""
    parent = os.path.dirname(target) or "."
    if not os.path.isdir(parent):
        raise FileNotFoundError(errno.ENOENT, "no such directory", parent)
    fd, temp = tempfile.mkstemp(prefix=".snapstore-", dir=parent)
    try:
        with transfer_bar(screen, f"restore {stored.meta.index}", manifest.size) as progress:
            _fastpipe.save(
                stored.image(),
                fd,
                size=manifest.size,
                chunk_size=manifest.chunk_size,
                expected=manifest.chunk_digests,
                progress=progress,
            )
        os.fsync(fd)
        # A link, since a rename would replace what somebody put there meanwhile.
        os.link(temp, target)
    finally:
        os.close(fd)
        os.unlink(temp)
    _sync_directory(parent)


def _sync_directory(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        disk.sync_directory(fd)
    finally:
        os.close(fd)
