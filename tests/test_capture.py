"""The capture queue between a store's background thread and an apply loop, which is the test itself."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor, wait

import pytest

from snapstore.capture import CaptureQueue
from snapstore.errors import CaptureTimeout, StoreClosed
from snapstore.meta import SnapshotMeta

WAIT_S = 20.0


class Result:
    """Something captured that has to be closed."""

    def __init__(self):
        self.closed = threading.Event()

    def close(self):
        self.closed.set()


class Loop:
    """A queue whose captures come from other threads, and are known to wait when `ask` returns."""

    def __init__(self, timeout_s=WAIT_S):
        self.asked = threading.Semaphore(0)
        self.queue = CaptureQueue(timeout_s=timeout_s, wake=self.asked.release)
        self.threads = ThreadPoolExecutor()

    def ask(self, take):
        future = self.threads.submit(self.queue.capture, take)
        assert self.asked.acquire(timeout=WAIT_S)
        return future


@pytest.fixture
def loop():
    loop = Loop()
    yield loop
    loop.queue.close()
    loop.threads.shutdown()


def test_take_runs_in_the_loops_thread_and_comes_back_with_its_meta(loop):
    meta = SnapshotMeta(7, 2)
    assert not loop.queue.pending
    future = loop.ask(threading.get_ident)
    assert loop.queue.pending
    assert loop.queue.serve(meta) == 1
    assert future.result(WAIT_S) == (meta, threading.get_ident())
    assert not loop.queue.pending


def test_serve_without_a_capture_does_nothing(loop):
    assert loop.queue.serve(SnapshotMeta(1)) == 0


def test_serve_takes_all_that_wait_and_a_bare_index(loop):
    futures = [loop.ask(lambda n=n: n) for n in range(3)]
    assert loop.queue.serve(9) == 3
    assert sorted(future.result(WAIT_S)[1] for future in futures) == [0, 1, 2]
    assert {future.result()[0] for future in futures} == {SnapshotMeta(9)}


@pytest.mark.parametrize(("meta", "error"), [(None, TypeError), ("1", TypeError), (-1, ValueError)])
def test_serve_refuses_what_is_no_meta_and_keeps_the_capture(loop, meta, error):
    future = loop.ask(lambda: "kept")
    with pytest.raises(error):
        loop.queue.serve(meta)
    loop.queue.serve(1)
    assert future.result(WAIT_S)[1] == "kept"


def test_an_error_of_take_goes_to_the_capture_and_not_to_the_loop(loop):
    error = OSError("no room")

    def fail():
        raise error

    future = loop.ask(fail)
    assert loop.queue.serve(1) == 1
    assert future.exception(WAIT_S) is error


def test_a_keyboard_interrupt_in_take_stops_the_loop_and_the_capture(loop):
    def interrupt():
        raise KeyboardInterrupt

    future = loop.ask(interrupt)
    with pytest.raises(KeyboardInterrupt):
        loop.queue.serve(1)
    assert isinstance(future.exception(WAIT_S), KeyboardInterrupt)


def test_a_capture_that_nobody_serves_times_out_and_is_withdrawn():
    queue = CaptureQueue(timeout_s=0.01)
    with pytest.raises(CaptureTimeout, match=r"within 0\.01 s"):
        queue.capture(lambda: pytest.fail("taken after the deadline"))
    assert not queue.pending
    assert queue.serve(1) == 0


def test_a_take_that_has_begun_at_the_deadline_is_waited_for():
    loop, result, begun = Loop(timeout_s=0.05), Result(), threading.Event()
    deadline_gone = threading.Event()

    def take():
        begun.set()
        assert deadline_gone.wait(WAIT_S)
        return result

    future = loop.ask(take)
    server = loop.threads.submit(loop.queue.serve, 5)
    assert begun.wait(WAIT_S)
    assert not wait([future], 0.1).done  # Twice the deadline, and it still waits.
    deadline_gone.set()
    assert future.result(WAIT_S) == (SnapshotMeta(5), result)
    assert server.result(WAIT_S) == 1
    assert not result.closed.is_set()
    loop.threads.shutdown()


@pytest.mark.parametrize("begun", [False, True])
def test_a_capture_interrupted_while_it_waits_leaks_nothing(begun):
    result = Result()

    def interrupt():
        # Stands for a Ctrl-C in the capturing thread: before the loop came by, or after.
        if begun:
            queue.serve(1)
        raise KeyboardInterrupt

    queue = CaptureQueue(wake=interrupt)
    with pytest.raises(KeyboardInterrupt):
        queue.capture(lambda: result)
    assert result.closed.is_set() == begun
    assert queue.serve(2) == 0


def test_close_ends_captures_that_wait_and_refuses_later_ones(loop):
    future = loop.ask(lambda: pytest.fail("taken after close"))
    loop.queue.close()
    loop.queue.close()
    assert isinstance(future.exception(WAIT_S), StoreClosed)
    with pytest.raises(StoreClosed):
        loop.queue.capture(lambda: None)
    assert loop.queue.serve(1) == 0


@pytest.mark.parametrize("timeout_s", [0, -1, float("nan"), float("inf")])
def test_a_timeout_that_is_none_is_refused(timeout_s):
    with pytest.raises(ValueError, match="timeout_s"):
        CaptureQueue(timeout_s=timeout_s)
