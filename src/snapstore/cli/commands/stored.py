"""What the commands around a directory of snapshots take: save, verify, path, restore, purge."""

from __future__ import annotations

from snapstore.cli.arguments import parse_count, parse_duration, parse_index, parse_size
from snapstore.cli.commands.argument import AT_INDEX, DIR, INDEX, TO_DIR, argument
from snapstore.cli.commands.command import Command

SAVE = Command(
    "save",
    "save a file, a store or standard input durably as a snapshot",
    "stored:save",
    (
        argument("source", metavar="SOURCE", help="a file, lmdb:PATH, sqlite:PATH, or - for stdin"),
        TO_DIR,
        AT_INDEX,
        argument("--term", metavar="T", type=parse_index, default=0, help="its term (default: 0)"),
    ),
)

VERIFY = Command(
    "verify",
    "read snapshots and compare them with their digests",
    "stored:verify",
    (DIR, argument("index", metavar="INDEX", nargs="?", type=parse_index, help="only this one")),
)

PATH = Command("path", "print where a snapshot lies", "stored:path", (DIR, INDEX))

RESTORE = Command(
    "restore",
    "make a file or a store of a snapshot, verified",
    "stored:restore",
    (
        DIR,
        INDEX,
        argument("target", metavar="TARGET", help="a new file, lmdb:PATH or sqlite:PATH"),
        argument("--replace", action="store_true", help="replace a store that exists"),
    ),
    "Stop the node before a store of its own is replaced. Plain files are never replaced.",
)

PURGE = Command(
    "purge",
    "remove all but the newest snapshots",
    "stored:purge",
    (
        DIR,
        argument(
            "--keep",
            metavar="N",
            type=parse_count,
            help="how many stay in any case (default: 1, where another option says what goes)",
        ),
        argument(
            "--older-than",
            metavar="TIME",
            type=parse_duration,
            help="of the others only those saved longer ago go: 90s, 30m, 36h, 7d or 2w",
        ),
        argument(
            "--max-size",
            metavar="SIZE",
            type=parse_size,
            help="of the others the oldest go that do not fit in SIZE with all newer ones",
        ),
    ),
    "One that stays is read back from the disk before any goes. What is being read stays.",
)
