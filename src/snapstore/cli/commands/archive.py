"""What the commands around an archive take: ls, of both kinds of places, push, pull."""

from __future__ import annotations

from snapstore.cli.arguments import parse_count, parse_index, parse_index_or_newest
from snapstore.cli.commands.argument import DIR, RATE, TO_DIR, argument
from snapstore.cli.commands.command import Command

_ENDPOINT = argument(
    "--endpoint", metavar="URL", help="http[s]://HOST:PORT of a server that speaks S3, if not AWS"
)
_ARCHIVE = (
    argument("url", metavar="URL", help="s3://BUCKET/PREFIX, or file:///PATH where one is mounted"),
    _ENDPOINT,
)
_ARCHIVE_DETAILS = (
    "Credentials and the region are taken from AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_REGION. "
    "After a break do it again: what was done stays done."
)

LS = Command(
    "ls",
    "list the snapshots of a directory, or of an archive",
    "archive:ls",
    (
        argument("dir", metavar="DIR", help="a directory of snapshots, or s3://BUCKET/PREFIX"),
        _ENDPOINT,
    ),
)

PUSH = Command(
    "push",
    "put a snapshot into an archive, from which a lost cluster comes back",
    "archive:push",
    (
        DIR,
        argument(
            "index",
            metavar="INDEX",
            type=parse_index_or_newest,
            help="raft's index, decimal or 0x..., or newest",
        ),
        *_ARCHIVE,
        argument(
            "--keep",
            metavar="N",
            type=parse_count,
            help="then remove all but the N newest of the archive",
        ),
        RATE,
    ),
    _ARCHIVE_DETAILS,
)

PULL = Command(
    "pull",
    "take a snapshot out of an archive, verified",
    "archive:pull",
    (
        *_ARCHIVE,
        argument("index", metavar="INDEX", nargs="?", type=parse_index, help="default: the newest"),
        TO_DIR,
        RATE,
    ),
    _ARCHIVE_DETAILS,
)
