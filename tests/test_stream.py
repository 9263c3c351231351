"""Streams over both kinds of snapshots: an image in a real file, and one that is only written out."""

from __future__ import annotations

import gc
import os
import socket
import threading

import pytest

from snapstore import _fastpipe
from snapstore.errors import ForkedProcess, PipeClosed
from snapstore.meta import SnapshotMeta
from snapstore.stream import SnapshotStream

WAIT_S = 20.0

#: Two chunks and a bit, of a pattern that no chunk boundary falls together with.
CONTENT_SIZE = 2 * _fastpipe.CHUNK_SIZE_DEFAULT + 13
CONTENT = (os.urandom(65_537) * (CONTENT_SIZE // 65_537 + 1))[:CONTENT_SIZE]


class WrittenSnapshot:
    """A snapshot that can only be written out; `pace` is called before each piece."""

    size: int | None = None

    def __init__(self, content=CONTENT, pace=lambda: None, piece=100_000):
        self.content, self.pace, self.piece = content, pace, piece
        self.closed = 0
        self.written = threading.Event()  # Set when `write_to` has ended, one way or the other.
        self.error = None

    def write_to(self, writer):
        try:
            for start in range(0, len(self.content), self.piece):
                self.pace()
                writer.write(self.content[start : start + self.piece])
        except BaseException as error:
            self.error = error
            raise
        finally:
            self.written.set()
        return len(self.content)

    def close(self):
        self.closed += 1


class ImagedSnapshot(WrittenSnapshot):
    """A snapshot whose bytes stand in a file."""

    def __init__(self, path, content=CONTENT):
        super().__init__(content)
        path.write_bytes(content)
        self.size = len(content)
        self._image = _fastpipe.Image(os.open(path, os.O_RDONLY), len(content))

    def image(self):
        return self._image

    def write_to(self, writer):
        pytest.fail("an image is read, not written out")

    def close(self):
        super().close()
        self._image.close()


@pytest.fixture(params=["imaged", "written"])
def snapshot(request, tmp_path):
    return ImagedSnapshot(tmp_path / "image") if request.param == "imaged" else WrittenSnapshot()


def open_stream(snapshot, index=7):
    return SnapshotStream(SnapshotMeta(index), snapshot)


def read_all(stream):
    return b"".join(bytes(chunk) for chunk in map(memoryview, stream.chunks()))


def test_it_says_what_it_is_before_a_byte_is_read(snapshot):
    with open_stream(snapshot) as stream:
        assert stream.meta == SnapshotMeta(7)
        assert stream.size == snapshot.size
        assert not stream.closed
        assert stream.reason is None
        assert "index=7" in repr(stream)
        assert "open" in repr(stream)
    assert "closed" in repr(stream)


def test_chunks_are_the_bytes_in_order_and_read_only(snapshot):
    received = bytearray()
    with open_stream(snapshot) as stream:
        for chunk in stream.chunks():
            view = memoryview(chunk)
            assert view.readonly
            assert 0 < len(chunk) <= _fastpipe.CHUNK_SIZE_DEFAULT
            received += view
    assert received == CONTENT


def test_chunks_can_be_given_back_at_once(snapshot):
    received = bytearray()
    with open_stream(snapshot) as stream:
        for chunk in stream.chunks():
            with chunk, memoryview(chunk) as view:
                received += view
    assert received == CONTENT


@pytest.mark.parametrize("size", [10_000, 65_536, CONTENT_SIZE, CONTENT_SIZE + 1])
def test_readinto_fills_to_the_end_and_then_returns_0(snapshot, size):
    received, buffer = bytearray(), bytearray(size)
    with open_stream(snapshot) as stream:
        while count := stream.readinto(buffer):
            received += buffer[:count]
        assert stream.readinto(buffer) == 0
    assert received == CONTENT


def test_copy_to_fd_writes_the_rest(snapshot, tmp_path):
    start = bytearray(1000)
    with open_stream(snapshot) as stream, (tmp_path / "copy").open("wb") as target:
        assert stream.readinto(start) == 1000
        assert stream.copy_to_fd(target.fileno()) == CONTENT_SIZE - 1000
        assert stream.readinto(start[:1]) == 0
    assert (tmp_path / "copy").read_bytes() == CONTENT[1000:]


def test_an_empty_snapshot_is_no_bytes(tmp_path):
    for snapshot in (ImagedSnapshot(tmp_path / "empty", b""), WrittenSnapshot(b"")):
        with open_stream(snapshot) as stream:
            assert list(stream.chunks()) == []


def test_source_is_the_image_or_the_pipe(snapshot):
    with open_stream(snapshot) as stream:
        source = stream.source
        assert source is stream.source
        if hasattr(snapshot, "image"):
            assert source is snapshot.image()
        else:
            assert isinstance(source, _fastpipe.PipeReader)
            assert snapshot.written.is_set() or source.readinto(bytearray(10)) == 10  # The pump runs.


def test_the_pump_starts_with_the_first_read():
    snapshot = WrittenSnapshot()
    before = threading.active_count()
    with open_stream(snapshot) as stream:
        assert threading.active_count() == before
        stream.readinto(bytearray(1))
    assert snapshot.written.wait(WAIT_S)


def test_close_closes_the_snapshot_once_and_the_first_reason_wins(snapshot):
    stream, first = open_stream(snapshot), ValueError("first")
    stream.close(first)
    stream.close(ValueError("second"))
    stream.close()
    assert stream.closed
    assert stream.reason is first
    assert snapshot.closed == 1
    with pytest.raises(ValueError, match="first"):
        stream.readinto(bytearray(1))


def test_every_way_to_read_a_closed_stream_raises(snapshot, tmp_path):
    stream = open_stream(snapshot)
    chunks = stream.chunks()
    next(chunks)
    stream.close()
    with pytest.raises(PipeClosed, match="snapshot 7"):
        next(chunks)
    with pytest.raises(PipeClosed, match="snapshot 7"):
        stream.readinto(bytearray(1))
    with pytest.raises(PipeClosed, match="snapshot 7"):
        _ = stream.source
    with (tmp_path / "copy").open("wb") as target, pytest.raises(PipeClosed, match="snapshot 7"):
        stream.copy_to_fd(target.fileno())


def test_leaving_by_an_exception_closes_with_it(snapshot):
    error = OSError("peer gone")
    with pytest.raises(OSError, match="peer gone"), open_stream(snapshot) as stream:
        raise error
    assert stream.reason is error
    assert snapshot.closed == 1


def test_a_ctrl_c_of_the_closing_thread_is_no_ctrl_c_for_the_reading_one(snapshot):
    with pytest.raises(KeyboardInterrupt), open_stream(snapshot) as stream:
        raise KeyboardInterrupt
    with pytest.raises(PipeClosed) as caught:
        stream.readinto(bytearray(1))
    assert isinstance(caught.value.__cause__, KeyboardInterrupt)


def test_an_error_of_the_kv_arrives_at_the_reader_as_it_is():
    error, pieces = OSError(5, "media error"), iter(range(3))

    def fail_at_the_third():
        if next(pieces) == 2:
            raise error

    snapshot = WrittenSnapshot(pace=fail_at_the_third)
    with pytest.raises(OSError, match="media error") as caught, open_stream(snapshot) as stream:
        read_all(stream)
    assert caught.value is error
    assert snapshot.closed == 1


def test_closing_ends_the_pump_also_when_the_pipe_is_full():
    snapshot = WrittenSnapshot(CONTENT * (_fastpipe.PIPE_CHUNKS_DEFAULT + 1))
    reason = ValueError("follower gone")
    stream = open_stream(snapshot)
    stream.readinto(bytearray(1))
    assert not snapshot.written.is_set()  # More is to come than a pipe holds, and nobody reads it.
    stream.close(reason)
    assert snapshot.written.wait(WAIT_S)
    assert snapshot.error is reason


def test_closing_from_another_thread_ends_a_read_under_way():
    stalled, go = threading.Event(), threading.Event()

    def stall():
        stalled.set()
        assert go.wait(WAIT_S)

    snapshot, reason, caught = WrittenSnapshot(pace=stall), ValueError("compacted"), []

    def read():
        try:
            stream.readinto(bytearray(1))
        except ValueError as error:
            caught.append(error)

    stream = open_stream(snapshot)
    reader = threading.Thread(target=read)
    reader.start()
    assert stalled.wait(WAIT_S)
    stream.close(reason)
    reader.join(WAIT_S)
    assert caught == [reason]
    go.set()
    assert snapshot.written.wait(WAIT_S)


def test_an_image_closed_underneath_is_told_by_the_streams_reason(tmp_path):
    snapshot, reason = ImagedSnapshot(tmp_path / "image"), PipeClosed("compacted up to 9")

    class ClosesWhileRead:
        size = len(CONTENT)

        def readinto(self, buffer, offset):
            stream.close(reason)
            return snapshot.image().readinto(buffer, offset)

    imaged = WrittenSnapshot()
    imaged.image, imaged.close = ClosesWhileRead, snapshot.close
    stream = open_stream(imaged)
    with pytest.raises(PipeClosed) as caught:
        stream.readinto(bytearray(1))
    assert caught.value is reason


def test_a_revoked_stream_is_still_owed_by_its_holder(snapshot):
    stream, reason = open_stream(snapshot), PipeClosed("compacted")
    stream.revoke(reason)
    assert stream.closed
    assert snapshot.closed == 0
    with pytest.raises(PipeClosed, match="compacted"):
        stream.readinto(bytearray(1))
    stream.close()
    stream.revoke(ValueError("late"))
    assert snapshot.closed == 1
    assert stream.reason is reason


def test_a_dropped_stream_warns_and_closes(snapshot):
    stream = open_stream(snapshot)
    stream.readinto(bytearray(1))
    with pytest.warns(ResourceWarning, match="unclosed <SnapshotStream index=7"):
        del stream
    assert snapshot.closed == 1
    if not hasattr(snapshot, "image"):
        assert snapshot.written.wait(WAIT_S)  # The pump did not keep it alive, and has ended.


def test_a_dropped_stream_closes_later_where_the_snapshot_wants_that(snapshot):
    later = []
    snapshot.close_later = lambda: later.append("closed")
    stream = open_stream(snapshot)
    with pytest.warns(ResourceWarning):
        del stream
    assert later == ["closed"]
    assert snapshot.closed == 0


def test_many_threads_closing_close_once(snapshot):
    stream, start = open_stream(snapshot), threading.Barrier(8)

    def close(n):
        start.wait(WAIT_S)
        stream.close(ValueError(n))

    threads = [threading.Thread(target=close, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    assert snapshot.closed == 1
    assert isinstance(stream.reason, ValueError)


@pytest.mark.parametrize("meta", [None, "7", 7.0, True])
def test_what_is_no_meta_is_refused(snapshot, meta):
    with pytest.raises(TypeError):
        SnapshotStream(meta, snapshot)
    assert snapshot.closed == 0


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_child_reads_and_closes_nothing(snapshot):
    stream = open_stream(snapshot)
    stream.readinto(bytearray(1))
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        answer = b"read"
        try:
            stream.readinto(bytearray(1))
        except ForkedProcess:
            answer = b"refused"
        stream.close()
        del stream
        gc.collect()
        os.write(writer, answer + b" %d" % snapshot.closed)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as answers:
        assert answers.read() == b"refused 0"
    assert os.waitpid(child, 0)[1] == 0
    assert stream.readinto(bytearray(1)) == 1
    stream.close()


@pytest.mark.parametrize("shared", [False, True], ids=["alone", "shared"])
@pytest.mark.parametrize("kind", ["imaged", "written"])
def test_closing_ends_a_transfer_whose_target_takes_nothing(tmp_path, kind, shared):
    snapshot = ImagedSnapshot(tmp_path / "image") if kind == "imaged" else WrittenSnapshot()
    if shared:  # Others read on: the snapshot is not closed with this stream.
        snapshot.close = lambda: None
    near, far = socket.socketpair()
    reason, caught = ValueError("compacted"), []
    stream = open_stream(snapshot)

    def copy():
        try:
            stream.copy_to_fd(near.fileno())
        except ValueError as error:
            caught.append(error)

    copier = threading.Thread(target=copy)
    with near, far:
        copier.start()
        far.recv(1)  # It has begun, and will be waiting for room.
        stream.close(reason)
        copier.join(WAIT_S)
        assert not copier.is_alive()
    assert caught == [reason]
    if kind == "imaged":
        snapshot.image().close()
