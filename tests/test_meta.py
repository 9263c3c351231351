"""Indexes, conf states and metas: what is taken, what is refused, and the way through JSON."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapstore.meta import INDEX_MAX, META_DATA_SIZE_MAX, ConfState, SnapshotMeta, check_index, to_meta

MEMBERS = st.lists(st.integers(0, INDEX_MAX), max_size=5).map(tuple)
CONF_STATES = st.builds(ConfState, MEMBERS, MEMBERS, MEMBERS, MEMBERS, st.booleans())
METAS = st.builds(
    SnapshotMeta, st.integers(0, INDEX_MAX), st.integers(0, INDEX_MAX), CONF_STATES, st.binary(max_size=200)
)


class Indexed:
    """A number of a kind of its own, as numpy's are."""

    def __init__(self, number):
        self.number = number

    def __index__(self):
        return self.number


@pytest.mark.parametrize("index", [0, 1, 2**63 - 1, 2**63, INDEX_MAX, Indexed(7)])
def test_an_index_is_any_integer_of_64_bits(index):
    assert check_index(index) == int(index.__index__())
    assert type(check_index(index)) is int


@pytest.mark.parametrize("index", [-1, 2**64, 10**30, -(2**63), Indexed(-1)])
def test_numbers_beyond_64_bits_are_refused(index):
    with pytest.raises(ValueError, match=r"index must be between 0 and 2\^64-1"):
        check_index(index)


@pytest.mark.parametrize("index", [True, False, 1.0, "1", "../x", b"1", None, [], 1j])
def test_what_is_no_integer_is_refused(index):
    with pytest.raises(TypeError, match="index must be an integer, not"):
        check_index(index)


@given(METAS)
def test_a_meta_survives_json(meta):
    assert SnapshotMeta.from_json(json.loads(json.dumps(meta.to_json()))) == meta


@given(CONF_STATES)
def test_a_conf_state_survives_json_which_has_no_empty_fields(conf_state):
    fields = json.loads(json.dumps(conf_state.to_json()))
    assert all(fields.values())
    assert ConfState.from_json(fields) == conf_state


def test_a_bare_index_is_a_meta_of_term_0():
    assert to_meta(7) == SnapshotMeta(7, 0, ConfState(), b"")
    meta = SnapshotMeta(7, 3)
    assert to_meta(meta) is meta


def test_data_is_copied_and_bounded():
    data = bytearray(b"member")
    meta = SnapshotMeta(1, data=data)
    data[0] = 0
    assert meta.data == b"member"
    SnapshotMeta(1, data=bytes(META_DATA_SIZE_MAX))
    with pytest.raises(ValueError, match="keep more in the KV"):
        SnapshotMeta(1, data=bytes(META_DATA_SIZE_MAX + 1))


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"index": -1}, ValueError),
        ({"index": 1, "term": "1"}, TypeError),
        ({"index": 1, "term": 2**64}, ValueError),
        ({"index": 1, "conf_state": {"voters": [1]}}, TypeError),
        ({"index": 1, "data": "text"}, TypeError),
        ({"index": 1, "data": None}, TypeError),
    ],
)
def test_a_meta_refuses_what_it_could_not_write_down(fields, error):
    with pytest.raises(error):
        SnapshotMeta(**fields)


@pytest.mark.parametrize("members", [(True,), (-1,), (2**64,), ("1",), (None,)])
def test_member_ids_are_checked_and_named(members):
    with pytest.raises((TypeError, ValueError), match="learners_next must be"):
        ConfState(learners_next=members)


GOOD = SnapshotMeta(5, 2, ConfState((1, 2)), b"\xff").to_json()


@pytest.mark.parametrize(
    "fields",
    [
        None,
        [],
        "index",
        {},
        {**GOOD, "more": 1},
        {name: value for name, value in GOOD.items() if name != "term"},
        {**GOOD, "index": "5"},
        {**GOOD, "index": 5.0},
        {**GOOD, "index": True},
        {**GOOD, "data": 7},
        {**GOOD, "data": "not base64!"},
        {**GOOD, "data": "\u20ac"},
        {**GOOD, "data": "A"},
        {**GOOD, "conf_state": None},
        {**GOOD, "conf_state": {"voters": "12"}},
        {**GOOD, "conf_state": {"voters": [[1]]}},
        {**GOOD, "conf_state": {"auto_leave": 1}},
        {**GOOD, "conf_state": {"auto_leave": "yes"}},
        {**GOOD, "conf_state": {"watchers": [1]}},
    ],
)
def test_foreign_json_is_refused(fields):
    with pytest.raises((TypeError, ValueError)):
        SnapshotMeta.from_json(fields)
