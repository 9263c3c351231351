"""What people type, read: sizes, times, indexes, and where a store lies. Text in, values out.

Each reader raises `ArgumentTypeError`, whose text argparse shows with the argument's name.
"""

from __future__ import annotations

import re
from argparse import ArgumentTypeError
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from snapstore.meta import check_index

if TYPE_CHECKING:
    from snapstore._fastpipe import Throttle

T = TypeVar("T")

_UNITS = {"": 1, "b": 1}
_UNITS |= {f"{letter}ib": 1024**power for power, letter in enumerate("kmgt", 1)}
_UNITS |= {f"{letter}b": 1000**power for power, letter in enumerate("kmgt", 1)}

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 24 * 3600, "w": 7 * 24 * 3600}

_DURATION = re.compile(r"([0-9]{1,9})([smhdw])")

_SIZE = re.compile(r"([0-9]{1,19}(?:\.[0-9]{1,6})?) ?([a-z]*)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class StorePlace:
    """A key-value store on disk: its kind, `lmdb` or `sqlite`, and its path."""

    kind: str
    path: str

    def __str__(self) -> str:
        return f"{self.kind}:{self.path}"


#: Who looks less often than this does not watch.
INTERVAL_S_MAX = 3600.0

#: The kinds of stores that can be named as KIND:PATH.
STORE_KINDS = ("lmdb", "sqlite")


def checked(read: Callable[[str], T]) -> Callable[[str], T]:
    """Return `read` with its ValueErrors told to the user in its own words."""

    def read_argument(text: str) -> T:
        try:
            return read(text)
        except ValueError as error:
            raise ArgumentTypeError(str(error)) from None

    return read_argument


def parse_size(text: str) -> int:
    """Read a size in bytes: `1GiB`, `64MiB`, `10GB`, or a plain number of bytes."""
    found = _SIZE.fullmatch(text.strip())
    if not found or found[2].lower() not in _UNITS:
        raise ArgumentTypeError(f"a size is a number and a unit, as 1GiB, 64MiB or 10GB, not {text!r}")
    # Imported here, since `fractions` brings in `decimal`, and few commands are given a size.
    from fractions import Fraction

    # A fraction, not a float: sizes above 2^53 bytes stay exact.
    return int(Fraction(found[1]) * _UNITS[found[2].lower()])


def parse_throttle(text: str) -> Throttle:
    """Return a throttle of so many bytes a second: a size, with `/s` behind it or without.

    Raises ValueError where no transfer lives on so few.
    """
    from snapstore._fastpipe import Throttle

    return Throttle(parse_size(text.strip().removesuffix("/s")))


def parse_duration(text: str) -> int:
    """Read a time in seconds: `90s`, `30m`, `36h`, `7d` or `2w`."""
    found = _DURATION.fullmatch(text.strip().lower())
    if not found:
        raise ArgumentTypeError(f"a time is a number and a unit, as 90s, 30m, 36h, 7d or 2w, not {text!r}")
    return int(found[1]) * _SECONDS[found[2]]


def parse_index(text: str) -> int:
    """Read raft's index or term: decimal, or hexadecimal with `0x` as in the names of the files."""
    try:
        return check_index(int(text, 16 if text.lower().startswith("0x") else 10))
    except ValueError:
        raise ArgumentTypeError(f"give a number from 0 to 2^64-1, decimal or 0x..., not {text!r}") from None


def parse_count(text: str) -> int:
    """Read a number that is 1 or more."""
    if not (text.isascii() and text.isdigit() and int(text) >= 1):
        raise ArgumentTypeError(f"give a number, 1 or more, not {text!r}")
    return int(text)


def parse_interval(text: str) -> float:
    """Read a number of seconds, above 0, an hour at most."""
    try:
        interval_s = float(text)
    except ValueError:
        interval_s = 0.0
    if not 0 < interval_s <= INTERVAL_S_MAX:
        raise ArgumentTypeError(f"give seconds, above 0 and {INTERVAL_S_MAX:g} at most, not {text!r}")
    return interval_s


def parse_store(text: str) -> StorePlace:
    """Read `lmdb:PATH` or `sqlite:PATH`."""
    place = find_store(text)
    if place is None:
        raise ArgumentTypeError(f"a store is lmdb:PATH or sqlite:PATH, not {text!r}")
    return place


def find_store(text: str) -> StorePlace | None:
    """Return the store that `text` names, or None where it is a plain path."""
    kind, colon, path = text.partition(":")
    return StorePlace(kind, path) if colon and path and kind in STORE_KINDS else None


def parse_peer_url(text: str) -> str:
    """Return `text` if it is the URL of a peer; raises ValueError."""
    from snapstore.transport.address import parse_url

    parse_url(text)
    return text


def parse_source_url(text: str) -> str:
    """Return `text` if it is the URL of a peer, or of an etcd; raises ValueError."""
    if not text.startswith("etcd:"):
        return parse_peer_url(text)
    from snapstore.etcd.dial import parse_endpoint

    parse_endpoint(text)
    return text


def parse_listen_address(text: str) -> str:
    """Return `text` if a server can listen there; raises ValueError."""
    from snapstore.transport.address import parse_address

    parse_address(text)
    return text


def parse_cluster(text: str) -> str:
    """Return `text` if it can be a cluster's name; raises ValueError."""
    from snapstore.wire import check_cluster

    return check_cluster(text)


def parse_etcd_id(text: str) -> int:
    """Return an etcd cluster's id, of hexadecimal digits; raises ValueError."""
    from snapstore.etcd.handshake import parse_id

    return parse_id(text)


def parse_index_or_newest(text: str) -> int | None:
    """Return an index, or None for the newest."""
    return None if text == "newest" else parse_index(text)
