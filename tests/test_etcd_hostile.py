"""What is no snapshot from a leader: etcd's refusals in etcd's order and words, and nothing saved."""

import contextlib
import re
import socket
import struct
import tracemalloc

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from etcd_peers import BODY, DB, Member, chunked, head, prefixed, snapshot, status_of
from nodes import wait_until
from snapstore.etcd import messages
from snapstore.etcd.messages import SNAPSHOT_MESSAGE_SIZE_MAX
from snapstore.etcd.receiver import MESSAGE_SIZE_MAX, RETRY_DELAY_S
from snapstore.transfer import Direction

INCOMPATIBLE = (412, "incompatible version\n")
MISMATCH = (412, "cluster ID mismatch\n")


@pytest.fixture
def member(nothing_lost, tmp_path):
    with Member(tmp_path / "member") as member:
        yield member


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"X_Server_Version": None}, INCOMPATIBLE),
        ({"X_Server_Version": ""}, INCOMPATIBLE),
        ({"X_Server_Version": "2.3.8"}, INCOMPATIBLE),
        ({"X_Server_Version": "3.0.0-alpha+git"}, (204, "")),
        ({"X_Server_Version": "99.0.0"}, (204, "")),
        ({"X_Min_Cluster_Version": None}, (204, "")),
        ({"X_Min_Cluster_Version": "3.8.99"}, (204, "")),
        ({"X_Min_Cluster_Version": "3.9.0"}, INCOMPATIBLE),
        ({"X_Min_Cluster_Version": "4.0.0"}, INCOMPATIBLE),
        ({"X_Etcd_Cluster_Id": None}, MISMATCH),
        ({"X_Etcd_Cluster_Id": "08edc744327887c91"}, MISMATCH),
        ({"X_Etcd_Cluster_Id": "8EDC744327887C91"}, MISMATCH),
        ({"X_Etcd_Cluster_Id": "1"}, MISMATCH),
        ({"X_Etcd_Cluster_Id": "1", "X_Server_Version": None}, INCOMPATIBLE),
        ({"X_Server_From": None}, (204, "")),
        ({"X_Server_From": "no id"}, (204, "")),
        ({"X_Server_From": None, "X_Peerurls": "nonsense"}, (204, "")),
        ({"X_Peerurls": None}, (204, "")),
        ({"X_Peerurls": "https://a:1,unix://b:2,unixs://c:3,http://[::1]:4"}, (204, "")),
        ({"Content_Type": None, "User_Agent": None, "Accept_Encoding": None}, (204, "")),
        ({"Content_Type": "text/plain"}, (204, "")),
    ],
)
def test_headers_missing_or_wrong(member, changes, expected):
    answer = member.put(BODY, **changes)
    assert status_of(answer) == expected
    assert answer[1]["X-Etcd-Cluster-Id"] == "8edc744327887c91"
    if expected[0] != 204:
        assert answer[1]["X-Content-Type-Options"] == "nosniff"
        assert answer[1]["Content-Type"].startswith("text/plain")
        member.assert_nothing_saved()


@pytest.mark.parametrize(
    "changes",
    [
        {"X_Server_Version": "3.4"},
        {"X_Server_Version": "three"},
        {"X_Server_Version": "3.4.23.1"},
        {"X_Min_Cluster_Version": "v3.0.0"},
        {"X_Peerurls": "127.0.0.1:2380"},
        {"X_Peerurls": "http://127.0.0.1:2380/"},
        {"X_Peerurls": "ftp://127.0.0.1:2380"},
        {"X_Peerurls": "http://127.0.0.1"},
        {"X_Peerurls": "http://a:1,,http://b:2"},
        {"X_Peerurls": "http://[::1:2380"},
    ],
)
def test_what_etcd_panics_over_ends_the_line_without_an_answer(member, changes):
    with member.peer() as peer:
        peer.say(head(length=len(BODY), **changes), BODY)
        assert peer.hear_all() == b""
    member.assert_nothing_saved()
    assert member.put(BODY)[0] == 204


def test_another_method(member):
    for method in ("GET", "PUT", "DELETE"):
        with member.peer() as peer:
            # Even before the version: no header of the cluster is given away.
            peer.say(head(method=method, length=0, X_Server_Version=None))
            status, headers, body = peer.hear(method)
        assert (status, headers["Allow"], body) == (405, "POST", b"Method Not Allowed\n")
        assert headers["X-Etcd-Cluster-Id"] is None


def test_a_body_that_nobody_announces_is_none(member):
    with member.peer() as peer:
        peer.say(head(length=0, Content_Length=None), BODY)
        assert status_of(peer.hear("POST")) == decode_failure("EOF")
    member.assert_nothing_saved()


def decode_failure(words):
    return (400, f"failed to decode raft message ({words})\n")


@pytest.mark.parametrize(
    ("body", "expected"),
    {
        "empty": (b"", decode_failure("EOF")),
        "half a prefix": (bytes(5), decode_failure("unexpected EOF")),
        "prefix alone": (struct.pack(">Q", 9), decode_failure("EOF")),
        "half a message": (snapshot()[:-3], decode_failure("unexpected EOF")),
        "no message": (prefixed(b""), (400, "wrong raft message type\n")),
        "a heartbeat": (prefixed(b"\x08\x08") + DB, (400, "wrong raft message type\n")),
        "a little too long": (
            struct.pack(">Q", MESSAGE_SIZE_MAX + 1) + DB,
            decode_failure("rafthttp: error limit exceeded"),
        ),
        "2^63": (struct.pack(">Q", 2**63) + DB, decode_failure("rafthttp: error limit exceeded")),
        "2^64-1": (b"\xff" * 8 + DB, decode_failure("rafthttp: error limit exceeded")),
        "HTTP in HTTP": (b"GET / HTTP/1.1\r\n\r\n" + DB, decode_failure("rafthttp: error limit exceeded")),
    }.values(),
)
def test_a_body_without_its_message(member, body, expected):
    assert status_of(member.put(body)) == expected
    member.assert_nothing_saved()
    assert member.delays_s == []


def test_garbage_for_a_message(member):
    status, text = status_of(member.put(prefixed(b"\xff" * 100) + DB))
    assert status == 400
    assert re.fullmatch(r"failed to decode raft message \(proto: .*\)\n", text)
    member.assert_nothing_saved()


def field(number, content):
    """A field of bytes or of a message."""
    size = len(content)
    septets = [size >> shift & 127 for shift in range(0, max(1, size.bit_length()), 7)]
    return bytes([number << 3 | 2, *(septet | 128 for septet in septets[:-1]), septets[-1]]) + content


@pytest.mark.parametrize("data", [b"", bytes(2**20)])
def test_a_message_that_would_swell_is_none(member, data):
    voters = field(2, field(1, field(1, bytes(100_000))))  # One byte for each.
    beside = f"more than {messages.REST_SIZE_MAX} bytes beside the snapshot's data"
    for message in (
        b"\x08\x07" + field(9, field(1, data) + voters),
        b"\x08\x07" + field(9, voters) + field(9, field(1, data)),
        b"\x08\x07" + field(9, field(1, data)) + field(9, voters),
        b"\x08\x07" + field(9, field(1, data)) + field(7, bytes(100_000)),
    ):
        assert status_of(member.put(prefixed(message) + DB)) == decode_failure(beside)
    member.assert_nothing_saved()


@pytest.fixture
def traced():
    """Counts the memory that Python takes, from before the first thread of a member to after its last.

    Not for a moment less: CPython changes its allocator without a look at threads that begin or end
    meanwhile, and they crash when they call half of the one and half of the other.
    """
    tracemalloc.start()
    yield
    tracemalloc.stop()


def test_memory_is_taken_as_bytes_come(traced, member):
    with member.peer() as peer:
        tracemalloc.reset_peak()
        size = SNAPSHOT_MESSAGE_SIZE_MAX
        peer.say(head(length=size + 8), struct.pack(">Q", size), bytes(1000))
        peer.end()
        assert status_of(peer.hear("POST")) == decode_failure("unexpected EOF")
        assert tracemalloc.get_traced_memory()[1] < 4 * 1024 * 1024
    member.assert_nothing_saved()


@pytest.mark.parametrize(
    ("start", "status", "memory_max"),
    [
        # The message's bytes, and once more while they are looked at.
        (struct.pack(">Q", SNAPSHOT_MESSAGE_SIZE_MAX), b"400", 3 * SNAPSHOT_MESSAGE_SIZE_MAX),
        (snapshot(), b"500", 4 * 2**20),
    ],
    ids=["for a message", "for a database"],
)
def test_a_gibibyte_of_garbage(traced, member, start, status, memory_max):
    block = b"\xff" * 2**20
    with member.peer() as peer:
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        peer.say(head(length=len(start) + 2**30), start)
        with contextlib.suppress(ConnectionError):  # It has heard enough, and hangs up.
            for _ in range(1024):
                peer.say(block)
        answered = peer.hear_all()
        assert tracemalloc.get_traced_memory()[1] - before < memory_max
    # Who speaks on while it is hung up on may lose the answer, but gets no other.
    assert not answered or answered.startswith(b"HTTP/1.1 " + status)
    member.assert_nothing_saved()
    assert member.put(BODY)[0] == 204


# The database, which etcd would take as it comes.


@pytest.mark.parametrize(
    ("db", "reason"),
    {
        "none": (b"", "a bbolt database has more than 0 bytes"),
        "not one": (bytes(len(DB)), "not a bbolt database"),
        "one page": (DB[:4096], "a bbolt database has more than 4096 bytes"),
        "a byte short": (DB[:-1], "the source ended"),
        "a byte long": (DB + b"\0", "the source has more"),
        "with a sha256": (DB + bytes(32), "the source has more"),
        "flipped": (DB[:40] + b"\x01" + DB[41:], "the checksum of bbolt's meta page 0 is wrong"),
        "a page lost": (DB[:4096] + DB[8192:], "not a bbolt database"),
        "SQLite": (b"SQLite format 3\0" + bytes(8192), "not a bbolt database"),
    }.values(),
)
def test_a_broken_database_is_refused(member, db, reason):
    with member.peer() as peer:
        peer.say(head(), chunked(snapshot(), *filter(None, [db[:4096], db[4096:]])))
        in_chunks = peer.hear("POST")
    for status, text in (status_of(member.put(snapshot() + db)), status_of(in_chunks)):
        assert status == 500
        assert text.startswith(f"failed to save KV snapshot ({reason}")
    assert member.delays_s == [RETRY_DELAY_S] * 2
    member.assert_nothing_saved()


def test_a_line_that_breaks_leaves_nothing(member):
    for body in (BODY[:5], BODY[:100], BODY[:5000], BODY[:-4096]):
        with member.peer() as peer:
            peer.say(head(), b"%x\r\n" % len(BODY), body)
            peer.end()
            assert peer.hear_all().startswith(b"HTTP/1.1 400" if len(body) < 100 else b"HTTP/1.1 500")
        member.assert_nothing_saved()
    assert member.put(BODY)[0] == 204


def test_a_line_that_is_reset_leaves_nothing_and_is_not_waited_for(member):
    registry = member.server.registry
    with member.peer() as peer:
        peer.say(head(length=len(BODY)), BODY[:-4096])
        wait_until(lambda: registry.moved()[Direction.IN])
        peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    wait_until(lambda: not registry.in_flight()[Direction.IN])
    assert member.put(BODY)[0] == 204
    assert member.delays_s == []


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, len(snapshot()) + 8192 + 79), st.binary(min_size=1, max_size=9))
def test_damage_to_what_decides_is_answered_and_never_kills(member, start, garbage):
    body = bytearray(BODY)
    body[start : start + len(garbage)] = garbage
    answer = member.put(bytes(body))
    assert answer[0] in (204, 400, 500)
    for index in member.indexes:
        assert member.directory.stat(index).size == len(DB)
        member.directory.set_aside(index, "the next example begins anew")
