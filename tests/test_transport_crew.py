"""A listener's threads: each serves what it accepts, some stand by, and none is left when it ends."""

import socket
import threading
from contextlib import ExitStack

import pytest

from nodes import WAIT_S, wait_until
from snapstore.transport.crew import WAITING, Crew

STORM = 8


class Served:
    """A crew whose connections stay until the peer leaves; `threads` are those that served one."""

    def __init__(self, connections_max=STORM):
        self.threads, self.turned_away = set(), []
        listener = socket.create_server(("127.0.0.1", 0))
        self.address = listener.getsockname()
        self.crew = Crew(
            listener, serve=self._serve, turn_away=self._turn_away, connections_max=connections_max
        )

    def _serve(self, connection):
        with connection:
            self.threads.add(threading.current_thread())
            connection.sendall(b"welcome")
            connection.recv(1)

    def _turn_away(self, connection):
        self.turned_away.append(threading.current_thread())
        connection.close()

    def meet(self):
        return socket.create_connection(self.address, WAIT_S)

    def __enter__(self):
        self.crew.start()
        return self

    def __exit__(self, *exception):
        self.crew.cut_off()
        self.crew.join()


def standing():
    return [thread for thread in threading.enumerate() if thread.name == "snapstore-connection"]


@pytest.fixture(autouse=True)
def none_is_left():
    assert standing() == []
    yield
    assert standing() == []


def test_a_storm_is_served_at_once_and_then_as_few_stand_by_as_before():
    with Served() as served:
        assert len(standing()) == WAITING
        with ExitStack() as peers:
            for _ in range(STORM):
                assert peers.enter_context(served.meet()).recv(7) == b"welcome"
            assert len(served.threads) == len(served.crew.connections) == STORM
            with served.meet() as late:
                assert late.recv(1) == b""
            assert len(served.turned_away) == 1
        wait_until(lambda: not served.crew.connections and len(standing()) == WAITING)
        with served.meet() as again:
            assert again.recv(7) == b"welcome"


def test_a_peer_that_cannot_be_turned_away_costs_no_thread(caplog):
    def fail(connection):
        connection.close()
        raise ValueError("no words")

    with Served(connections_max=1) as served, served.meet() as inside:
        assert inside.recv(7) == b"welcome"
        served.crew._turn_away = fail
        for _ in range(2 * WAITING):
            with served.meet() as late:
                assert late.recv(1) == b""
    assert {record.message for record in caplog.records} == {
        "a peer could not be told why it was turned away"
    }


def test_one_after_the_other_starts_no_thread():
    with Served() as served:
        before = set(standing())
        for _ in range(3 * STORM):
            with served.meet() as peer:
                assert peer.recv(7) == b"welcome"
            wait_until(lambda: not served.crew.connections)
        assert served.threads <= before == set(standing())


def start_so_many(number):
    """In the place of Thread.start: works so many times, and then the system has no thread left."""
    left = [None] * number
    start = threading.Thread.start

    def start_or_fail(thread):
        if not left:
            raise RuntimeError("can't start new thread")
        left.pop()
        start(thread)

    return start_or_fail


@pytest.mark.parametrize("number", range(WAITING))
def test_where_there_are_not_enough_threads_to_begin_with_nothing_listens(monkeypatch, number):
    served = Served()
    monkeypatch.setattr(threading.Thread, "start", start_so_many(number))
    with pytest.raises(RuntimeError, match="new thread"):
        served.crew.start()
    with pytest.raises(ConnectionRefusedError):
        served.meet()


def test_where_there_is_no_thread_who_comes_is_turned_away_and_the_rest_goes_on(monkeypatch, caplog):
    with Served() as served, ExitStack() as peers:
        with monkeypatch.context() as without:
            without.setattr(threading.Thread, "start", start_so_many(0))
            for _ in range(WAITING - 1):
                assert peers.enter_context(served.meet()).recv(7) == b"welcome"
            with served.meet() as late:
                assert late.recv(1) == b""
        assert [record.message for record in caplog.records] == ["no thread: can't start new thread"]
        with served.meet() as again:
            assert again.recv(7) == b"welcome"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_whoever_ends_its_thread_in_the_middle_does_not_end_the_listener():
    with Served() as served:
        serve = served.crew._serve

        def leave(connection):
            connection.close()
            raise SystemExit

        served.crew._serve = leave
        for _ in range(2 * WAITING):
            with served.meet() as peer:
                assert peer.recv(1) == b""
            wait_until(lambda: not served.crew.connections)
        served.crew._serve = serve
        with served.meet() as peer:
            assert peer.recv(7) == b"welcome"
