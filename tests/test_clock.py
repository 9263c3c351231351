"""Both clocks: the real one, with events in place of sleeps, and its twin."""

from __future__ import annotations

import gc
import math
import os
import threading
import time

import pytest

from processes import is_refused
from snapstore.clock import SystemClock
from snapstore.testing import FakeClock

#: How long a test waits for what comes at once, before it calls it missing.
WAIT_S = 20.0


@pytest.fixture
def clock():
    with SystemClock() as clock:
        yield clock


class TestSystemClock:
    def test_its_time_goes_on(self, clock):
        assert time.monotonic() <= clock.monotonic() <= time.monotonic()

    def test_calls_are_made_in_the_order_of_their_moments_and_not_too_early(self, clock):
        made, done = [], threading.Event()
        begin_s = clock.monotonic()
        clock.call_later(0.03, lambda: (made.append(("late", clock.monotonic())), done.set()))
        clock.call_later(0.01, lambda: made.append(("early", clock.monotonic())))
        assert done.wait(WAIT_S)
        assert [name for name, _ in made] == ["early", "late"]
        assert made[0][1] >= begin_s + 0.01
        assert made[1][1] >= begin_s + 0.03

    def test_a_cancelled_call_is_not_made(self, clock):
        made, done = [], threading.Event()
        timer = clock.call_later(0.01, lambda: made.append("cancelled"))
        timer.cancel()
        timer.cancel()
        clock.call_later(0.02, done.set)
        assert done.wait(WAIT_S)
        assert made == []

    def test_an_infinite_delay_is_never(self, clock):
        clock.call_later(math.inf, lambda: pytest.fail("called"))
        done = threading.Event()
        clock.call_later(0, done.set)
        assert done.wait(WAIT_S)

    @pytest.mark.parametrize("delay_s", [-1, -0.001, math.nan])
    @pytest.mark.parametrize("clock_type", [SystemClock, FakeClock])
    def test_a_delay_that_is_none_is_refused(self, clock_type, delay_s):
        with pytest.raises(ValueError, match="0 or more seconds"):
            clock_type().call_later(delay_s, lambda: None)

    def test_tasks_run_one_after_the_other_while_timers_go_on(self, clock):
        ran, held, go, done = [], threading.Event(), threading.Event(), threading.Event()

        def hold():
            held.set()
            assert go.wait(WAIT_S)
            ran.append("first")

        clock.run_soon(hold)
        clock.run_soon(lambda: (ran.append("second"), done.set()))
        assert held.wait(WAIT_S)
        clock.call_later(0, go.set)  # Would never come if tasks held up the timers.
        assert done.wait(WAIT_S)
        assert ran == ["first", "second"]

    @pytest.mark.parametrize("error", [RuntimeError("broken"), SystemExit(1)])
    def test_what_raises_is_logged_and_the_rest_goes_on(self, clock, caplog, error):
        def fail():
            raise error

        timer_done, task_done = threading.Event(), threading.Event()
        clock.call_later(0, fail)
        clock.call_later(0, timer_done.set)
        clock.run_soon(fail)
        clock.run_soon(task_done.set)
        assert timer_done.wait(WAIT_S)
        assert task_done.wait(WAIT_S)
        assert [record.exc_info[1] for record in caplog.records] == [error, error]

    def test_close_ends_the_threads_after_the_tasks_handed_over(self):
        before = set(threading.enumerate())
        clock, done = SystemClock(), threading.Event()
        threads = set(threading.enumerate()) - before
        assert {thread.name for thread in threads} == {"snapstore-timers", "snapstore-tasks"}
        clock.call_later(3600, lambda: pytest.fail("called"))
        clock.run_soon(done.set)
        clock.close()
        clock.close()
        for thread in threads:
            thread.join(WAIT_S)
            assert not thread.is_alive()
        assert done.is_set()
        with pytest.raises(RuntimeError, match="closed"):
            clock.run_soon(done.set)
        with pytest.raises(RuntimeError, match="closed"):
            clock.call_later(1, done.set)

    def test_a_clock_that_nobody_holds_ends_its_threads(self):
        before = set(threading.enumerate())
        clock = SystemClock()
        threads = set(threading.enumerate()) - before
        assert len(threads) == 2
        del clock
        gc.collect()
        for thread in threads:
            thread.join(WAIT_S)
            assert not thread.is_alive()

    def test_a_finished_task_is_not_kept_alive_by_the_waiting_thread(self, clock):
        class Task:
            def __init__(self, dropped):
                self.dropped = dropped

            def __call__(self):
                pass

            def __del__(self):
                self.dropped.set()

        for hand_over in (clock.run_soon, lambda task: clock.call_later(0, task)):
            dropped = threading.Event()
            hand_over(Task(dropped))
            assert dropped.wait(WAIT_S)

    @pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
    def test_a_forked_child_is_refused_by_name(self, clock):
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            calls = (lambda: clock.run_soon(print), lambda: clock.call_later(1, print))
            refused = sum(map(is_refused, calls))
            clock.close()  # Touches nothing; it comes by itself when a child drops the clock.
            os.write(writer, bytes([refused]))
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader, "rb") as answers:
            assert answers.read() == b"\2"
        assert os.waitpid(child, 0)[1] == 0
        done = threading.Event()
        clock.run_soon(done.set)
        assert done.wait(WAIT_S)


class TestFakeClock:
    def test_time_stands_until_it_is_moved(self):
        clock = FakeClock(100.0)
        assert clock.monotonic() == 100.0
        clock.advance(2.5)
        assert clock.monotonic() == 102.5

    def test_due_calls_are_made_in_order_with_time_at_their_moments(self):
        clock, made = FakeClock(), []
        clock.call_later(3, lambda: made.append(("b", clock.monotonic())))
        clock.call_later(1, lambda: made.append(("a", clock.monotonic())))
        clock.call_later(3, lambda: made.append(("c", clock.monotonic())))
        clock.call_later(3.1, lambda: made.append(("later", clock.monotonic())))
        clock.advance(3)
        assert made == [("a", 1), ("b", 3), ("c", 3)]

    def test_a_call_scheduled_by_a_call_is_made_in_the_same_advance_if_due(self):
        clock, made = FakeClock(), []
        clock.call_later(1, lambda: clock.call_later(1, lambda: made.append(clock.monotonic())))
        clock.advance(10)
        assert made == [2]
        assert clock.monotonic() == 10

    def test_a_cancelled_call_is_not_made(self):
        clock = FakeClock()
        clock.call_later(1, lambda: pytest.fail("called")).cancel()
        clock.advance(2)

    def test_tasks_wait_for_run_pending_and_not_for_time(self):
        clock, ran = FakeClock(), []
        clock.run_soon(lambda: (ran.append("first"), clock.run_soon(lambda: ran.append("handed over"))))
        clock.run_soon(lambda: ran.append("second"))
        clock.advance(100)
        assert ran == []
        assert clock.pending == 2
        assert clock.run_pending() == 3
        assert ran == ["first", "second", "handed over"]
        assert clock.run_pending() == 0

    def test_what_raises_reaches_the_test_and_the_rest_stays(self):
        clock, ran = FakeClock(), []
        clock.run_soon(lambda: 1 // 0)
        clock.run_soon(lambda: ran.append("rest"))
        with pytest.raises(ZeroDivisionError):
            clock.run_pending()
        assert clock.run_pending() == 1
        assert ran == ["rest"]
