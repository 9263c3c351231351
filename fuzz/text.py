"""Short texts: indexes in paths, ranges, addresses, URLs, names in a directory, a cluster's name."""

from __future__ import annotations

import os
import re

from fuzz.peers import directory
from snapstore import disk
from snapstore.meta import INDEX_MAX
from snapstore.transport.address import Address, parse_address, parse_url
from snapstore.wire import check_cluster, parse_index, parse_range

_TEMP_NAME = re.compile(r"\.tmp-[0-9a-f]{16}-[0-9a-f]{16}")

#: As many bytes as a range is tried against.
_SIZE = 1000


def _index(text: str) -> bool:
    index = parse_index(text)
    assert index is None or (0 <= index <= INDEX_MAX and text.isascii() and index == int(text))
    return index is not None


def _range(text: str) -> bool:
    try:
        found = parse_range(text, _SIZE)
    except ValueError:
        return False
    if found is None:
        return False
    start, length = found
    assert 0 <= start < start + length <= _SIZE
    assert parse_range(f"bytes={start}-{start + length - 1}", _SIZE) == found
    return True


def _address(text: str) -> bool:
    try:
        address = parse_address(text)
    except ValueError:
        return False
    assert 0 <= address.port <= 65535
    assert parse_address(str(address)) == address
    return True


def _url(text: str) -> bool:
    try:
        address = parse_url(text)
    except ValueError:
        return False
    assert 0 <= address.port <= 65535
    assert isinstance(address, Address)
    return True


def _cluster(text: str) -> bool:
    try:
        check_cluster(text)
    except ValueError:
        return False
    assert re.fullmatch(r"[\x21-\x7e]{0,128}", text)
    return True


def _name(text: str) -> bool:
    """A name that a directory's listing brings: what is not ours stays."""
    if "/" in text:  # A path: it would be somewhere else.
        return False
    with directory() as path:
        try:
            (path / text).touch(exist_ok=False)
        except (OSError, ValueError):
            return False
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            indexes, removed = disk.snapshot_indexes(fd), disk.sweep(fd)
        finally:
            os.close(fd)
        assert os.listdir(path) == [name for name in [text] if name not in removed]
    if indexes:
        assert disk.snapshot_name(indexes[0]) == text
        assert not removed
    elif removed:
        assert _TEMP_NAME.fullmatch(text) or disk.manifest_name(int(text[:16], 16)) == text
    return bool(indexes or removed)


_KINDS = (_index, _range, _address, _url, _cluster, _name)


def check(data: bytes) -> bool:
    """The first byte says what the rest is."""
    return _KINDS[data[0] % len(_KINDS)](data[1:].decode("utf-8", "surrogateescape")) if data else False


def seeds() -> dict[str, bytes]:
    """One good text and one bad one of each kind."""
    texts = {
        _index: ("18446744073709551615", "18446744073709551616"),
        _range: ("bytes=-10", "bytes=1000-"),
        _address: ("[::1]:80", "::1:80"),
        _url: ("http+unix://%2Frun%2Fx", "ftp://leader:80/"),
        _cluster: ("blue-1", "blue 1"),
        _name: ("00000000000000ff.db", "00000000000000FF.db"),
    }
    found = {}
    for number, kind in enumerate(_KINDS):
        good, bad = texts[kind]
        found[f"good{kind.__name__}".replace("_", "-")] = bytes([number]) + good.encode()
        found[f"bad{kind.__name__}".replace("_", "-")] = bytes([number]) + bad.encode()
    found["good-name-temporary"] = bytes([5]) + b".tmp-00000000000000ff-0123456789abcdef"
    found["good-name-orphan"] = bytes([5]) + b"00000000000000ff.json"
    return found
