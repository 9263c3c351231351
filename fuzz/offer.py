"""Offers: a head's fields are understood as they were meant, or OfferMalformed is raised."""

from __future__ import annotations

from snapstore.errors import SnapshotCorrupt
from snapstore.meta import ConfState, SnapshotMeta
from snapstore.wire import (
    Offer,
    OfferMalformed,
    kept_headers,
    pack_data,
    parse_index,
    parse_kept,
    read_data,
)


def check(data: bytes) -> bool:
    """Lines: the index as in a path, then `name: value` until an empty line; then a data frame.

    What an answer says of the bytes that are kept stands among the offer's own lines.
    """
    head, _, body = data.partition(b"\n\n")
    first, *lines = head.decode("latin-1").split("\n")
    index = parse_index(first)
    if index is None:
        return False
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    try:
        offer = Offer.parse(index, headers)
        kept = parse_kept(headers, offer)
    except OfferMalformed:
        return False
    assert kept % offer.chunk_size == 0
    assert parse_kept({name.lower(): value for name, value in kept_headers(kept)}, offer) == kept
    again = {name.lower(): value for name, value in offer.headers()}
    assert Offer.parse(index, again) == offer
    return _data_is_whole(offer, body)


def _data_is_whole(offer: Offer, body: bytes) -> bool:
    taken = 0

    def read_exactly(size: int) -> bytes:
        nonlocal taken
        taken += size
        if taken > len(body):
            raise EOFError
        return body[taken - size : taken]

    try:
        data = read_data(offer, read_exactly)
    except (SnapshotCorrupt, EOFError):
        return False
    assert len(data) == offer.data_size
    assert pack_data(data) == body[:taken]
    return True


def _input(offer: Offer, body: bytes = b"") -> bytes:
    lines = [str(offer.meta.index), *(f"{name}: {value}" for name, value in offer.headers())]
    return "\n".join(lines).encode() + b"\n\n" + body


def seeds() -> dict[str, bytes]:
    """Offers with a size and without, with data and with data that was bent."""
    meta = SnapshotMeta(7, 3, ConfState((1, 2, 3), learners=(9,), auto_leave=True))
    data = pack_data(b"members")
    with_data = Offer(meta, None, 4096, "blue", 7)
    sized = _input(Offer(meta, 10000, 4096))
    return {
        "good-sized": sized,
        "good-kept": sized.replace(b"\n\n", b"\nSnapstore-Offset: 8192\n\n"),
        "bad-kept": sized.replace(b"\n\n", b"\nSnapstore-Offset: 8191\n\n"),
        "good-data": _input(with_data, data),
        "bad-data": _input(with_data, data[:-1] + b"?"),
        "bad-chunk-size": sized.replace(b"Size: 4096", b"Size: 4095"),
    }
