"""One argument of a command, and those that commands of several kinds take alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from snapstore.cli.arguments import checked, parse_index, parse_throttle


@dataclass(frozen=True, slots=True)
class Argument:
    """One `add_argument`: its names and its options."""

    names: tuple[str, ...]
    options: dict[str, Any]


def argument(*names: str, **options: Any) -> Argument:
    """Return an Argument; it is written as `add_argument` is called."""
    return Argument(names, options)


DIR = argument("dir", metavar="DIR", help="a directory of snapshots")
TO_DIR = argument("--dir", metavar="DIR", required=True, help="a directory of snapshots; made if missing")
INDEX = argument("index", metavar="INDEX", type=parse_index, help="raft's index, decimal or 0x...")
AT_INDEX = argument("--index", metavar="N", type=parse_index, required=True, help="the last applied index")
RATE = argument(
    "--rate",
    metavar="RATE",
    type=checked(parse_throttle),
    help="bytes a second at most, as 50MB/s (default: no limit)",
)
