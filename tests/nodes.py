"""Leaders, followers and raw peers for the tests of the transport. Real sockets, real directories."""

from __future__ import annotations

import contextlib
import gc
import http.client
import io
import os
import socket
import struct
import threading
import time

from residue import GONE_S_MAX, descriptors, names, thread_count
from snapstore import _fastpipe
from snapstore.directory import SnapshotDir
from snapstore.meta import ConfState, SnapshotMeta
from snapstore.stream import SnapshotStream
from snapstore.transport.address import connect, parse_url
from snapstore.transport.http import SnapshotClient, SnapshotServer

#: Longer than anything takes that works; a test that waits so long has failed.
WAIT_S = 20.0

UNIT = _fastpipe.CHUNK_SIZE_MIN

#: What a follower says that wants the body.
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

#: Some chunks of the smallest kind and a bit.
CONTENT = os.urandom(3 * UNIT + 13)

META = SnapshotMeta(7, 3, ConfState((1, 2, 3), learners=(9,)))


@contextlib.contextmanager
def nothing_lost():
    """Whatever happens inside: no descriptor and no thread more than before."""
    descriptors_before, threads_before = set(descriptors()), thread_count()
    yield
    wait_until(lambda: thread_count() <= threads_before)
    lost = set(descriptors()) - descriptors_before
    if lost:  # Held by a cycle, perhaps: an exception that holds its own frame.
        gc.collect()
        lost = set(descriptors()) - descriptors_before
    assert not lost


def wait_until(reached, within_s=GONE_S_MAX):
    deadline = time.monotonic() + within_s
    while not reached():
        assert time.monotonic() < deadline, "waited in vain"
        os.sched_yield()


class WrittenSnapshot:
    """A snapshot that can only be written out, in pieces; `pace(offset)` comes before each."""

    def __init__(self, content, *, size_known=True, pace=lambda offset: None, piece_size=UNIT):
        self.content, self.pace, self.piece_size = content, pace, piece_size
        self.size = len(content) if size_known else None

    def write_to(self, writer):
        for start in range(0, len(self.content), self.piece_size):
            self.pace(start)
            writer.write(self.content[start : start + self.piece_size])
        return len(self.content)

    def close(self):
        pass


class ImagedSnapshot:
    """A snapshot whose bytes stand in a file."""

    def __init__(self, path):
        self.size = path.stat().st_size
        self._image = _fastpipe.Image(os.open(path, os.O_RDONLY), self.size)

    def image(self):
        return self._image

    def close(self):
        self._image.close()


def written(content=CONTENT, meta=META, **options):
    """A stream of `content` through a pump thread and a pipe."""
    return SnapshotStream(meta, WrittenSnapshot(content, **options))


def endless(meta=META):
    """A stream that goes on until somebody refuses it."""
    block = bytes(256 * 1024)

    class Endless:
        size = None

        def write_to(self, writer):
            while True:
                writer.write(block)

        def close(self):
            pass

    return SnapshotStream(meta, Endless())


def push(follower, stream, **options):
    """Send `stream` and close it; `options` are the client's."""
    with stream:
        return SnapshotClient(**options).send_snapshot(follower.url, stream, chunk_size=UNIT)


class Follower:
    """A directory with these `limits`, and the server on it; `saved` is what `on_saved` was called with."""

    def __init__(self, path, address="127.0.0.1:0", *, on_saved=None, limits=None, **options):
        self.saved = []
        self._on_saved = on_saved
        self.directory = SnapshotDir(path, **(limits or {}))
        self.server = SnapshotServer(self.directory, address, on_saved=self._note, **options)
        self.url = self.server.url

    def _note(self, saved):
        self.saved.append(saved.index)
        if self._on_saved is not None:
            self._on_saved(saved)

    @property
    def indexes(self):
        return [saved.index for saved in self.directory.list()]

    def names(self):
        """All names in its directory, but for what it keeps for another attempt."""
        return stored_names(self.directory.path)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.server.close()
        self.directory.close()


def stored_names(path):
    """All names in a directory, but for what is kept for another attempt."""
    return [name for name in names(path) if not name.startswith(".part-")]


class RawPeer:
    """A peer that says exactly what a test lets it say; its answers are read by `http.client`."""

    def __init__(self, url):
        self.socket = connect(parse_url(url), WAIT_S)
        # One buffer for all answers, so that those which came together are not lost.
        self._answers = _KeptOpen(socket.SocketIO(self.socket, "r"))

    def makefile(self, mode):
        return self._answers

    def say(self, *parts):
        self.socket.sendall(b"".join(parts))

    def end(self):
        self.socket.shutdown(socket.SHUT_WR)

    def hear(self, method="PUT"):
        """The next answer: status, headers, body."""
        answer = http.client.HTTPResponse(self, method=method)
        answer.begin()
        return answer.status, answer.headers, answer.read()

    def hear_continue(self):
        heard = b""
        while len(heard) < len(CONTINUE):
            heard += self.socket.recv(len(CONTINUE) - len(heard))
        assert heard == CONTINUE

    def hear_all(self):
        """All that comes until the line ends, however it ends."""
        heard = b""
        with contextlib.suppress(ConnectionError):
            while data := self._answers.read1():
                heard += data
        return heard

    def close(self):
        self._answers.really_close()
        self.socket.close()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()


class _KeptOpen(io.BufferedReader):
    """A reader that outlives the answers read from it."""

    def close(self):
        pass

    def really_close(self):
        super().close()


def put_head(content=CONTENT, *, index=7, expect=True, **changes):
    """The head of an offer of `content`; `changes` are headers by name, None to leave one out."""
    headers = {
        "Host": "x",
        "Snapstore-Protocol": "1",
        "Snapstore-Digest": "crc32c",
        "Snapstore-Chunk-Size": str(UNIT),
        "Snapstore-Term": "3",
        "Snapstore-Conf-State": '{"voters":[1,2,3],"learners":[9]}',
        "Snapstore-Size": str(len(content)),
        "Content-Length": str(len(frames(content))),
        "Expect": "100-continue" if expect else None,
    }
    headers |= {name.replace("_", "-"): value for name, value in changes.items()}
    lines = [f"{name}: {value}" for name, value in headers.items() if value is not None]
    return "\r\n".join([f"PUT /v1/snapshots/{index} HTTP/1.1", *lines, "", ""]).encode("latin-1")


def frames(content=CONTENT, unit=UNIT):
    """The body of a push, made from its description and not by the code that makes it elsewhere."""
    body = b""
    for start in range(0, len(content), unit):
        piece = content[start : start + unit]
        body += b"SNPC" + struct.pack(">IQ", len(piece), start) + piece
        body += struct.pack(">I", _fastpipe.crc32c_portable(piece))
    return body + b"SNPE" + struct.pack(">IQI", 0, len(content), _fastpipe.crc32c_portable(content))


def read_head(connection):
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += connection.recv(1)
    return head


def reset_at_close(connection):
    """Let a socket's end be a RST at once, and no FIN."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


class Listener:
    """A listener on this machine, which `_run` of who inherits serves in a thread."""

    def __init__(self, *arguments):
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._run, args=arguments)
        self._thread.start()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()


class Impostor(Listener):
    """A listener that lets `behave(connection)` speak in place of a follower, once."""

    def _run(self, behave):
        with contextlib.suppress(OSError):
            connection, _ = self._listener.accept()
            with connection:
                connection.settimeout(WAIT_S)
                behave(connection)


def saying(*parts):
    """An impostor's behaviour: hear the head, say this, and hear the rest."""

    def behave(connection, *_):
        read_head(connection)
        for part in parts:
            connection.sendall(part)
        while connection.recv(65536):
            pass

    return behave
