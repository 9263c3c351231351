"""Bodies and frames off a socket: nothing that was cut, bent or added passes for a snapshot."""

from __future__ import annotations

import os
import socket
import struct

import pytest

from snapstore import _fastpipe
from snapstore.errors import SnapshotCorrupt, SnapshotTooLarge, SnapshotTruncated

SIZE = 4096
REFUSALS = (SnapshotCorrupt, SnapshotTooLarge)  # SnapshotTruncated is a SnapshotCorrupt.


@pytest.fixture
def make_body():
    """Makes a Body of what a peer sent before it left, part of it read along with the head."""
    opened = []

    def make(wire, length=None, kept=0):
        near, far = socket.socketpair()
        opened.append(near)
        far.sendall(wire[kept:])
        far.close()
        return _fastpipe.Body(near.fileno(), wire[:kept], length)

    yield make
    for near in opened:
        near.close()


def read_all(body, size=100):
    pieces, buffer = [], bytearray(size)
    while count := body.readinto(buffer):
        pieces.append(bytes(buffer[:count]))
    return b"".join(pieces)


class TestBody:
    @pytest.mark.parametrize("kept", [0, 3, 5, 9])
    def test_a_length_ends_the_body_and_the_rest_is_kept(self, make_body, kept):
        body = make_body(b"hellonext", 5, kept)
        assert not body.ended
        assert read_all(body) == b"hello"
        assert body.ended
        assert body.leftover == b"hellonext"[5:kept]
        assert body.readinto(bytearray(1)) == 0

    def test_an_empty_buffer_is_not_an_end(self, make_body):
        body = make_body(b"hello", 5)
        assert body.readinto(bytearray()) == 0
        assert not body.ended
        assert read_all(body) == b"hello"

    @pytest.mark.parametrize("buffer_size", [1, 4, 100])
    @pytest.mark.parametrize("kept", [0, 1, 8, 40])
    def test_chunks_give_their_bytes_and_keep_what_follows(self, make_body, kept, buffer_size):
        wire = b"5\r\nhello\r\n1;name=value\r\n,\r\nA\r\n 012345678\r\n0\r\nTrailer: x\r\n\r\nnext"
        body = make_body(wire, kept=kept)
        assert read_all(body, buffer_size) == b"hello, 012345678"
        assert body.ended
        assert body.leftover == b"next"

    @pytest.mark.parametrize(
        "wire",
        [
            b"5\nhello\r\n0\r\n\r\n",  # A line that ends in LF alone.
            b"5\r\nhello\n0\r\n\r\n",
            b"5\rx\nhello\r\n0\r\n\r\n",
            b"\r\nhello\r\n0\r\n\r\n",  # No digits.
            b";name\r\nhello\r\n0\r\n\r\n",
            b" 5\r\nhello\r\n0\r\n\r\n",
            b"+5\r\nhello\r\n0\r\n\r\n",
            b"0x5\r\nhello\r\n0\r\n\r\n",
            b"5 \r\nhello\r\n0\r\n\r\n",
            b"5\0;\r\nhello\r\n0\r\n\r\n",  # Ends for a C string, and not for the next reader.
            b"0" * 16 + b"5\r\nhello\r\n0\r\n\r\n",  # 17 digits.
            b"f" * 16 + b"\r\nhello\r\n0\r\n\r\n",
            b"5;" + b"x" * 300 + b"\r\nhello\r\n0\r\n\r\n",
            b"5\r\nhelloX\r\n0\r\n\r\n",  # More bytes than were announced.
            b"5\r\nhello\r\n0\r\n" + b"Trailer: x\r\n" * 64 + b"\r\n",
        ],
    )
    def test_what_another_server_might_read_otherwise_is_refused(self, make_body, wire):
        with pytest.raises(SnapshotCorrupt) as caught:
            read_all(make_body(wire))
        assert type(caught.value) is SnapshotCorrupt

    def test_a_peer_that_leaves_is_seen_at_every_byte(self, make_body):
        wire = b"5\r\nhello\r\n3\r\n...\r\n0\r\nTrailer: x\r\n\r\n"
        for length in range(len(wire)):
            with pytest.raises(SnapshotTruncated):
                read_all(make_body(wire[:length], kept=length // 2))
        for length in range(5):
            with pytest.raises(SnapshotTruncated):
                read_all(make_body(b"hello"[:length], 5))

    def test_what_came_with_the_head_is_bounded(self, make_body):
        with pytest.raises(ValueError, match="the limit is 65536"):
            make_body(bytes(65537), 1, 65537)


DATA = os.urandom(2 * SIZE + 100)


def frame(data, offset):
    head = struct.pack(">4sIQ", b"SNPC", len(data), offset)
    return head + data + struct.pack(">I", _fastpipe.crc32c(data))


def end(size, digest):
    return struct.pack(">4sIQI", b"SNPE", 0, size, digest)


def framed(data, chunk_size=SIZE):
    """The wire's bytes as written down, apart from the core that is tested."""
    frames = [frame(data[at : at + chunk_size], at) for at in range(0, len(data), chunk_size)]
    return b"".join(frames) + end(len(data), _fastpipe.crc32c(data))


@pytest.fixture
def receive(make_body):
    def receive(wire, size=None, *, save_size=None):
        body = make_body(wire, len(wire), min(len(wire), 65536))
        return _fastpipe.digest(
            _fastpipe.Frames(body, chunk_size=SIZE, size=size), chunk_size=SIZE, size=save_size
        )

    return receive


class TestFrames:
    @pytest.mark.parametrize("size", [0, 1, SIZE - 1, SIZE, SIZE + 1, 2 * SIZE, 2 * SIZE + 100])
    def test_both_ends_speak_what_is_written_down(self, receive, tmp_path, size):
        data = DATA[:size]
        for known in (size, None):
            with (tmp_path / "wire").open("w+b") as wire:
                _fastpipe.send_frames(data, wire.fileno(), size=known, chunk_size=SIZE)
                wire.seek(0)
                assert wire.read() == framed(data)
            for save_size in (size, None):
                copied = receive(framed(data), known, save_size=save_size)
                assert copied[:2] == (size, _fastpipe.crc32c(data))

    def test_http_chunks_carry_one_frame_each(self, make_body, tmp_path):
        with (tmp_path / "wire").open("w+b") as file:
            _fastpipe.send_frames(DATA, file.fileno(), size=None, chunk_size=SIZE, http_chunked=True)
            file.seek(0)
            wire = file.read()
        assert read_all(make_body(wire)) == framed(DATA)
        assert wire.startswith(b"1014\r\nSNPC")
        assert _fastpipe.digest(
            _fastpipe.Frames(make_body(wire + b"next"), chunk_size=SIZE), chunk_size=SIZE
        ).size == len(DATA)

    @pytest.mark.parametrize("size", [len(DATA), None])
    def test_no_truncation_passes(self, receive, size):
        small = framed(DATA[:40])
        for length in range(len(small)):
            with pytest.raises(SnapshotTruncated):
                receive(small[:length], None if size is None else 40)
        wire = framed(DATA)
        edges = {at + near for at in (0, 4116, 8232, len(wire)) for near in range(-24, 24)}
        for length in sorted(edges | set(range(0, len(wire), 97))):
            if 0 <= length < len(wire):
                with pytest.raises(SnapshotTruncated):
                    receive(wire[:length], size)

    @pytest.mark.parametrize("size", [40, None])
    def test_no_flipped_bit_passes(self, receive, size):
        wire = framed(DATA[:40])
        for bit in range(8 * len(wire)):
            bent = bytearray(wire)
            bent[bit // 8] ^= 1 << bit % 8
            with pytest.raises(REFUSALS):
                receive(bytes(bent), size)

    @pytest.mark.parametrize("chunk", [0, 1, 2])
    def test_a_bad_chunk_is_named(self, receive, chunk):
        bent = bytearray(framed(DATA))
        bent[chunk * (SIZE + 20) + 50] ^= 1
        with pytest.raises(SnapshotCorrupt, match=f"digest of chunk {chunk} ") as caught:
            receive(bytes(bent), len(DATA))
        assert caught.value.chunk == chunk

    @pytest.mark.parametrize("size", [0, SIZE, 2 * SIZE, len(DATA) - 1, len(DATA) + 1, 3 * SIZE])
    def test_another_size_than_declared_is_refused(self, receive, size):
        with pytest.raises(REFUSALS):
            receive(framed(DATA), size)
        with pytest.raises(REFUSALS):  # Declared to the save alone.
            receive(framed(DATA), save_size=size)

    def test_more_chunks_than_the_save_was_told_of_are_refused_by_their_heads(self, make_body):
        wire = framed(bytes(8 * SIZE), SIZE)
        frames = _fastpipe.Frames(make_body(wire, len(wire)), chunk_size=SIZE)
        with pytest.raises(SnapshotTooLarge):
            _fastpipe.digest(frames, chunk_size=SIZE, size=SIZE)

    @pytest.mark.parametrize(
        ("wire", "size"),
        [
            (framed(DATA) + b"x", len(DATA)),  # Bytes after the end.
            (framed(DATA) + framed(DATA), len(DATA)),
            (framed(DATA) + b"x", None),
            (end(0, 0), len(DATA)),  # The end alone.
            (end(len(DATA), _fastpipe.crc32c(DATA)), len(DATA)),
            (frame(DATA[:100], 0) + frame(DATA[100:200], 100) + end(200, _fastpipe.crc32c(DATA[:200])), None),
            (frame(DATA[:SIZE], 0) + frame(DATA[:SIZE], 0) + end(SIZE, 0), None),
            (frame(DATA[:SIZE], 1) + end(SIZE, 0), None),
            (frame(b"", 0) + end(0, 0), None),
            (framed(DATA, 2 * SIZE), None),  # Chunks longer than was offered.
            (framed(DATA)[:-4] + bytes(4), None),  # The digest of the whole.
        ],
    )
    def test_frames_that_are_not_as_agreed_are_refused(self, receive, wire, size):
        with pytest.raises(REFUSALS):
            receive(wire, size)

    def test_frames_are_read_with_their_own_chunk_size_only(self, make_body, tmp_path):
        frames = _fastpipe.Frames(make_body(framed(DATA), None), chunk_size=2 * SIZE)
        with pytest.raises(ValueError, match="own chunk_size of 8192"):
            _fastpipe.digest(frames, chunk_size=SIZE)
        with (tmp_path / "target").open("wb") as target:
            with pytest.raises(ValueError, match="own chunk_size"):
                _fastpipe.send(frames, target.fileno())
            with pytest.raises(ValueError, match="own chunk_size"):
                _fastpipe.send_frames(frames, target.fileno(), size=None, chunk_size=2 * SIZE)
