"""etcd's messages against bytes that a real leader sent, and against bytes that nobody should."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapstore.etcd import messages, proto
from snapstore.etcd.messages import Message, MessageMalformed, decode, encode, snapshot_meta
from snapstore.meta import META_DATA_SIZE_MAX, ConfState, SnapshotMeta

TO, FROM = 0x022914DE8007A9EA, 0xBED7B5DAC636F795

#: The engine's data of the capture, by its beginning and its size.
DATA = b'{"Root":{"Path":"/",'.ljust(7605, b" ")

META = SnapshotMeta(6505, 2, ConfState((TO, FROM)), DATA)

#: What a leader of etcd 3.4.23 sent, field by field.
CAPTURE = b"".join(
    [
        bytes.fromhex("08 07"),  # type: MsgSnap
        bytes.fromhex("10 ead39e80e89bc59402"),  # to
        bytes.fromhex("18 95efdbb1acbbedebbe01"),  # from
        bytes.fromhex("20 02  28 00  30 00  40 00"),  # term, logTerm, index, commit
        bytes.fromhex("4a d83b"),  # snapshot, 7640 bytes
        bytes.fromhex("0a b53b") + DATA,
        bytes.fromhex("12 1e"),  # its metadata
        bytes.fromhex("0a 17 08 ead39e80e89bc59402 08 95efdbb1acbbedebbe01 28 00"),  # conf state
        bytes.fromhex("10 e932  18 02"),  # index, term
        bytes.fromhex("50 00  58 00"),  # reject, rejectHint
    ]
)

uint64 = st.integers(0, 2**64 - 1)
members = st.lists(uint64, max_size=5).map(tuple)
metas = st.builds(
    SnapshotMeta,
    uint64,
    uint64,
    st.builds(ConfState, members, members, members, members, st.booleans()),
    st.binary(max_size=100),
)


def test_a_snapshot_is_written_as_etcd_writes_it():
    assert encode(messages.snapshot_message(META, to=TO, sender=FROM, term=2)) == CAPTURE


def test_what_etcd_writes_is_read_and_written_again():
    message = decode(Message, CAPTURE)
    assert (message.type, message.to, getattr(message, "from"), message.term) == (7, TO, FROM, 2)
    assert snapshot_meta(message.snapshot) == META
    assert encode(message) == CAPTURE


def test_zeros_may_be_absent():
    bare = bytes.fromhex("08 07  4a 06  12 04  10 09  18 02")
    message = decode(Message, bare)
    assert (message.to, message.term, message.reject) == (0, 0, False)
    assert snapshot_meta(message.snapshot) == SnapshotMeta(9, 2)
    assert encode(message) == bare


def test_unknown_fields_are_kept():
    # An entry (7), a vote (13) and responses (14) of newer peers, and a number that nobody has.
    for extra in ("3a 02 20 05", "68 01", "72 02 08 04", "f8 ff 01 01"):
        message = decode(Message, CAPTURE + bytes.fromhex(extra))
        assert snapshot_meta(message.snapshot) == META
        assert encode(message).endswith(bytes.fromhex(extra))


def test_members_may_come_packed():
    packed = bytes.fromhex("08 07  4a 0a  12 08  0a 04  0a 02 05 06  10 09")
    assert snapshot_meta(decode(Message, packed).snapshot).conf_state == ConfState((5, 6))


def test_a_type_that_nobody_knows_is_not_that_before_it():
    assert decode(Message, bytes.fromhex("08 07  08 e7 07")).type == 999


@given(metas)
def test_a_meta_survives(meta):
    message = messages.snapshot_message(meta, to=1, sender=2, term=3)
    assert snapshot_meta(decode(Message, encode(message)).snapshot) == meta


@given(st.binary(max_size=200))
def test_anything_is_a_message_or_malformed(data):
    try:
        message = decode(Message, data)
    except MessageMalformed:
        return
    assert isinstance(snapshot_meta(message.snapshot), SnapshotMeta)


@given(st.integers(0, len(CAPTURE) - 1))
def test_a_message_that_ends_early_is_none_or_has_less(length):
    try:
        message = decode(Message, CAPTURE[:length])
    except MessageMalformed:
        return
    assert length < 40 or length > len(CAPTURE) - 5  # Between two fields, never inside one.
    assert encode(message) == CAPTURE[:length]


def test_limits_of_what_becomes_a_meta():
    many = messages.RaftConfState(voters=range(messages.MEMBERS_MAX + 1))
    metadata = messages.SnapshotMetadata(index=1, conf_state=many)
    with pytest.raises(MessageMalformed, match=f"more than {messages.MEMBERS_MAX} members"):
        snapshot_meta(messages.Snapshot(metadata=metadata))
    with pytest.raises(MessageMalformed, match="data has"):
        snapshot_meta(messages.Snapshot(data=bytes(META_DATA_SIZE_MAX + 1)))


def test_messages_of_the_client_protocol():
    answer = decode(messages.SnapshotResponse, bytes.fromhex("10 80 01  1a 02 6162  22 03 332e36"))
    assert (answer.remaining_bytes, answer.blob, answer.version) == (128, b"ab", "3.6")
    assert not answer.HasField("header")
    assert encode(messages.SnapshotRequest()) == b""
    asked = messages.AuthenticateRequest(name="root", password="pw")
    assert encode(asked) == bytes.fromhex("0a 04 726f6f74  12 02 7077")
    status = decode(messages.StatusResponse, bytes.fromhex("0a 02 18 07  18 80 20  50 01"))
    assert (status.header.revision, status.dbSize, status.isLearner) == (7, 4096, True)


GOOD = """syntax = "proto3";
package p;
message A {
  uint64 n = 1; // a number
}
message B {
  A a = 1;
}
"""


def test_a_proto_file_becomes_classes():
    classes = proto.message_classes("good.proto", GOOD)
    assert encode(classes["B"](a=classes["A"](n=5))) == bytes.fromhex("0a 02 08 05")


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    {
        "enum": ("uint64 n = 1;", "enum E {", "good.proto:4: 'enum E {' is not in the part"),
        "nested": ("uint64 n = 1;", "message C {", "good.proto:4"),
        "option": ("uint64 n = 1;", "uint64 n = 1 [packed = true];", "good.proto:4"),
        "number 0": ("uint64 n = 1;", "uint64 n = 0;", "good.proto:4"),
        "unknown type": ("A a = 1;", "C a = 1;", "unknown type C"),
        "later type": ("uint64 n = 1;", "B n = 1;", "unknown type B"),
        "label": ("uint64 n = 1;", "optional uint64 n = 1;", "a label that is not of proto3"),
        "no label": ("proto3", "proto2", "a label that is not of proto2"),
        "no syntax": ('syntax = "proto3";', "", "no syntax"),
        "unended": ("A a = 1;\n}", "A a = 1;", "ends in a message"),
        "field outside": ("package p;", "package p;\nuint64 n = 1;", "good.proto:3"),
        "late package": ("package p;\nmessage A {", "message A {\n}\npackage p;", "good.proto:4"),
    }.values(),
)
def test_a_proto_file_beyond_the_part_is_refused(old, new, reason):
    assert old in GOOD
    with pytest.raises(ValueError, match=reason):
        proto.message_classes("good.proto", GOOD.replace(old, new, 1))
