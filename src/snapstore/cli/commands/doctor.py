"""What the commands that look and tell take: doctor, explain."""

from __future__ import annotations

from snapstore.cli.commands.argument import DIR, INDEX, argument
from snapstore.cli.commands.command import Command

DOCTOR = Command(
    "doctor",
    "say what is wrong with a directory, or with the disk below it, and what to change",
    "doctor:doctor",
    (
        DIR,
        argument("--fix", action="store_true", help="remove what dead savers left, as a node does"),
        argument("--read", action="store_true", help="read every byte of every snapshot, too"),
    ),
    "A node may be at work in DIR. Without --fix nothing there is changed. To see how fast the disk is, "
    "64 MiB are written to a file without a name, which is gone at the end, after a kill, too.",
)

EXPLAIN = Command(
    "explain",
    "say all that is known of a snapshot",
    "doctor:explain",
    (DIR, INDEX, argument("--read", action="store_true", help="read every byte of it, too")),
)
