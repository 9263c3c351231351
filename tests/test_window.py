"""Several transfers of one image: each byte is read once for those that keep pace, and nobody is held up.

The pace is the test's own: it takes from each transfer's socket so much, in its order.
"""

from __future__ import annotations

import errno
import os
import socket
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snapstore import _fastpipe
from snapstore.errors import PipeClosed

#: As in window.pxi.
BLOCK_SIZE = 256 * 1024
WINDOW_SIZE = 128 * BLOCK_SIZE

#: More than two windows, and not in whole blocks. No block is like another.
SIZE = 5 * WINDOW_SIZE // 2 + 123
DATA = os.urandom(BLOCK_SIZE + SIZE // BLOCK_SIZE + 1)
DATA = b"".join(DATA[number : number + BLOCK_SIZE] for number in range(SIZE // BLOCK_SIZE + 1))[:SIZE]
WAIT_S = 20.0

#: In bytes/s: a block in less than one slice of a wait, and all of it in far longer than the rest takes.
SLOW_RATE = 8 * 2**20

#: What a transfer may have read beyond what was taken from it: a socket's buffers, and a piece in its hands.
AHEAD_SIZE = 8 * BLOCK_SIZE


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("window") / "data"
    path.write_bytes(DATA)
    return path


@pytest.fixture
def image(path):
    with _fastpipe.Image(os.open(path, os.O_RDONLY), SIZE) as image:
        yield image


class Reader:
    """A transfer of `image` into a socket, and what came out of it, where it was taken."""

    def __init__(self, background, image, **options):
        self.progress = _fastpipe.Progress()
        self.taken = bytearray()
        self._theirs, self._ours = socket.socketpair()
        self._theirs.settimeout(WAIT_S)
        self._end = background(self._send, image, options)
        self.take(1)  # So it has begun.

    def _send(self, image, options):
        with self._ours:
            return _fastpipe.send(image, self._ours.fileno(), progress=self.progress, **options)

    def take(self, size):
        """Take so many bytes, fewer at the end; whether there were any."""
        before = len(self.taken)
        while len(self.taken) < before + size:
            piece = self._theirs.recv(before + size - len(self.taken))
            if not piece:
                break
            self.taken += piece
        return len(self.taken) > before

    def finish(self):
        """Take the rest; what the transfer returned or raised."""
        while self.take(BLOCK_SIZE):
            pass
        return self._end.result(WAIT_S)

    def close(self):
        self.progress.cancel()
        self._theirs.close()
        self._end.exception(WAIT_S)


@contextmanager
def reading(background, image, count, **options):
    with ExitStack() as opened:
        readers = []
        for _ in range(count):
            readers.append(Reader(background, image, **options))
            opened.callback(readers[-1].close)
        yield readers


def take_in_turn(*readers, size=SIZE):
    """Take from all in the same steps, until each has had `size` bytes more, or its end."""
    for _ in range(0, size, BLOCK_SIZE):
        for reader in readers:
            reader.take(BLOCK_SIZE)


def test_one_alone_reads_each_byte_once(background, image):
    with reading(background, image, 1) as (reader,):
        assert reader.finish() == SIZE
        assert reader.taken == DATA
    assert image.bytes_read == SIZE


def test_those_that_keep_pace_read_each_byte_once(background, image):
    with reading(background, image, 3) as readers:
        take_in_turn(*readers)
        assert [reader.finish() for reader in readers] == [SIZE] * 3
        assert all(reader.taken == DATA for reader in readers)
    # The first has begun before there were others.
    assert SIZE <= image.bytes_read <= SIZE + AHEAD_SIZE


def test_one_who_comes_later_joins_where_the_window_is(background, image):
    with reading(background, image, 1) as (first,):
        first.take(WINDOW_SIZE // 2)
        with reading(background, image, 1) as (second,):
            take_in_turn(first, second)
            assert [first.finish(), second.finish()] == [SIZE] * 2
            assert first.taken == second.taken == DATA
    assert SIZE <= image.bytes_read <= SIZE + WINDOW_SIZE // 2 + AHEAD_SIZE


def test_one_who_comes_too_late_reads_on_his_own(background, image):
    with reading(background, image, 2) as (first, second):
        take_in_turn(first, second, size=2 * WINDOW_SIZE)
        with reading(background, image, 1) as (third,):
            take_in_turn(first, second, third)
            assert [reader.finish() for reader in (first, second, third)] == [SIZE] * 3
            assert first.taken == second.taken == third.taken == DATA
    # But for what was still there when the others had ended.
    assert 2 * SIZE - WINDOW_SIZE <= image.bytes_read <= 2 * SIZE + AHEAD_SIZE


def test_a_stalled_one_does_not_hold_the_others(background, image):
    with reading(background, image, 3) as (first, second, stalled):
        take_in_turn(first, second)
        assert [first.finish(), second.finish()] == [SIZE] * 2
        assert stalled.finish() == SIZE
        assert first.taken == second.taken == stalled.taken == DATA
    assert SIZE < image.bytes_read <= 2 * SIZE + AHEAD_SIZE


def test_those_who_were_left_behind_share_when_the_first_has_ended(background, image):
    with reading(background, image, 3) as (first, second, third):
        assert first.finish() == SIZE
        take_in_turn(second, third)
        assert second.finish() == third.finish() == SIZE
        assert second.taken == third.taken == DATA
    assert SIZE < image.bytes_read <= 2 * SIZE + AHEAD_SIZE


def test_one_who_lags_is_waited_for_a_moment(background, image):
    """The first would be done with so little at once, if it did not wait: `HOLD_NS` in window.pxi."""
    with reading(background, image, 2) as (first, lagging):
        began_s = time.monotonic()
        first.take(WINDOW_SIZE + AHEAD_SIZE)
        assert time.monotonic() - began_s >= 0.1
        assert first.finish() == lagging.finish() == SIZE


def test_a_slow_one_does_not_hold_the_others(background, image):
    with reading(background, image, 3) as (first, second, slow):
        for _ in range(0, SIZE, 4 * BLOCK_SIZE):
            first.take(4 * BLOCK_SIZE)
            second.take(4 * BLOCK_SIZE)
            slow.take(BLOCK_SIZE)
        assert [first.finish(), second.finish()] == [SIZE] * 2
        assert slow.finish() == SIZE
        assert first.taken == second.taken == slow.taken == DATA
    assert image.bytes_read <= 2 * SIZE + AHEAD_SIZE


def test_a_steady_slow_one_is_left_behind(background, image):
    """He moves on within each wait: what was waited for him counts all the same."""
    with reading(background, image, 1, throttle=_fastpipe.Throttle(SLOW_RATE)) as (slow,):
        end = background(slow.finish)
        assert _fastpipe.digest(image).size == SIZE
        # Had he held that all the way, he would be no more than a window behind.
        assert slow.progress.bytes < SIZE // 2
        slow.progress.cancel()
        with pytest.raises(PipeClosed):
            end.result(WAIT_S)


def test_one_who_was_left_behind_and_stalls_keeps_nobody_apart(background, image):
    with reading(background, image, 4) as (first, second, third, stalled):
        assert first.finish() == SIZE
        take_in_turn(second, third)
        assert second.finish() == third.finish() == SIZE
        assert image.bytes_read <= 2 * SIZE + AHEAD_SIZE
        assert stalled.finish() == SIZE
        assert stalled.taken == DATA


def test_one_who_has_read_his_part_keeps_nobody_apart(background, image):
    part = {"offset": 2 * WINDOW_SIZE, "length": BLOCK_SIZE}
    with reading(background, image, 1, **part) as (done,), reading(background, image, 2) as (first, second):
        take_in_turn(first, second)
        assert first.finish() == second.finish() == SIZE
        assert first.taken == second.taken == DATA
        assert done.finish() == BLOCK_SIZE
    assert image.bytes_read <= SIZE + AHEAD_SIZE


def test_one_who_was_left_behind_is_waited_for_no_more_but_may_come_up(background, image):
    """The first stands still from then on, in the middle; who was behind has all he passes by himself."""
    with reading(background, image, 3) as (first, second, late):
        take_in_turn(first, second, size=WINDOW_SIZE + AHEAD_SIZE)
        apart = image.bytes_read
        take_in_turn(late, size=WINDOW_SIZE)
        before = image.bytes_read
        assert before > apart  # on his own
        take_in_turn(first, second, late)
        assert [reader.finish() for reader in (first, second, late)] == [SIZE] * 3
        assert first.taken == second.taken == late.taken == DATA
        assert image.bytes_read < before + (SIZE - WINDOW_SIZE) + AHEAD_SIZE  # together


def test_a_part_is_read_by_who_wants_a_part(background, image):
    with (
        reading(background, image, 2) as (first, second),
        reading(background, image, 1, offset=WINDOW_SIZE + 77, length=WINDOW_SIZE) as (part,),
    ):
        take_in_turn(first, second, part)
        assert part.finish() == WINDOW_SIZE
        assert part.taken == DATA[WINDOW_SIZE + 77 : 2 * WINDOW_SIZE + 77]
        assert [first.finish(), second.finish()] == [SIZE] * 2
        assert first.taken == second.taken == DATA


def test_closing_ends_all_of_them(background, image):
    with reading(background, image, 3) as readers:
        take_in_turn(*readers, size=WINDOW_SIZE)
        image.close()
        for reader in readers:
            with pytest.raises(PipeClosed):
                reader.finish()


def test_who_is_cancelled_leaves_the_others_alone(background, image):
    with reading(background, image, 3) as (first, second, third):
        take_in_turn(first, second, third, size=WINDOW_SIZE)
        third.progress.cancel()
        with pytest.raises(PipeClosed):
            third.finish()
        take_in_turn(first, second)
        assert [first.finish(), second.finish()] == [SIZE] * 2
        assert first.taken == second.taken == DATA


def test_a_read_that_fails_fails_for_each_who_wants_it(background, path, tmp_path):
    cut = tmp_path / "cut"
    cut.write_bytes(DATA)
    with (
        _fastpipe.Image(os.open(cut, os.O_RDONLY), SIZE) as image,
        reading(background, image, 3) as readers,
    ):
        take_in_turn(*readers, size=BLOCK_SIZE)
        os.truncate(cut, WINDOW_SIZE)
        for reader in readers:
            with pytest.raises(OSError, match=os.strerror(errno.EIO)):
                reader.finish()
            assert reader.taken == DATA[: len(reader.taken)]
            assert len(reader.taken) <= WINDOW_SIZE
        os.truncate(cut, SIZE)
        with open(cut, "r+b") as mended:
            mended.write(DATA)
        with reading(background, image, 2) as readers:
            take_in_turn(*readers)
            assert all(reader.finish() == SIZE and reader.taken == DATA for reader in readers)


@given(data=st.data())
@settings(deadline=None, max_examples=25)
def test_each_has_what_it_asked_for_whatever_the_others_do(path, data):
    """Parts that overlap or not, with a patch; in chunks that are larger or smaller than a block, or bare."""
    size = data.draw(st.integers(1, 6 * BLOCK_SIZE), "size")
    hole = data.draw(st.integers(1, size), "hole")
    spans = st.tuples(st.integers(0, size), st.integers(0, size), st.sampled_from([None, 4096, 2**20]))
    wanted = data.draw(st.lists(spans, min_size=2, max_size=5), "wanted")
    whole = bytes(hole) + DATA[hole:size]
    with (
        _fastpipe.Image(os.open(path, os.O_RDONLY), size, patches=[(0, hole, None)]) as image,
        ThreadPoolExecutor(len(wanted)) as pool,
    ):
        ends = [pool.submit(_moved, image, *span) for span in wanted]
        found = [end.result(WAIT_S) for end in ends]
    for (offset, length, chunk_size), moved in zip(wanted, found, strict=True):
        assert moved == (whole if chunk_size else whole[offset : offset + length])


def _moved(image, offset, length, chunk_size):
    """A part of `image`, or all of it in chunks, as a transfer of it wrote it."""
    with tempfile.TemporaryFile() as target:
        if chunk_size is None:
            _fastpipe.send(image, target.fileno(), offset=offset, length=length)
        else:
            _fastpipe.save(image, target.fileno(), size=image.size, chunk_size=chunk_size)
        target.seek(0)
        return target.read()
