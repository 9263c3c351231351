"""Peers whose heads are sound and whose bodies lie: every field of each frame, in every way, in a table.

Each meets a real server; a good push goes on beside it. Heads that lie are test_hostile_heads.py's.
"""

from __future__ import annotations

import json
import logging
import os
import struct
import zlib

import pytest

from bystander import assert_one_line, heard_of, hostile_lines, met, statuses, undisturbed
from nodes import UNIT, RawPeer, frames, put_head, wait_until
from snapstore import _fastpipe

pytestmark = pytest.mark.usefixtures("nothing_lost")

#: Two chunks, the second a short one.
CONTENT = os.urandom(UNIT + 13)
FIRST, SECOND = CONTENT[:UNIT], CONTENT[UNIT:]

#: Four chunks, the last a short one.
LONGER = FIRST + FIRST[::-1] + FIRST[1:] + CONTENT[:14]

GET = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"

crc = _fastpipe.crc32c_portable


def chunk(data=FIRST, offset=0, *, magic=b"SNPC", length=None, digest=None):
    """A frame with `data`, its fields as told."""
    head = struct.pack(">4sIQ", magic, len(data) if length is None else length, offset)
    return head + data + struct.pack(">I", crc(data) if digest is None else digest)


def kept(data=FIRST, offset=0, *, length=None, digest=None):
    """A frame that stands for a chunk which the other side has, its fields as told."""
    foot = struct.pack(">I", crc(data) if digest is None else digest)
    return chunk(data, offset, magic=b"SNPK", length=length)[:16] + foot


def end(size=None, digest=None, *, length=0):
    """The closing frame, its fields as told."""
    size = len(CONTENT) if size is None else size
    return struct.pack(">4sIQI", b"SNPE", length, size, crc(CONTENT) if digest is None else digest)


def lied_frames():
    """(name, body): every field of every frame, each lied about in every way that fits in it."""
    second, last = chunk(SECOND, UNIT), end()
    for name, length in {
        "0": 0, "short": UNIT - 1, "long": UNIT + 1, "of both": len(CONTENT), "2^31": 2**31,
        "2^32-1": 2**32 - 1,
    }.items():  # fmt: skip
        yield f"chunk length {name}", chunk(length=length) + second + last
        yield f"end length {name}", chunk() + second + end(length=length or 1)
    for length in (0, len(SECOND) - 1, len(SECOND) + 1, UNIT, 2**32 - 1):
        yield f"last chunk's length {length}", chunk() + chunk(SECOND, UNIT, length=length) + last
    for name, offset in {
        "1": 1, "short": UNIT - 1, "long": UNIT + 1, "2^32": 2**32, "2^63": 2**63, "2^64-1": 2**64 - 1,
        "2^64 less the chunk": 2**64 - UNIT,
    }.items():  # fmt: skip
        yield f"first offset {name}", chunk(offset=offset) + second + last
        yield f"second offset {name}", chunk() + chunk(SECOND, offset) + last
        yield f"end size {name}", chunk() + second + end(offset)
    yield "second offset 0", chunk() + chunk(SECOND, 0) + last
    yield "end size 0", chunk() + second + end(0)
    for name, digest in {
        "0": 0, "all ones": 2**32 - 1, "of CRC-32": zlib.crc32(FIRST), "turned": crc(FIRST) ^ 1,
        "of the other chunk": crc(SECOND), "of the whole": crc(CONTENT),
        "other byte order": int.from_bytes(crc(FIRST).to_bytes(4, "big"), "little"),
    }.items():  # fmt: skip
        yield f"chunk digest {name}", chunk(digest=digest) + second + last
        yield f"whole digest {name}", chunk() + second + end(digest=digest if digest != crc(CONTENT) else 1)
    for name, body in {
        "swapped": second + chunk() + last,
        "repeated": chunk() + chunk() + second + last,
        "repeated at the next offset": chunk() + chunk(FIRST, UNIT) + last,
        "the second left out": chunk() + last,
        "the first left out": second + last,
        "no chunk": last,
        "an empty chunk": chunk(b"", 0) + chunk() + second + last,
        "an empty chunk last": chunk() + second + chunk(b"", len(CONTENT)) + last,
        "a short chunk first": chunk(CONTENT[:13]) + chunk(CONTENT[13:], 13) + last,
        "one chunk too large": chunk(CONTENT) + last,
        "end first": last + chunk() + second,
        "end twice": chunk() + second + last + last,
        "no end": chunk() + second,
        "the whole twice": (chunk() + second + last) * 2,
        "a byte after the end": chunk() + second + last + b"\0",
        "bytes between": chunk() + b"\0" + second + last,
        "another magic": chunk(magic=b"SNPX") + second + last,
        "small letters": chunk(magic=b"snpc") + second + last,
        "data that was not announced": chunk(b"engine", magic=b"SNPD") + chunk() + second + last,
        "a kept chunk, where none was kept": kept() + second + last,
        "a kept chunk with its bytes": chunk(magic=b"SNPK") + second + last,
        "a kept chunk behind one that was sent": chunk() + kept(SECOND, UNIT) + last,
        "nothing but kept chunks": kept() + kept(SECOND, UNIT) + last,
        "little endian": struct.pack("<4sIQ", b"SNPC", UNIT, 0) + chunk()[16:] + second + last,
        "no frames": CONTENT,
        "zeros": bytes(2 * UNIT),
        "an HTTP request": GET * 100,
    }.items():  # fmt: skip
        yield name, body


def lied_data():
    """(name, frame): the frame of a meta's data of 6 bytes, in every way wrong."""
    for name, length in {"0": 0, "short": 5, "long": 7, "2^32-1": 2**32 - 1}.items():
        yield f"data length {name}", chunk(b"engine", magic=b"SNPD", length=length)
    for name, offset in {"1": 1, "2^63": 2**63, "2^64-1": 2**64 - 1}.items():
        yield f"data offset {name}", chunk(b"engine", offset, magic=b"SNPD")
    yield "data digest", chunk(b"engine", magic=b"SNPD", digest=0)
    yield "data magic", chunk(b"engine")
    yield "no data", b""
    yield "data twice", chunk(b"engine", magic=b"SNPD") * 2


def pushes(size_known):
    """(name, what is said): the bodies above behind an honest head, with a length or in HTTP chunks."""
    how = "sized" if size_known else "unsized"
    sound = frames(CONTENT)
    bodies = {name: (body, None) for name, body in lied_frames()}
    bodies |= {name: (frame + sound, "6") for name, frame in lied_data()}
    for name, (body, data_size) in bodies.items():
        changes = {"Snapstore_Data_Size": data_size}
        if size_known and not body.startswith(sound):  # What follows a sound body is another request.
            honest = len(sound) + (26 if data_size else 0)
            yield (
                f"{name}, {how}",
                put_head(CONTENT, expect=False, Content_Length=str(honest), **changes) + body,
            )
        changes |= {"Snapstore_Size": None}
        if size_known:
            named = put_head(CONTENT, expect=False, Content_Length=str(len(body)), **changes)
            yield f"{name}, length alone", named + body
        else:
            changes |= {"Content_Length": None, "Transfer_Encoding": "chunked"}
            coded = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if body else b"0\r\n\r\n"
            yield f"{name}, {how}", put_head(CONTENT, expect=False, **changes) + coded


BODIES = [*pushes(True), *pushes(False)]


@pytest.mark.parametrize("said", [pytest.param(said, id=name) for name, said in BODIES])
def test_a_hostile_body_is_refused_with_one_line_and_leaves_nothing(follower, caplog, said):
    caplog.set_level(logging.INFO)
    heard = heard_of(follower, said)
    (status,) = statuses(heard)
    assert status in (413, 422)
    assert json.loads(heard.partition(b"\r\n\r\n")[2])["error"]
    follower.server.close()
    assert_one_line(caplog, "refused")
    met("bodies")


def test_the_table_names_each_peer_once():
    names = [name for name, _ in BODIES]
    assert sorted(set(names)) == sorted(names)
    print(f"{len(names)} hostile bodies")


def test_the_bodies_are_refused_for_their_lie_alone(follower):
    """What the table bends is sound when it is not bent."""
    sound = chunk() + chunk(SECOND, UNIT) + end()
    assert sound == frames(CONTENT)
    data = chunk(b"engine", magic=b"SNPD")
    length = str(len(data + sound))
    with RawPeer(follower.url) as peer:
        head = put_head(CONTENT, expect=False, Content_Length=length, Snapstore_Data_Size="6")
        peer.say(head, data, sound)
        assert peer.hear()[0] == 201
    assert follower.directory.stat(7).meta.data == b"engine"


def lied_kept():
    """(name, body): lies about the two chunks of LONGER that are kept of an attempt before."""
    pieces = [LONGER[at : at + UNIT] for at in range(0, len(LONGER), UNIT)]
    sent = [chunk(piece, UNIT * number) for number, piece in enumerate(pieces)]
    had = [kept(piece, UNIT * number) for number, piece in enumerate(pieces)]
    last = end(len(LONGER), crc(LONGER))
    yield "more than was kept", b"".join(had[:3] + sent[3:]) + last
    yield "all of it", b"".join(had) + last
    yield "behind one that was sent", b"".join([sent[0], had[1], *sent[2:]]) + last
    yield "swapped", b"".join([had[1], had[0], *sent[2:]]) + last
    yield "twice the first", b"".join([had[0], had[0], *sent[1:]]) + last
    yield "half a chunk", kept(pieces[0][:100]) + b"".join(sent[1:]) + last
    yield "two chunks in one", kept(LONGER[: 2 * UNIT]) + b"".join(sent[2:]) + last
    yield "an empty one", kept(b"") + b"".join(sent) + last
    yield "of another offset", kept(pieces[0], UNIT) + b"".join(sent[1:]) + last
    yield "with another digest of the whole", b"".join(had[:2] + sent[2:]) + end(len(LONGER), 1)
    yield "with the digest of other bytes", kept(digest=1) + had[1] + b"".join(sent[2:]) + last
    yield "with other bytes behind", b"".join(had[:2]) + chunk(pieces[0], 2 * UNIT) + sent[3] + last


@pytest.mark.parametrize("body", [pytest.param(body, id=name) for name, body in lied_kept()])
def test_a_lie_about_what_was_kept_is_refused_and_the_truth_still_taken(follower, caplog, body):
    """The first attempt is honest, and breaks off behind two chunks; only the second one lies."""
    caplog.set_level(logging.INFO)
    with RawPeer(follower.url) as peer:
        peer.say(put_head(LONGER))
        peer.hear_continue()
        peer.say(frames(LONGER)[: 2 * (UNIT + 20)])
    wait_until(lambda: hostile_lines(caplog))
    head = put_head(LONGER, Content_Length=None, Transfer_Encoding="chunked")
    with undisturbed(follower):
        caplog.clear()
        with RawPeer(follower.url) as peer:
            peer.say(head)
            assert peer.socket.recv(4096) == b"HTTP/1.1 100 Continue\r\nSnapstore-Offset: 8192\r\n\r\n"
            peer.say(b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))
            peer.end()
            (status,) = statuses(peer.hear_all())
        assert status in (413, 416, 422)
        assert_one_line(caplog, "refused")
    with RawPeer(follower.url) as peer:
        peer.say(put_head(LONGER, expect=False), frames(LONGER))
        assert peer.hear()[0] == 201
    assert follower.directory.verify(7).path.read_bytes() == LONGER
    met("kept prefixes")
