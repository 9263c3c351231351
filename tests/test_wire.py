"""Offers, data frames and ranges: what is said is what is understood, and nothing else is."""

from __future__ import annotations

import contextlib
import socket
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodes import CONTENT, META, UNIT, frames
from snapstore import _fastpipe
from snapstore.errors import SnapshotCorrupt, SnapshotTruncated
from snapstore.meta import INDEX_MAX, ConfState, SnapshotMeta
from snapstore.wire import (
    Offer,
    OfferMalformed,
    check_cluster,
    exact_reader,
    pack_data,
    parse_index,
    parse_range,
    read_data,
)

INTEGERS = st.integers(0, INDEX_MAX)
IDS = st.lists(INTEGERS, max_size=4).map(tuple)
METAS = st.builds(SnapshotMeta, INTEGERS, INTEGERS, st.builds(ConfState, IDS, IDS, IDS, IDS, st.booleans()))
OFFERS = st.builds(
    Offer,
    METAS,
    st.none() | st.integers(0, 2**62),
    st.integers(1, _fastpipe.CHUNK_SIZE_MAX // UNIT).map(lambda units: units * UNIT),
    st.sampled_from(["", "blue", "a" * 128]),
    st.integers(0, 1024),
)


def lowered(offer):
    return {name.lower(): value for name, value in offer.headers()}


@given(OFFERS)
def test_what_an_offer_says_is_what_is_understood(offer):
    assert Offer.parse(offer.meta.index, lowered(offer)) == offer


@given(st.dictionaries(st.sampled_from(list(lowered(Offer(META, 5, UNIT, "c", 3)))), st.text(max_size=30)))
def test_any_other_header_is_an_offer_or_malformed_and_nothing_else(changes):
    headers = lowered(Offer(META, 5, UNIT, "c", 3)) | changes
    with contextlib.suppress(OfferMalformed):
        offer = Offer.parse(7, headers)
        assert lowered(offer).keys() <= headers.keys() | {"content-length", "transfer-encoding"}


@pytest.mark.parametrize("content", [b"", b"x", CONTENT[:UNIT], CONTENT[: UNIT + 1], CONTENT])
@pytest.mark.parametrize("data", [b"", b"engine"])
def test_the_body_has_the_length_that_the_offer_says(content, data):
    offer = Offer(META, len(content), UNIT, data_size=len(data))
    assert offer.body_size == len(pack_data(data) + frames(content))


def test_the_core_frames_as_the_protocol_is_written(tmp_path):
    with open(tmp_path / "body", "wb+") as file:
        copied = _fastpipe.send_frames(CONTENT, file.fileno(), size=len(CONTENT), chunk_size=UNIT)
        file.seek(0)
        assert file.read() == frames(CONTENT)
    assert copied.digest == _fastpipe.crc32c(CONTENT)


def reader_of(data):
    """A body of `data` on a socket whose other end is closed, and what reads exactly from it."""
    ours, theirs = socket.socketpair()
    sender = threading.Thread(target=lambda: (theirs.sendall(data), theirs.close()))
    sender.start()
    return ours, sender, exact_reader(_fastpipe.Body(ours.fileno(), b"", len(data)), 5.0)


def data_of(sent, data_size):
    ours, sender, read_exactly = reader_of(sent)
    try:
        return read_data(Offer(META, 0, UNIT, data_size=data_size), read_exactly)
    finally:
        sender.join()
        ours.close()


@pytest.mark.parametrize("data", [b"", b"x", b"engine" * 40_000])
def test_data_comes_through_its_frame(data):
    assert data_of(pack_data(data) + b"rest", len(data)) == data


def test_a_data_frame_with_any_bit_turned_is_corrupt():
    sent = pack_data(b"engine")
    for bit in range(len(sent) * 8):
        turned = bytearray(sent)
        turned[bit // 8] ^= 1 << bit % 8
        with pytest.raises(SnapshotCorrupt):
            data_of(bytes(turned), 6)


def test_a_data_frame_that_ends_early_is_truncated():
    for size in range(len(pack_data(b"engine"))):
        with pytest.raises(SnapshotTruncated, match=r"early|ended"):
            data_of(pack_data(b"engine")[:size], 6)


@pytest.mark.parametrize(
    ("text", "index"),
    [("0", 0), ("007", 7), (str(INDEX_MAX), INDEX_MAX), (str(INDEX_MAX + 1), None), ("9" * 21, None)]
    + [(text, None) for text in ["", "-1", "+1", " 1", "1 ", "1\n", "0x1", "\u0661"]],
)
def test_an_index_in_a_path_is_decimal_digits(text, index):
    assert parse_index(text) == index


@pytest.mark.parametrize("cluster", ["a b", "a" * 129, "\u00e9", "a\n"])
def test_a_cluster_name_that_does_not_fit_a_header_is_refused(cluster):
    with pytest.raises(ValueError, match="printable ASCII"):
        check_cluster(cluster)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (None, None),
        ("bytes=0-0", (0, 1)),
        ("bytes=0-", (0, 10)),
        ("bytes=2-5", (2, 4)),
        ("bytes=9-", (9, 1)),
        ("bytes=5-99", (5, 5)),
        ("bytes=-3", (7, 3)),
        ("bytes=-99", (0, 10)),
        ("bytes=5-4", None),
        ("bytes=-", None),
        ("bytes=0-1,4-5", None),
        ("bytes=a-b", None),
        ("lines=0-1", None),
        ("bytes=1-2\n", None),
    ],
)
def test_a_range_is_read_as_rfc_9110_has_it(text, found):
    assert parse_range(text, 10) == found


@pytest.mark.parametrize("text", ["bytes=10-", "bytes=10-12", "bytes=-0"])
def test_a_range_outside_is_refused(text):
    with pytest.raises(ValueError, match="outside of 10 bytes"):
        parse_range(text, 10)


def test_no_range_lies_in_an_empty_file():
    for text in ("bytes=0-", "bytes=-5"):
        with pytest.raises(ValueError, match="outside of 0 bytes"):
            parse_range(text, 0)
