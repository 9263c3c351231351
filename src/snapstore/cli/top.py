"""The command that watches a server's transfers, or who holds what: `snapstore top URL`.

It shows what the server says, and works nothing out but how it looks. What comes from a peer may be
anything: it is shown as far as it is text and numbers.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from snapstore.cli.access import client_of
from snapstore.cli.exits import ExitCode
from snapstore.cli.peers import logged_to
from snapstore.cli.screen import format_size

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from snapstore.cli.screen import Screen

#: Of those that have ended, the last few tell what was going on; the log has the rest.
ENDED_SHOWN_MAX = 10

#: In characters: the longest URL that leaves room beside it.
_CELL_LENGTH_MAX = 48

#: No count of bytes, rate or time that is meant so is larger; what a peer says beyond is no number.
_NUMBER_MAX = 2.0**63

COLUMNS = ("INDEX", "WAY", "PEER", "STATE", "BYTES", "TOTAL", "RATE", "LEFT", "ERROR")

LEASE_COLUMNS = ("INDEX", "KIND", "OWNER", "STATE", "HELD", "LEFT", "COST", "TAKEN AT")

_UNDER_WAY = ("offered", "moving", "settling")


def top(args: argparse.Namespace, screen: Screen) -> int:
    """Show the transfers again and again, until Ctrl-C or `--count`; in JSON once."""
    client = client_of(args)
    kind = "leases" if args.leases else "transfers"
    look = client.list_leases if args.leases else client.list_transfers
    rows = lease_rows_of if args.leases else rows_of
    if args.json:
        screen.result({kind: [*look(args.url)]}, "")
        return ExitCode.DONE
    pause = threading.Event()  # Never set: to wait on it is a sleep that Ctrl-C ends.
    looks = 0
    columns = LEASE_COLUMNS if args.leases else COLUMNS
    # The notes say that the server does not answer: what is shown is old then.
    with logged_to(screen), screen.live(columns) as show:
        try:
            while True:
                show(rows(look(args.url)))
                looks += 1
                if looks == args.count:
                    return ExitCode.DONE
                pause.wait(args.interval)
        except KeyboardInterrupt:  # How one leaves.
            return ExitCode.DONE


def rows_of(transfers: Sequence[dict[str, Any]], /) -> list[tuple[str, ...]]:
    """Return what is shown of `transfers`: all under way, and the last few that have ended."""
    live = [entry for entry in transfers if entry.get("state") in _UNDER_WAY]
    ended = [entry for entry in transfers if entry.get("state") not in _UNDER_WAY]
    return [_row(entry) for entry in live + ended[:ENDED_SHOWN_MAX]]


def lease_rows_of(leases: Sequence[dict[str, Any]], /) -> list[tuple[str, ...]]:
    """Return what is shown of `leases`: all."""
    return [_lease_row(entry) for entry in leases]


def _lease_row(entry: dict[str, Any]) -> tuple[str, ...]:
    held_s, left_s, cost = (_number(entry.get(name)) for name in ("age_s", "left_s", "bytes_held"))
    place = entry.get("taken_at")
    return (
        _text(entry.get("index")),
        _text(entry.get("kind")),
        _text(entry.get("owner")),
        "overdue" if entry.get("overdue") is True else "held",
        "-" if held_s is None else f"{held_s:.0f} s",
        "-" if left_s is None else f"{left_s:.0f} s",
        "-" if cost is None else format_size(cost),
        _text(place.rpartition("/")[2] if isinstance(place, str) else None),  # Without its directory.
    )


def _row(entry: dict[str, Any]) -> tuple[str, ...]:
    state = "stalled" if entry.get("stalled") is True else _text(entry.get("state"))
    size, total, rate, left_s = (_number(entry.get(name)) for name in ("bytes", "total", "rate", "eta_s"))
    return (
        _text(entry.get("index")),
        _text(entry.get("direction")),
        _text(entry.get("peer")),
        state,
        "-" if size is None else format_size(size),
        "-" if total is None else format_size(total),
        "-" if rate is None else f"{format_size(rate)}/s",
        "-" if left_s is None else _time_left(left_s),
        _text(entry.get("error")),
    )


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if 0 <= number <= _NUMBER_MAX else None  # A NaN is neither.


def _time_left(left_s: float) -> str:
    if left_s < 60:
        return f"{left_s:.0f} s"
    minutes, seconds = divmod(round(left_s), 60)
    return f"{minutes}:{seconds:02d}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"


def _text(value: object) -> str:
    if not isinstance(value, (str, int)):
        return "-"
    # A terminal obeys what is not printable.
    shown = "".join(letter if letter.isprintable() else "?" for letter in str(value))
    return shown if len(shown) <= _CELL_LENGTH_MAX else f"{shown[: _CELL_LENGTH_MAX - 3]}..."
