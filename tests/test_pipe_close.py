"""How a pipe ends: by either half, for a reason or without, by being dropped, and in a forked child."""

from __future__ import annotations

import gc
import os

import pytest

from pipes_at_work import SIZE, WAIT_S, blocks, read_all
from processes import is_refused
from snapstore import _fastpipe
from snapstore.errors import PipeClosed


def in_child(check):
    """Run `check` in a forked child; whether it returned true."""
    child = os.fork()
    if child == 0:
        passed = False
        try:
            passed = bool(check())
        finally:
            os._exit(0 if passed else 1)
    return os.waitpid(child, 0)[1] == 0


class TestClose:
    def test_queued_chunks_come_before_a_clean_end(self, pair):
        reader, writer = pair
        writer.write(b"x" * SIZE + b"y")
        writer.close()
        writer.close()
        assert read_all(reader) == b"x" * SIZE + b"y"
        assert reader.read_chunk() is None

    def test_an_error_overtakes_what_is_queued(self, pair):
        reader, writer = pair
        writer.write(b"x" * SIZE)
        writer.close(RuntimeError("the store is broken"))
        with pytest.raises(RuntimeError, match="the store is broken"):
            reader.read_chunk()

    def test_the_first_reason_wins(self, pair):
        reader, writer = pair
        writer.close(RuntimeError("first"))
        writer.close(RuntimeError("second"))
        with pytest.raises(RuntimeError, match="first"):
            reader.read_chunk()
        reader.close(RuntimeError("third"))
        for call in (reader.read_chunk, writer.flush, writer.reserve):
            with pytest.raises(RuntimeError, match="first"):
                call()

    @pytest.mark.parametrize("error", [None, ValueError("no room here")])
    def test_a_writer_hears_of_a_reader_that_went(self, pair, error):
        reader, writer = pair
        writer.write(b"gathered in a slot")
        reader.close(error)
        for call in (writer.flush, writer.reserve, lambda: writer.write(b"x")):
            with pytest.raises(PipeClosed if error is None else ValueError):
                call()
        writer.close()

    @pytest.mark.parametrize("error", [None, ValueError("no room here")])
    def test_a_waiting_writer_is_woken(self, pair, background, error):
        reader, writer = pair
        writer.write(b"x" * 2 * SIZE)
        waiting = background(writer.write, b"y")
        assert blocks(waiting)
        reader.close(error)
        with pytest.raises(PipeClosed if error is None else ValueError):
            waiting.result(WAIT_S)

    def test_a_waiting_reader_is_woken(self, pair, background):
        reader, writer = pair
        waiting = background(reader.read_chunk)
        assert blocks(waiting)
        writer.close(KeyError("gone"))
        with pytest.raises(KeyError, match="gone"):
            waiting.result(WAIT_S)

    def test_leaving_with_by_an_error_fails_the_pipe(self):
        reader, writer = _fastpipe.pipe(chunk_size=SIZE)
        with pytest.raises(LookupError), writer:
            raise LookupError("while writing")
        with pytest.raises(LookupError, match="while writing"):
            reader.read_chunk()
        assert writer.closed

    def test_closed_halves_are_refused(self, pair):
        reader, writer = pair
        writer.reserve()
        writer.close()
        reader.close()
        assert reader.closed
        assert writer.closed
        calls = (
            reader.read_chunk,
            lambda: reader.readinto(bytearray(1)),
            lambda: reader.copy_to_fd(1),
            writer.flush,
            writer.reserve,
            lambda: writer.commit(1),
            lambda: writer.write(b""),
        )
        for call in calls:
            with pytest.raises(PipeClosed):
                call()

    def test_a_writer_dropped_without_a_close_has_not_finished(self):
        reader, writer = _fastpipe.pipe(chunk_size=SIZE)
        writer.write(b"x" * SIZE)
        del writer
        with pytest.raises(PipeClosed):
            reader.read_chunk()

    def test_halves_dropped_in_a_cycle_let_the_other_go(self, background):
        for dropped in (0, 1):
            halves = list(_fastpipe.pipe(chunk_size=SIZE, chunks=1))
            cycle = [halves.pop(dropped)]
            cycle.append(cycle)
            del cycle
            gc.collect()
            call = halves[0].read_chunk if dropped else lambda half=halves[0]: half.write(b"x" * 2 * SIZE)
            with pytest.raises(PipeClosed):
                background(call).result(WAIT_S)


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
class TestFork:
    def test_a_child_is_refused_by_name_and_the_parent_goes_on(self, pair):
        reader, writer = pair
        writer.write(b"x" * SIZE)
        chunk = reader.read_chunk()
        calls = (
            reader.read_chunk,
            reader.close,
            writer.close,
            writer.flush,
            writer.reserve,
            chunk.release,
            lambda: reader.readinto(bytearray(1)),
            lambda: writer.write(b"x"),
            lambda: writer.commit(0),
        )
        assert in_child(lambda: bytes(chunk) == b"x" * SIZE and all(map(is_refused, calls)))
        writer.close()
        assert reader.read_chunk() is None

    def test_a_child_that_drops_all_of_it_changes_nothing(self):
        held = [*_fastpipe.pipe(chunk_size=SIZE)]
        assert in_child(lambda: (held.clear(), gc.collect()))
        held[1].write(b"parent")
        held[1].close()
        assert read_all(held[0]) == b"parent"
