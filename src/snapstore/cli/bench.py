"""`snapstore bench`: how fast this machine saves and sends, and how near that comes to what it can do."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING

from snapstore.bench.machine import memory_size
from snapstore.bench.plot import plot
from snapstore.bench.suite import COPIES, run_suite
from snapstore.bench.table import table
from snapstore.cli.demo_stage import check_room, interruptible, own_directory
from snapstore.cli.exits import ExitCode
from snapstore.cli.screen import format_size
from snapstore.doctor.finding import Level
from snapstore.doctor.mount import judge_mount, mount_of

if TYPE_CHECKING:
    import argparse

    from snapstore.cli.screen import Screen

#: For manifests, logs, and what a store has besides its values.
SPARE_SIZE = 64 * 1024 * 1024

#: Of the machine's memory. The content lies in it, and a second time in the page cache, as the file that is
#: saved: beyond a half what is called warm would come from the disk.
MEMORY_SHARE = 2

#: How the figures are to be read, for who reads them the first time.
LEGEND = """\
A ratio is how many times as fast as its baseline a way was, by the median of all rounds, with the lowest
and the highest of them. Every way ends with its data on the disk (fsync), and each file was read back and
compared. `disk alone` writes 4 MiB after 4 MiB past the page cache; `wire alone` sends over loopback and
keeps nothing: 1.0 is all that the hardware gives. A file is in the page cache before it is read, a cold
one is not. CPU is that of all processes at work, and of the busy thread. Where lowest and highest lie far
apart, somebody else used this machine: measure again when it is quiet."""


def run(args: argparse.Namespace, screen: Screen) -> int:
    """Measure, show, and leave nothing behind. Raises OSError, as where there is no room for it."""
    if args.plot is not None and not os.path.isdir(os.path.dirname(args.plot) or "."):
        # Said before minutes of work, and not after.
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), args.plot)
    with interruptible(), own_directory(args.dir, "snapstore-bench-") as directory:
        check_room(directory, COPIES * args.size + SPARE_SIZE)
        check_memory(args.size, memory_size())
        _warn(directory, screen)
        report = run_suite(
            Path(directory), size=args.size, rounds=args.rounds, busy=args.busy, note=screen.note
        )
    # Minutes of work are shown first: the disk may have no room for the picture.
    screen.result(report.to_json(), f"{table(report)}\n{LEGEND}")
    if args.plot is not None:
        Path(args.plot).write_text(plot(report))
    return ExitCode.DONE


def check_memory(size: int, memory: int) -> None:
    """Raise OSError where `size` bytes are too many to be saved from the `memory` bytes of this machine."""
    most = memory // MEMORY_SHARE
    if size > most:
        words = (
            f"--size is {format_size(size)}, and no more than half of this machine's memory, "
            f"{format_size(most)}, can be measured here; give a smaller --size"
        )
        raise OSError(errno.ENOMEM, words)


def _warn(directory: str, screen: Screen) -> None:
    """Say what the file system is no measure of, as one in memory."""
    for found in judge_mount(mount_of(directory)):
        if found.level is not Level.OK:
            screen.note(f"{found.seen}: {found.means}")
