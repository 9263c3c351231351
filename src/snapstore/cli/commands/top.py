"""What `top` takes."""

from __future__ import annotations

from snapstore.cli.arguments import parse_count, parse_interval
from snapstore.cli.commands.argument import argument
from snapstore.cli.commands.command import Command
from snapstore.cli.commands.peers import ACCESS, ATTEMPTS, TOKEN_IN_CLEAR, URL

#: Between two looks of `top`: as often as an eye follows; the server works nothing out in between.
TOP_INTERVAL_S = 1.0

TOP = Command(
    "top",
    "watch the transfers of a server",
    "top:top",
    (
        URL,
        argument(
            "--interval",
            metavar="S",
            type=parse_interval,
            default=TOP_INTERVAL_S,
            help=f"seconds between two looks (default: {TOP_INTERVAL_S:g})",
        ),
        argument("--count", metavar="N", type=parse_count, help="end after so many looks"),
        argument("--leases", action="store_true", help="show who holds which snapshot, and what it costs"),
        ATTEMPTS,
        *ACCESS,
        TOKEN_IN_CLEAR,
    ),
    "Shows what is under way, and the last few that have ended, until Ctrl-C; with --json it looks once.",
)
