"""Heads that lie, that can be read in two ways, or that are none: each refused, in a table.

Every peer says its piece and ends its side; beside it a good push is under way. Bodies and behaviour
are test_hostile_peers.py's.
"""

from __future__ import annotations

import json
import logging
import struct

import pytest

from bystander import assert_one_line, met, statuses, undisturbed
from nodes import UNIT, RawPeer, frames, put_head
from snapstore.wire import HEAD_SIZE_MAX

pytestmark = pytest.mark.usefixtures("nothing_lost")

#: One chunk and a closing frame.
SMALL = b"snapshot"
BODY = frames(SMALL)

GET = b"GET /healthz HTTP/1.1\r\nHost: x\r\n"
UNSIZED = {"Content_Length": None, "Snapstore_Size": None}

WIDE = {"2^63": 2**63, "2^64-1": 2**64 - 1, "2^64": 2**64}


def put(lines=b"", body=BODY, **changes):
    """A push whose head has `lines` more, and `changes` of nodes.put_head."""
    head = put_head(SMALL, expect=False, **changes)
    return head.removesuffix(b"\r\n") + lines + b"\r\n" + body


def chunked(body):
    return b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)


def odd_numbers(true):
    """Texts in the place of the number `true` that are no number to us, or another one."""
    return {
        **{name: str(number) for name, number in WIDE.items()},
        "short": str(true - 1),
        "long": str(true + 1),
        "negative": f"-{true}",
        "signed": f"+{true}",
        "spaced": f"{true} {true}",
        "hex": hex(true),
        "exponent": f"{true}e0",
        "point": f"{true}.0",
        "grouped": "_".join(str(true)) if true > 9 else f"0_{true}",
        "superscript": "\xb2",
        "listed": f"{true}, {true + 1}",
        "quoted": f'"{true}"',
        "empty": "",
        "5000 digits": "9" * 5000,
    }


def lied_numbers():
    """(name, what is said, status): every number of the head, each lied about in every way."""
    fields = {
        "Content_Length": len(BODY),
        "Snapstore_Size": len(SMALL),
        "Snapstore_Chunk_Size": UNIT,
        "Snapstore_Data_Size": 0,
        "Snapstore_Term": 3,
    }
    for field, true in fields.items():
        for name, text in odd_numbers(true).items():
            status = 400
            if field == "Snapstore_Term" and name in ("2^63", "2^64-1", "short", "long"):
                continue  # Another term: true or not, it is the leader's to say.
            if field == "Snapstore_Data_Size" and name == "short":
                continue  # -1, which "negative" is, too.
            yield f"{field} {name}", put(**{field: text}), status
    for field in ("Content_Length", "Snapstore_Size", "Snapstore_Chunk_Size"):
        yield f"{field} 0", put(**{field: "0"}), 400
    # Lies that agree with each other: only the body contradicts them.
    for size in (0, len(SMALL) - 1, len(SMALL) + 1, UNIT, UNIT + 1):
        length = len(frames(bytes(size)))
        yield f"sizes of {size}", put(Snapstore_Size=str(size), Content_Length=str(length)), (413, 422)
    for size in (2**45, 2**62):
        length = size + 20 * (size // UNIT + 1)
        claim = {"Snapstore_Size": str(size), "Content_Length": str(length)}
        yield f"sizes of {size}", put(**claim), (400, 413, 507)
    for length in (0, 1, len(BODY) - 1, len(BODY) + 1, 2**40, 2**62):
        yield f"length of {length}", put(Snapstore_Size=None, Content_Length=str(length)), 422
    for unit in (UNIT * 2, UNIT * 256):
        long = frames(bytes(UNIT + 1))  # Two chunks, where one is as large as was offered.
        claim = {"Snapstore_Chunk_Size": str(unit), "Content_Length": str(len(long)), "Snapstore_Size": None}
        yield f"chunks of {unit}", put(body=long, **claim), 422
    data = struct.pack(">4sIQ", b"SNPD", 6, 0)
    for size in (1, 5, 7, 1024 * 1024):
        claim = {"Snapstore_Data_Size": str(size), **UNSIZED, "Transfer_Encoding": "chunked"}
        yield f"data of {size}", put(body=chunked(data + b"engine" + bytes(4) + BODY), **claim), 422


SMUGGLED = b"GET /v1/snapshots HTTP/1.1\r\nHost: x\r\n\r\n"


def two_ways():
    """(name, what is said, status): heads that two readers may understand differently."""
    coding = {**UNSIZED, "Transfer_Encoding": "chunked"}
    length = b"%d" % len(BODY)
    for name, lines in {
        "both lengths": b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        "both lengths turned": b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
        "two lengths": b"Content-Length: " + length + b"\r\nContent-Length: 6\r\n",
        "two lengths in one": b"Content-Length: " + length + b", 6\r\n",
        "length behind a tab and a space before its colon": b"Content-Length : " + length + b"\r\n",
        "length folded": b"Content-Length:\r\n " + length + b"\r\n",
        "coding folded": b"Transfer-Encoding:\r\n chunked\r\n",
        "coding folded by a tab": b"Transfer-Encoding:\r\n\tchunked\r\n",
        "anything folded": b"X: 1\r\n 2\r\n",
        "space before a colon": b"Transfer-Encoding : chunked\r\n",
        "tab before a colon": b"Transfer-Encoding\t: chunked\r\n",
        "no colon": b"Transfer-Encoding\r\n",
        "no name": b": chunked\r\n",
        "NUL in a name": b"Transfer\0-Encoding: chunked\r\n",
        "NUL in a value": b"X: a\0b\r\n",
        "bare CR in a value": b"X: a\rTransfer-Encoding: chunked\r\n",
        "bare CR before a line's end": b"X: a\r\r\n",
        "bare LF": b"X: a\nTransfer-Encoding: chunked\r\n",
        "bare LF at the end": b"X: a\r\n\n",
        "vertical tab in a value": b"Transfer-Encoding: \x0bchunked\r\n",
        "form feed in a value": b"Transfer-Encoding: chunked\x0c\r\n",
        "name in latin-1": b"Transfer-Encod\xefng: chunked\r\n",
        "term twice": b"Snapstore-Term: 4\r\n",
        "term twice, the same": b"Snapstore-Term: 3\r\n",
        "size twice": b"Snapstore-Size: 1\r\n" * 2,
        "cluster twice": b"Snapstore-Cluster: a\r\n" * 2,
        "expect folded": b"Expect:\r\n 100-continue\r\n",
    }.items():
        yield name, put(lines, **UNSIZED), 400
    for name, value in {
        "identity": "identity",
        "chunked, identity": "chunked, identity",
        "identity, chunked": "identity, chunked",
        "gzip, chunked": "gzip, chunked",
        "xchunked": "xchunked",
        "chunkedx": "chunkedx",
        "quoted": '"chunked"',
        "parameter": "chunked;q=1",
        "comma": "chunked,",
        "twice": "chunked, chunked",
    }.items():
        yield f"coding {name}", put(body=chunked(BODY), **(coding | {"Transfer_Encoding": value})), (400, 501)
    for name, size in {
        "empty": b"",
        "negative": b"-%x" % len(BODY),
        "signed": b"+%x" % len(BODY),
        "0x": b"0x%x" % len(BODY),
        "space before": b" %x" % len(BODY),
        "space behind": b"%x " % len(BODY),
        "underscore": b"0_%x" % len(BODY),
        "not hex": b"g",
        "short": b"%x" % (len(BODY) - 1),
        "long": b"%x" % (len(BODY) + 1),
        "none": b"0",
        "2^60": b"%x" % 2**60,
        "2^63": b"%x" % 2**63,
        "2^64-1": b"%x" % (2**64 - 1),
        "2^64": b"%x" % 2**64,
        "2^64 and the length": b"1%016x" % len(BODY),
        "17 digits": b"0" * 15 + b"%x" % len(BODY),
        "endless digits": b"0" * 5000,
        "endless extension": b"%x;" % len(BODY) + b"x" * 5000,
    }.items():
        yield f"chunk size {name}", put(body=size + b"\r\n" + BODY + b"\r\n0\r\n\r\n", **coding), (413, 422)
    for name, body in {
        "chunk's line ends in LF": chunked(BODY).replace(b"\r\n", b"\n", 1),
        "chunk's line ends in CR": chunked(BODY).replace(b"\r\n", b"\r", 1),
        "chunk without its end": b"%x\r\n%b0\r\n\r\n" % (len(BODY), BODY),
        "chunk with more than its size": b"%x\r\n%bX\r\n0\r\n\r\n" % (len(BODY), BODY),
        "no last chunk": b"%x\r\n%b\r\n" % (len(BODY), BODY),
        "trailer without its end": b"%x\r\n%b\r\n0\r\nX: y\r\n" % (len(BODY), BODY),
        "endless trailer": b"%x\r\n%b\r\n0\r\n" % (len(BODY), BODY) + b"X: y\r\n" * 5000,
        "bytes after the closing frame": chunked(BODY + b"x"),
        "another body in the same coding": chunked(BODY + BODY),
    }.items():
        yield name, put(body=body, **coding), 422


def no_heads():
    """(name, what is said, status): too long, another protocol, or none; None for no answer at all."""
    yield "one line too long", GET + b"X: " + b"x" * 2 * HEAD_SIZE_MAX + b"\r\n\r\n", 431
    yield "target too long", b"GET /" + b"x" * 2 * HEAD_SIZE_MAX + b" HTTP/1.1\r\nHost: x\r\n\r\n", 431
    yield "method too long", b"G" * 2 * HEAD_SIZE_MAX, 431
    yield "too many headers", GET + b"X: y\r\n" * (HEAD_SIZE_MAX // 3) + b"\r\n", 431
    yield "no end", GET, 400
    yield "no end, too long", GET + b"X: y\r\n" * HEAD_SIZE_MAX, 431
    for name, said in {
        "HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9),
        "HTTP/2 version": b"GET / HTTP/2.0\r\nHost: x\r\n\r\n",
        "HTTP/3 version": b"GET / HTTP/3\r\nHost: x\r\n\r\n",
        "HTTP/0.9": b"GET /\r\n\r\n",
        "HTTP/1.1 in small letters": b"GET / http/1.1\r\nHost: x\r\n\r\n",
        "no version": b"GET / \r\nHost: x\r\n\r\n",
        "two spaces": b"GET  / HTTP/1.1\r\nHost: x\r\n\r\n",
        "tab": b"GET\t/\tHTTP/1.1\r\nHost: x\r\n\r\n",
        "space in the target": b"GET /v1 /snapshots HTTP/1.1\r\nHost: x\r\n\r\n",
        "NUL in the target": b"GET /\0 HTTP/1.1\r\nHost: x\r\n\r\n",
        "latin-1 in the target": b"GET /\xe4 HTTP/1.1\r\nHost: x\r\n\r\n",
        "method in brackets": b"(GET) / HTTP/1.1\r\nHost: x\r\n\r\n",
        "no Host": b"GET /healthz HTTP/1.1\r\n\r\n",
        "two Hosts": b"GET /healthz HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
        "only lines of LF": b"GET /healthz HTTP/1.1\nHost: x\n\n",
        "empty line first": b"\r\n" + GET + b"\r\n",
        "space first": b" " + GET + b"\r\n",
        "header before the request": b"Host: x\r\n" + GET + b"\r\n",
        "an answer": b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        "TLS hello": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256)) * 2,
        "SSH": b"SSH-2.0-OpenSSH_9.2p1\r\n",
        "SMTP": b"EHLO example.org\r\n\r\n",
        "our frames": BODY,
        "etcd's frame": struct.pack(">Q", 2**63) + bytes(100),
        "zeros": bytes(5000),
        "ones": b"\xff" * 5000,
        "a single byte": b"P",
        "JSON": json.dumps({"index": 7}).encode() + b"\r\n\r\n",
    }.items():
        yield name, said, (400, 431, 505)
    # What is no number at all says so in few words.
    yield "conf state of 60 KiB", put(Snapstore_Conf_State="x" * 60_000), 400
    yield "term of 60 KiB", put(Snapstore_Term="9" * 60_000), 400
    yield "method of 60 KiB", b"G" * 60_000 + b" / HTTP/1.1\r\nHost: x\r\n\r\n", 501
    yield "target of 60 KiB", b"GET /" + b"x" * 60_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 414
    yield "line of 60 KiB that is no header", GET + b"x" * 60_000 + b"\r\n\r\n", 400
    yield "protocol of 60 KiB", put(Snapstore_Protocol="x" * 60_000), 400
    yield "escapes in a header", put(Snapstore_Term="\x1b[2J"), 400


HEADS = [*lied_numbers(), *two_ways(), *no_heads()]


@pytest.mark.parametrize(
    ("said", "wanted"), [pytest.param(said, wanted, id=name) for name, said, wanted in HEADS]
)
def test_a_hostile_head_is_refused_with_one_line_and_leaves_nothing(follower, caplog, said, wanted):
    caplog.set_level(logging.INFO)
    with undisturbed(follower):
        with RawPeer(follower.url) as peer:
            peer.say(said)
            peer.end()
            heard = peer.hear_all()
        (status,) = statuses(heard)
        assert status in (wanted if isinstance(wanted, tuple) else (wanted,))
        head, _, words = heard.partition(b"\r\n\r\n")
        assert b"Connection: close" in head
        assert json.loads(words)["error"]
    follower.server.close()
    assert_one_line(caplog, "refused")
    met("heads")


def test_the_table_names_each_peer_once():
    names = [name for name, _, _ in HEADS]
    assert sorted(set(names)) == sorted(names)
    print(f"{len(names)} hostile heads")


@pytest.mark.parametrize(
    "lines",
    [
        b"Content-Length: %d\r\n" % len(BODY) * 2,
        b"Content-Length: %d, %d\r\n" % (len(BODY), len(BODY)),
        b"content-LENGTH:%d\t \r\n" % len(BODY),
        b"Transfer-Encoding: CHUNKED\r\n",
    ],
)
def test_what_all_readers_understand_alike_is_taken(follower, lines):
    """The same length twice is one length (RFC 9110, 8.6), and names have no case."""
    with RawPeer(follower.url) as peer:
        peer.say(put(lines, body=chunked(BODY) if b"Transfer" in lines else BODY, **UNSIZED))
        assert peer.hear()[0] == 201


@pytest.mark.parametrize("smuggle", ["behind a refused head", "behind a refused body"])
def test_what_comes_behind_a_refusal_is_never_answered(follower, smuggle):
    """Where the two sides may differ on where a message ends, no second message is read."""
    coding = {**UNSIZED, "Transfer_Encoding": "chunked"}
    said = put(b"Content-Length: 4\r\n", **coding) if "head" in smuggle else put(body=b"5;\n", **coding)
    with RawPeer(follower.url) as peer:
        peer.say(said, SMUGGLED, SMUGGLED)
        peer.end()
        heard = peer.hear_all()
    assert len(statuses(heard)) == 1
    assert b'"snapshots"' not in heard
