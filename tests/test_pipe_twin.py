"""The pipe against its twin: a queue in plain Python with the same rules.

The machine drives both from one thread with calls that the twin says will not wait; the threaded
test compares what went in with what came out, for random sizes on both sides.
"""

from __future__ import annotations

import itertools
import random
from collections import deque
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from snapstore import _fastpipe
from snapstore.errors import PipeClosed

SIZE = 4096
WAIT_S = 20.0


class Reason(Exception):
    """Why a half was closed."""


class TwinPipe:
    """What the pipe should hold: queued chunks, loans, and the slot that small writes gather in."""

    def __init__(self, chunks):
        self.chunks = chunks
        self.queued = deque()
        self.slots = deque()  # For each slot in order since the oldest in use: is it out?
        self.partial = b""
        self.first = 0  # The number of the slot that stands first in `slots`.
        self.reason = None
        self.writer = self.reader = "open"

    @property
    def failure(self):
        return self.reason if self.reason is not None else PipeClosed

    def room(self):
        """How many bytes go in without a wait."""
        free = self.chunks - len(self.slots)
        return free * SIZE - len(self.partial)

    def write(self, data):
        self.partial += data
        while len(self.partial) >= SIZE:
            self.hand_on(self.partial[:SIZE])
            self.partial = self.partial[SIZE:]

    def hand_on(self, data):
        self.queued.append((self.first + len(self.slots), data))
        self.slots.append(True)

    def flush(self):
        if self.partial:
            self.hand_on(self.partial)
            self.partial = b""

    def give_back(self, number):
        self.slots[number - self.first] = False
        while self.slots and not self.slots[0]:
            self.slots.popleft()
            self.first += 1

    def close(self, end, reason):
        if getattr(self, end) != "open":
            return
        if end == "writer" and reason is None and self.partial:
            self.flush()
        setattr(self, end, "failed" if reason is not None else "done")
        self.reason = self.reason if self.reason is not None else reason


def raises_as(twin, call):
    expected = twin.failure
    with pytest.raises(expected if expected is PipeClosed else Reason) as caught:
        call()
    assert expected is PipeClosed or caught.value is expected


class PipeMachine(RuleBasedStateMachine):
    @initialize(chunks=st.integers(1, 4))
    def make(self, chunks):
        self.reader, self.writer = _fastpipe.pipe(chunk_size=SIZE, chunks=chunks)
        self.twin = TwinPipe(chunks)
        self.loans = []  # (number, the chunk, its bytes)
        self.rest = None  # (number, bytes): what readinto left of a chunk
        self.read = 0
        self.made = 0

    def fresh(self, size):
        """Bytes that are at no other place of the stream."""
        self.made += 1
        return random.Random(self.made).randbytes(size)

    def writable(self):
        return self.twin.writer == self.twin.reader == "open"

    def readable(self):
        return self.twin.reader == "open" and self.twin.writer != "failed"

    def has_next(self):
        """Whether a read need not wait: there are bytes, or the end."""
        return self.rest or self.twin.queued or self.twin.writer == "done"

    @rule(share=st.one_of(st.floats(0, 1), st.just(1.0)), small=st.booleans())
    @precondition(lambda self: self.writable())
    def write(self, share, small):
        room = self.twin.room()
        data = self.fresh(min(room, int(share * (100 if small else room))))
        assert self.writer.write(data) == len(data)
        self.twin.write(data)

    @rule()
    @precondition(lambda self: self.writable())
    def flush(self):
        self.writer.flush()
        self.twin.flush()

    @rule(length=st.sampled_from([0, 1, 100, SIZE]))
    @precondition(lambda self: self.writable() and self.twin.room() >= SIZE)
    def fill_in_place(self, length):
        slot = self.writer.reserve()
        self.twin.flush()
        data = self.fresh(length)
        with memoryview(slot) as view:
            view[:length] = data
        self.writer.commit(length)
        if data:
            self.twin.hand_on(data)

    @rule()
    @precondition(lambda self: self.readable() and self.has_next())
    def read_chunk(self):
        chunk = self.reader.read_chunk()
        if self.rest is None and not self.twin.queued:
            assert chunk is None
            return
        number, data = self.rest or self.twin.queued.popleft()
        self.rest = None
        assert chunk.offset == self.read
        assert bytes(chunk) == data
        self.read += len(data)
        self.loans.append((number, chunk, data))

    @rule(size=st.sampled_from([1, 10, SIZE, 2 * SIZE]))
    @precondition(lambda self: self.readable() and self.has_next())
    def readinto(self, size):
        buffer = bytearray(size)
        count = self.reader.readinto(buffer)
        if self.rest is None and not self.twin.queued:
            assert count == 0
            return
        number, data = self.rest or self.twin.queued.popleft()
        assert buffer[:count] == data[:size]
        assert count == min(size, len(data))
        self.read += count
        self.rest = (number, data[count:]) if count < len(data) else None
        if self.rest is None:
            self.twin.give_back(number)

    @rule(data=st.data())
    @precondition(lambda self: self.loans)
    def give_back(self, data):
        number, chunk, content = self.loans.pop(data.draw(st.integers(0, len(self.loans) - 1)))
        assert bytes(chunk) == content
        chunk.release()
        self.twin.give_back(number)

    @rule(end=st.sampled_from(["writer", "reader"]), why=st.sampled_from([None, "a", "b"]))
    @precondition(lambda self: self.made > 5)
    def close(self, end, why):
        reason = None if why is None else Reason(why)
        getattr(self, end).close(reason)
        self.twin.close(end, reason)

    @rule()
    @precondition(lambda self: not self.writable())
    def write_to_a_closed_pipe(self):
        for call in (lambda: self.writer.write(b"x"), self.writer.flush, self.writer.reserve):
            raises_as(self.twin, call)

    @rule()
    @precondition(lambda self: not self.readable() and not self.rest)
    def read_from_a_closed_pipe(self):
        raises_as(self.twin, self.reader.read_chunk)
        raises_as(self.twin, lambda: self.reader.readinto(bytearray(1)))

    @invariant()
    def loans_stand_still(self):
        for _, chunk, content in getattr(self, "loans", ()):
            assert bytes(chunk) == content

    def teardown(self):
        if hasattr(self, "reader"):
            self.reader.close()


PipeMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestPipeMachine = PipeMachine.TestCase


def put_at_random(writer, data, seed):
    """Write all of `data` by a random mix of ways and sizes."""
    choice, at = random.Random(seed), 0
    with writer:
        while at < len(data):
            size = choice.choice([1, 7, 100, SIZE - 1, SIZE, SIZE + 1, 3 * SIZE])
            if choice.random() < 0.3:
                piece = data[at : at + min(size, SIZE)]
                with memoryview(writer.reserve()) as view:
                    view[: len(piece)] = piece
                writer.commit(len(piece))
            else:
                piece = data[at : at + size]
                writer.write(piece)
                if choice.random() < 0.1:
                    writer.flush()
            at += len(piece)


def take_at_random(reader, chunks, seed):
    """Read to the end by a random mix of ways, giving chunks back late and in any order.

    The writer waits for the slot that is next, so the oldest loan must be back before as many
    chunks have been taken as there are slots.
    """
    choice, pieces, loans = random.Random(seed), [], []
    for taken in itertools.count():
        while loans and (loans[0][0] <= taken - chunks or choice.random() < 0.3):
            oldest = loans[0][0] <= taken - chunks
            loans.pop(0 if oldest else choice.randrange(len(loans)))[1].release()
        if choice.random() < 0.3:
            buffer = bytearray(choice.choice([1, 100, SIZE, 2 * SIZE]))
            count = reader.readinto(buffer)
            pieces.append(bytes(buffer[:count]))
            if not count:
                break
        elif (chunk := reader.read_chunk()) is not None:
            pieces.append(bytes(chunk))
            loans.append((taken, chunk))
    return b"".join(pieces)


@pytest.mark.parametrize("seed", range(12))
def test_two_threads_lose_and_change_nothing(seed):
    chunks = seed % 4 + 1
    data = random.Random(seed).randbytes(300_000)
    reader, writer = _fastpipe.pipe(chunk_size=SIZE, chunks=chunks)
    with ThreadPoolExecutor() as pool, reader:
        put = pool.submit(put_at_random, writer, data, seed)
        taken = pool.submit(take_at_random, reader, chunks, -seed - 1)
        assert taken.result(WAIT_S) == data
        put.result(WAIT_S)
