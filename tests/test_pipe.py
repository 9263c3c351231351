"""The pipe between two threads: bounds, order, and memory on loan."""

from __future__ import annotations

import gc
import os

import pytest

from pipes_at_work import SIZE, WAIT_S, blocks, read_all
from snapstore import _fastpipe


class TestBounds:
    @pytest.mark.parametrize("chunk_size", [0, 1, SIZE - 1, SIZE + 1, 64 * 1024 * 1024 + SIZE, -SIZE])
    def test_a_chunk_is_whole_pages_and_bounded(self, chunk_size):
        with pytest.raises(ValueError, match="chunk_size must be a multiple of 4096"):
            _fastpipe.pipe(chunk_size=chunk_size)

    @pytest.mark.parametrize("chunks", [0, -1, 1025])
    def test_the_number_of_chunks_is_bounded(self, chunks):
        with pytest.raises(ValueError, match="chunks must be 1 to 1024"):
            _fastpipe.pipe(chunks=chunks)

    def test_a_writer_waits_while_all_slots_are_out(self, pair, background):
        reader, writer = pair
        writer.write(b"a" * SIZE + b"b" * SIZE)
        third = background(writer.write, b"c" * SIZE)
        assert blocks(third)
        chunk = reader.read_chunk()
        assert blocks(third)  # A chunk on loan is not free.
        chunk.release()
        assert third.result(WAIT_S) == SIZE

    def test_a_dropped_chunk_comes_back(self, pair):
        reader, writer = pair
        for _ in range(5):
            writer.write(b"x" * 2 * SIZE)
            assert len(reader.read_chunk()) == len(reader.read_chunk()) == SIZE

    def test_a_chunk_dropped_in_a_cycle_comes_back(self, pair, background):
        reader, writer = pair
        writer.write(b"x" * 2 * SIZE)
        cycle = [reader.read_chunk()]
        cycle.append(cycle)
        del cycle
        gc.collect()
        assert background(writer.write, b"y" * SIZE).result(WAIT_S) == SIZE


class TestOrder:
    def test_bytes_come_out_in_order_and_offsets_count_them(self, pair, background):
        reader, writer = pair
        data = os.urandom(10 * SIZE + 7)
        with writer:
            done = background(lambda: (writer.write(data), writer.close()))
            offsets, pieces = [], []
            while (chunk := reader.read_chunk()) is not None:
                with chunk:
                    offsets.append(chunk.offset)
                    pieces.append(bytes(chunk))
            done.result(WAIT_S)
        assert b"".join(pieces) == data
        assert offsets == [number * SIZE for number in range(11)]

    def test_loans_may_come_back_in_any_order(self, background):
        reader, writer = _fastpipe.pipe(chunk_size=SIZE, chunks=3)
        writer.write(b"a" * SIZE + b"b" * SIZE + b"c" * SIZE)
        first, second, third = (reader.read_chunk() for _ in range(3))
        third.release()
        second.release()
        more = background(writer.write, b"d" * SIZE)
        assert blocks(more)  # The slot that is next is still out.
        assert bytes(first) == b"a" * SIZE
        first.release()
        more.result(WAIT_S)
        writer.close()
        assert read_all(reader) == b"d" * SIZE

    def test_small_writes_share_a_slot_and_flush_shows_them(self, pair, background):
        reader, writer = pair
        writer.write(b"one")
        writer.write(b"two")
        chunk = background(reader.read_chunk)
        assert blocks(chunk)
        writer.flush()
        writer.flush()  # Nothing is gathered: nothing happens.
        assert bytes(chunk.result(WAIT_S)) == b"onetwo"
        writer.write(b"three")
        writer.close()
        assert read_all(reader) == b"three"

    def test_readinto_chunks_and_transfers_share_one_position(self, pair, tmp_path):
        reader, writer = pair
        writer.write(b"0123456789" * 500)
        writer.close()
        start = bytearray(3)
        assert reader.readinto(start) == 3
        with reader.read_chunk() as chunk:
            assert (chunk.offset, len(chunk)) == (3, SIZE - 3)
            rest = bytes(chunk)
        assert reader.readinto(bytearray(4)) == 4
        with (tmp_path / "rest").open("wb") as file:
            assert reader.copy_to_fd(file.fileno()) == 5000 - SIZE - 4
        assert start + rest + b"6789" + (tmp_path / "rest").read_bytes() == b"0123456789" * 500
        assert reader.readinto(bytearray(4)) == 0

    def test_readinto_an_empty_buffer_does_not_wait(self, pair):
        assert pair[0].readinto(bytearray()) == 0


class TestBorrowedMemory:
    def test_a_chunk_is_not_given_back_under_a_view(self, pair):
        reader, writer = pair
        writer.write(b"x" * SIZE)
        chunk = reader.read_chunk()
        with memoryview(chunk) as view:
            assert view.readonly
            with pytest.raises(BufferError, match="release the views"):
                chunk.release()
            assert view[0] == ord("x")
        chunk.release()
        chunk.release()
        with pytest.raises(ValueError, match="released"):
            memoryview(chunk)

    def test_a_slot_is_not_handed_on_under_a_view(self, pair):
        reader, writer = pair
        slot = writer.reserve()
        with memoryview(slot) as view:
            view[:5] = b"hello"
            with pytest.raises(BufferError, match="release the views"):
                writer.commit(5)
        writer.commit(5)
        with pytest.raises(ValueError, match="committed"):
            memoryview(slot)
        assert bytes(reader.read_chunk()) == b"hello"

    def test_a_slot_is_reserved_once_and_committed_within_its_length(self, pair):
        reader, writer = pair
        with pytest.raises(ValueError, match="reserve a slot first"):
            writer.commit(1)
        assert len(writer.reserve()) == SIZE
        for call in (writer.reserve, writer.flush, lambda: writer.write(b"x")):
            with pytest.raises(ValueError, match="commit the reserved slot first"):
                call()
        for length in (-1, SIZE + 1):
            with pytest.raises(ValueError, match="length must be 0 to 4096"):
                writer.commit(length)
        writer.commit(0)
        writer.write(b"after")
        writer.close()
        assert read_all(reader) == b"after"

    def test_reserve_shows_what_small_writes_gathered(self, pair):
        reader, writer = pair
        writer.write(b"before")
        memoryview(writer.reserve())[:2] = b"in"
        writer.commit(2)
        writer.close()
        assert read_all(reader) == b"beforein"

    def test_a_chunk_and_its_bytes_outlive_both_halves(self):
        reader, writer = _fastpipe.pipe(chunk_size=SIZE)
        writer.write(b"x" * SIZE)
        view = memoryview(reader.read_chunk())
        del reader, writer
        gc.collect()
        assert bytes(view) == b"x" * SIZE

    @pytest.mark.parametrize("kind", [_fastpipe.Chunk, _fastpipe.Slot])
    def test_loans_are_not_made_from_nothing(self, kind):
        with pytest.raises(TypeError, match="come from"):
            kind()

    def test_a_scattered_buffer_is_refused_and_the_pipe_goes_on(self, pair):
        reader, writer = pair
        with pytest.raises(BufferError):
            writer.write(memoryview(b"abcdef")[::2])
        writer.write(b"whole")
        writer.close()
        assert read_all(reader) == b"whole"
