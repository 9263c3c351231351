"""When to come again: what peers and proxies say of it, and what ours are told."""

from __future__ import annotations

import math

import pytest

from nodes import Follower, RawPeer, put_head
from snapstore.errors import PeerRejected
from snapstore.transport.advice import RETRY_AFTER_S_MAX, parse_advice

#: When the answers here were made.
NOW = "Sun, 06 Nov 1994 08:49:37 GMT"


@pytest.mark.parametrize(
    ("said", "seconds"),
    [
        ("0", 0.0),
        ("007", 7.0),
        ("9" * 5000, RETRY_AFTER_S_MAX),
        ("Sun, 06 Nov 1994 08:50:07 GMT", 30.0),
        ("Sunday, 06-Nov-94 08:50:07 GMT", 30.0),
        ("Sun Nov  6 08:50:07 1994", 30.0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", RETRY_AFTER_S_MAX),
        ("Sun, 06 Nov 1994 08:49:00 GMT", 0.0),
        *(
            (words, None)
            for words in ("", "soon", "-1", "1.5", "1e9", "inf", "nan", "\u0663", "5, 6", "0 GMT")
        ),
        ("Sun, 06 Nov 99999999999999999999 08:49:37 GMT", None),
    ],
    ids=lambda words: str(words)[:30],
)
def test_advice_is_a_number_or_a_date_or_none(said, seconds):
    assert parse_advice({"retry-after": said, "date": NOW}) == seconds
    if seconds is not None and not said.isdigit():
        assert parse_advice({"retry-after": said}) is None  # A date counts from the answer's own.


@pytest.mark.parametrize(
    ("advised_s", "said"),
    [(None, None), (0, "1"), (-5, "1"), (1.4, "2"), (90, "90")]
    + [(much, "3600") for much in (1e9, math.inf, math.nan)],
)
def test_what_a_node_advises_is_told_in_whole_seconds_and_never_less(nothing_lost, tmp_path, advised_s, said):
    """Also where its hook gives what is no number of seconds."""

    def on_offer(offer):
        raise PeerRejected(503, "restoring", advised_s)

    with Follower(tmp_path / "follower", on_offer=on_offer) as follower, RawPeer(follower.url) as peer:
        peer.say(put_head())
        status, headers, _ = peer.hear()
    assert (status, headers["Retry-After"]) == (503, said)
