"""What `bench` takes."""

from __future__ import annotations

import argparse

from snapstore.cli.arguments import parse_count, parse_size
from snapstore.cli.commands.argument import argument
from snapstore.cli.commands.command import Command

#: As a store is that takes a second to hand over; what a disk does at its start no longer counts.
BENCH_SIZE_DEFAULT = "1GiB"

#: Below it, everything takes microseconds, and the clock is measured.
BENCH_SIZE_MIN = 1024 * 1024

#: An odd number, so that the median is one that was measured, and enough to see how far apart they are.
BENCH_ROUNDS_DEFAULT = 5


def _bench_size(text: str) -> int:
    size = parse_size(text)
    if size < BENCH_SIZE_MIN:
        raise argparse.ArgumentTypeError(f"with less than {BENCH_SIZE_MIN // 2**20} MiB nothing can be told")
    return size


BENCH = Command(
    "bench",
    "measure how fast this machine saves and sends, against what it can do at best",
    "bench:run",
    (
        argument("--dir", metavar="DIR", help="on the disk to measure (default: $TMPDIR)"),
        argument(
            "--size",
            type=_bench_size,
            default=BENCH_SIZE_DEFAULT,
            help=f"of what is saved and sent (default: {BENCH_SIZE_DEFAULT})",
        ),
        argument(
            "--rounds",
            metavar="N",
            type=parse_count,
            default=BENCH_ROUNDS_DEFAULT,
            help=f"how often each is timed (default: {BENCH_ROUNDS_DEFAULT})",
        ),
        argument(
            "--busy", action="store_true", help="measure again, beside a thread that computes in Python"
        ),
        argument("--plot", metavar="FILE", help="draw the ratios as SVG, too"),
    ),
    "Beside the disk alone, the wire alone, and what Python programs do without this package; all in turn, "
    "so that a busy machine slows all of them. Takes four times SIZE of disk space, and gives it back at the "
    "end. Use a quiet machine, and a SIZE of some seconds' work for the disk; more than half of the "
    "machine's memory is refused.",
)
