"""Between a real leader and a real follower: lines that break or flip bits, a relay that sends on."""

from __future__ import annotations

import contextlib
import socket
import threading

from nodes import WAIT_S, Listener
from snapstore.directory import SnapshotDir
from snapstore.errors import SnapshotCorrupt
from snapstore.etcd.receiver import EtcdReceiver, read_body, wait_unless_gone
from snapstore.transport.heads import Call
from snapstore.transport.http import SnapshotClient, SnapshotServer

#: Where a line that breaks does so: in the midst of the body.
CUT_SIZE = 1024 * 1024

#: A relay's refusal is held back no longer than this: a test has to wait it out.
SHORT_S = 0.05

PIECE_SIZE = 256 * 1024


class Line(Listener):
    """Passes connections on to the URL `target`, none while that is None. `meddle(data)` returns what
    passes in place of `data` from the beginning of a leader's snapshot on; it may cut by ConnectionError.
    """

    def __init__(self, meddle=lambda data: data):
        self.target, self._meddle = None, meddle
        super().__init__()

    def _run(self):
        lines, threads = [], []
        with contextlib.suppress(OSError):
            while True:
                lines.append(self._listener.accept()[0])
                threads.append(threading.Thread(target=self._serve, args=(lines[-1],)))
                threads[-1].start()
        for line in lines:
            with contextlib.suppress(OSError):
                line.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join()

    def _serve(self, line):
        with line, contextlib.suppress(OSError):
            if self.target is not None:
                with connected(self.target) as onward:
                    back = threading.Thread(target=self._pass_back, args=(onward, line))
                    back.start()
                    self._pass_on(line, onward)
                    back.join()

    def _pass_on(self, line, onward):
        in_snapshot = False
        with contextlib.suppress(OSError):
            while data := line.recv(PIECE_SIZE):
                in_snapshot = in_snapshot or b"POST /raft/snapshot" in data
                onward.sendall(self._meddle(data) if in_snapshot else data)
        for end in (line, onward):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _pass_back(self, onward, line):
        with contextlib.suppress(OSError):
            while data := onward.recv(PIECE_SIZE):
                line.sendall(data)
            line.shutdown(socket.SHUT_WR)


def connected(url):
    host, _, port = url.removeprefix("http://").rpartition(":")
    return socket.create_connection((host, int(port)), WAIT_S)


class CutOnce:
    """Lets CUT_SIZE bytes pass, then cuts, once."""

    def __init__(self):
        self.passed, self.done = 0, False

    def __call__(self, data):
        self.passed += len(data)
        if self.passed > CUT_SIZE and not self.done:
            self.done = True
            raise ConnectionResetError
        return data


class Flip:
    """Puts `new` in place of `old` where that comes by, `times` times; `done` counts."""

    def __init__(self, old, new, times):
        self._old, self._new, self._times = old, new, times
        self.done, self._held = 0, b""

    def __call__(self, data):
        data = self._held + data
        count = min(data.count(self._old), self._times - self.done)
        self.done += count
        data = data.replace(self._old, self._new, count)
        # Where it may begin at the end of this piece, that much waits for the next one.
        left = range(len(self._old) - 1, 0, -1) if self.done < self._times else ()
        size = next((size for size in left if data.endswith(self._old[:size])), 0)
        self._held = data[len(data) - size :]
        return data[: len(data) - size]


class Relay:
    """Stands for the member at the URL `target`: saves its snapshots and sends them on, passes all else.

    `spoil(saved)` is called between the two. What was refused is in `refusals`, each with what was
    stored then.
    """

    def __init__(self, path, cluster_id, spoil=lambda saved: None):
        self.target, self._cluster_id, self._spoil = None, cluster_id, spoil
        self.sent, self.refusals, self.broken = [], [], []
        self.arrived = threading.Event()
        self.directory = SnapshotDir(path)
        self._receiver = EtcdReceiver(
            self.directory, cluster_id=cluster_id, on_saved=self._send_on, delay=self._delay
        )
        routes = dict.fromkeys(("/raft", "/version", "/members"), self._answer)
        self.server = SnapshotServer(self.directory, "127.0.0.1:0", routes=routes)
        self.url = self.server.url

    def _delay(self, exchange, seconds):
        self.refusals.append([saved.index for saved in self.directory.list()])
        wait_unless_gone(exchange, SHORT_S)

    def _send_on(self, saved, message):
        self.message = message
        self._spoil(saved)
        try:
            with self.directory.open(saved.index, verify=False) as stored:
                SnapshotClient().send_etcd(self.target, stored, message, cluster_id=self._cluster_id)
        except SnapshotCorrupt as error:
            self.broken.append(error)
            with contextlib.suppress(SnapshotCorrupt):
                self.directory.verify(saved.index)  # Sets it aside: the leader's next one finds room.
            raise
        self.sent.append(saved.index)

    def _answer(self, exchange):
        if exchange.head.target == "/raft/snapshot":
            self._receiver.receive(exchange)
            return
        exchange.keep_alive = False
        body = read_body(exchange, PIECE_SIZE)
        dropped = ("connection", "content-length", "transfer-encoding")
        headers = [pair for pair in exchange.head.headers.items() if pair[0] not in dropped]
        headers += [("Connection", "close"), ("Content-Length", str(len(body)))]
        with connected(self.target) as onward:
            onward.settimeout(None)  # Streams have no end, and signs of life of their own.
            onward.sendall(Call(exchange.head.method, exchange.head.target, headers).head + body)
            while data := onward.recv(PIECE_SIZE):
                exchange.send(data)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.server.close()
        self.directory.close()
