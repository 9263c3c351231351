"""A transfer that was cut goes on from the last verified chunk, and what was kept is verified again."""

from __future__ import annotations

import contextlib
import http.server
import os
import random
import select
import socket
import struct
import threading
from types import SimpleNamespace

import pytest

from cutting_line import CuttingLine
from nodes import (
    CONTENT,
    META,
    UNIT,
    Follower,
    ImagedSnapshot,
    Impostor,
    RawPeer,
    frames,
    put_head,
    read_head,
    reset_at_close,
    wait_until,
    written,
)
from residue import names
from snapstore import _fastpipe, reception
from snapstore.directory import SnapshotDir
from snapstore.errors import (
    PeerRejected,
    PeerUnreachable,
    SnapshotBusy,
    SnapshotCorrupt,
    SnapshotTooLarge,
    SnapshotTruncated,
    TransportError,
)
from snapstore.meta import SnapshotMeta
from snapstore.stream import SnapshotStream
from snapstore.transport.http import SnapshotClient
from snapstore.transport.patience import Deadlines
from snapstore.wire import pack_data

#: An offer's head, the framing of a few chunks, and HTTP's chunks around them.
OVERHEAD_MAX = 4096

#: A small manifest and two heads.
FETCH_OVERHEAD_MAX = 2048

#: Framing of one chunk: its head and foot, and the line of HTTP's chunk around it.
FRAMING_MAX = 40

#: What a leader is told whose line was cut: nothing, or the follower's last words, if they were quicker.
LINE_BROKE = (PeerUnreachable, PeerRejected)

PART = ".part-0000000000000007"

CHUNKED = {"Content_Length": None, "Transfer_Encoding": "chunked"}

PIECES = [CONTENT[at : at + UNIT] for at in range(0, len(CONTENT), UNIT)]

pytestmark = pytest.mark.usefixtures("nothing_lost")


@pytest.fixture
def line(follower):
    with CuttingLine(follower.url) as line:
        yield line


@pytest.fixture
def imaged(tmp_path):
    """Makes streams of a file that can be read at random."""

    def make(content=CONTENT):
        path = tmp_path / "image"
        path.write_bytes(content)
        return SnapshotStream(META, ImagedSnapshot(path))

    return make


def send(url, stream):
    with stream:
        return SnapshotClient().send_snapshot(url, stream, chunk_size=UNIT)


#: What a follower may take to read back a gigabyte that it has kept, on a disk that others use, too.
READ_BACK_S_MAX = 120.0


def kept_of(follower):
    """How much the follower has kept, when it has done with all that came."""
    wait_until(lambda: not follower.server._crew.connections, READ_BACK_S_MAX)
    path = follower.directory.path / PART
    return path.stat().st_size if path.exists() else 0


def cut(line, follower, stream, chunks, *, reset=False):
    """Send `stream` over a line that is cut in the middle of the chunk after so many; what was kept."""
    line.cut_after(1000 + chunks * (UNIT + FRAMING_MAX), reset=reset)
    with pytest.raises(LINE_BROKE):
        send(line.url, stream)
    line.cut_after(None)
    return kept_of(follower)


def kept_frame(piece, offset):
    return struct.pack(">4sIQI", b"SNPK", len(piece), offset, _fastpipe.crc32c_portable(piece))


def body_after(kept, content=CONTENT):
    """The body of a push that repeats nothing of the first `kept` chunks but their digests."""
    repeated = b"".join(kept_frame(PIECES[number], number * UNIT) for number in range(kept))
    return repeated + frames(content)[kept * (UNIT + 20) :]


def receive(directory, wire, *, meta=META, size=None, data_size=0):
    """Save what `wire` has, frames that then end, into `directory`."""
    near, far = socket.socketpair()
    with near:
        far.sendall(wire)
        far.close()
        with directory.receive(meta, size=size, chunk_size=UNIT, data_size=data_size) as begun:
            source = _fastpipe.Frames(
                _fastpipe.Body(near.fileno(), b"", len(wire)), chunk_size=UNIT, size=size
            )
            return begun.save(source, meta)


def leave(directory, chunks=2, *, meta=META, data_size=0):
    """Leave so many chunks of CONTENT as a line that broke leaves them."""
    with pytest.raises(SnapshotTruncated):
        receive(directory, frames()[: chunks * (UNIT + 20)], meta=meta, data_size=data_size)
    assert (directory.path / reception.partial_name(meta.index)).stat().st_size == chunks * UNIT


@pytest.fixture
def directory(tmp_path):
    with SnapshotDir(tmp_path / "snapshots") as directory:
        yield directory


class TestPush:
    @pytest.mark.parametrize("size_known", [True, False])
    @pytest.mark.parametrize("kind", ["imaged", "written"])
    def test_it_goes_on_from_the_last_verified_chunk(self, follower, line, imaged, kind, size_known):
        def stream():
            return imaged() if kind == "imaged" else written(size_known=size_known)

        kept = cut(line, follower, stream(), 2)
        assert kept == 2 * UNIT
        assert names(follower.directory.path) == [PART, PART + ".json"]
        assert follower.directory.list() == []
        assert send(line.url, stream()).kept == kept
        assert line.passed < len(CONTENT) - kept + OVERHEAD_MAX
        assert names(follower.directory.path) == [f"{7:016x}.db", f"{7:016x}.json"]
        assert follower.directory.verify(7).path.read_bytes() == CONTENT
        assert follower.saved == [7]

    def test_one_stream_may_be_sent_again_after_a_reset(self, follower, line, imaged):
        with imaged() as stream:
            line.cut_after(1000 + UNIT + FRAMING_MAX, reset=True)
            with pytest.raises(LINE_BROKE):
                SnapshotClient().send_snapshot(line.url, stream, chunk_size=UNIT)
            kept = kept_of(follower)
            line.cut_after(None)
            assert SnapshotClient().send_snapshot(line.url, stream, chunk_size=UNIT).kept == kept == UNIT

    def test_it_goes_on_after_a_restart_of_the_follower(self, follower, line, imaged, tmp_path):
        cut(line, follower, imaged(), 1)
        follower.server.close()
        follower.directory.close()
        with Follower(tmp_path / "follower") as again:
            assert send(again.url, imaged()).kept == UNIT
            assert again.directory.verify(7).path.read_bytes() == CONTENT

    def test_bytes_of_another_snapshot_are_found_and_sent_anew(self, follower, line, imaged):
        """Announced alike, and different from the second chunk on, as a leader's new pin may be."""
        cut(line, follower, imaged(), 2)
        other = CONTENT[:UNIT] + os.urandom(len(CONTENT) - UNIT)
        assert send(line.url, imaged(other)).kept == UNIT
        assert follower.directory.verify(7).path.read_bytes() == other

    def test_a_stream_that_can_be_read_once_is_the_callers_to_make_again(self, follower, line):
        cut(line, follower, written(), 2)
        other = os.urandom(len(CONTENT))
        with pytest.raises(PeerRejected) as raised:
            send(follower.url, written(other))
        assert raised.value.status == 416
        assert send(follower.url, written(other)).kept == 0
        assert follower.directory.verify(7).path.read_bytes() == other

    @pytest.mark.parametrize("offset", ["1", "-4096", "4096x", str(len(CONTENT) * 4096), "9" * 21])
    def test_an_offset_that_cannot_be_is_refused(self, imaged, offset):
        def behave(connection):
            read_head(connection)
            connection.sendall(f"HTTP/1.1 100 Continue\r\nSnapstore-Offset: {offset}\r\n\r\n".encode())

        with Impostor(behave) as follower, pytest.raises(TransportError, match="does not speak"):
            send(follower.url, imaged())


class TestKeptFrames:
    """A peer that speaks for itself, to a follower that has kept two chunks."""

    @pytest.fixture
    def follower(self, follower):
        leave(follower.directory)
        return follower

    @staticmethod
    def push(follower, body, *, answered=None, **head):
        head = {"Snapstore_Size": None, "Content_Length": str(len(body)), **head}
        with RawPeer(follower.url) as peer:
            peer.say(put_head(**head))
            if head.get("expect", True):
                told = read_head(peer.socket)
                assert answered is None or f"\r\nSnapstore-Offset: {answered}\r\n".encode() in told
            peer.say(body)
            peer.end()
            heard = peer.hear_all()
        return int(heard.split(b" ")[1]), heard

    def test_the_peer_is_told_what_is_there_and_may_leave_it_out(self, follower):
        assert self.push(follower, body_after(2), answered=2 * UNIT)[0] == 201
        assert follower.directory.verify(7).path.read_bytes() == CONTENT

    def test_it_may_leave_out_less_than_it_could(self, follower):
        assert self.push(follower, body_after(1), answered=2 * UNIT)[0] == 201
        assert follower.directory.verify(7).path.read_bytes() == CONTENT

    @pytest.mark.parametrize("content", [os.urandom(3 * UNIT), os.urandom(100)])
    def test_it_may_send_all_again_even_something_else(self, follower, content):
        assert self.push(follower, frames(content), answered=2 * UNIT)[0] == 201
        assert follower.directory.verify(7).path.read_bytes() == content

    @pytest.mark.parametrize("chunk", [0, 1])
    def test_a_kept_chunk_that_has_rotten_is_named_and_sent_again(self, follower, chunk):
        part = follower.directory.path / PART
        rotten = bytearray(part.read_bytes())
        rotten[chunk * UNIT + 5] ^= 4
        part.write_bytes(rotten)
        status, heard = self.push(follower, body_after(2))
        assert status == 416
        assert f"chunk {chunk}, kept from an earlier attempt".encode() in heard
        assert kept_of(follower) == chunk * UNIT
        assert follower.directory.list() == []
        assert self.push(follower, body_after(chunk))[0] == 201
        assert follower.directory.verify(7).path.read_bytes() == CONTENT

    @pytest.mark.parametrize(
        "body",
        [
            kept_frame(PIECES[0][:-1], 0),  # Not a whole chunk.
            kept_frame(PIECES[0], UNIT),  # Not the next one.
            body_after(2)[:40] + kept_frame(PIECES[2], 2 * UNIT),  # More than was kept.
            frames()[: UNIT + 20] + kept_frame(PIECES[1], UNIT),  # Behind bytes.
            b"SNPX" + body_after(2)[4:],
        ],
    )
    def test_frames_that_may_not_come_save_nothing(self, follower, body):
        assert self.push(follower, body + body_after(2)[40:])[0] == 422
        assert follower.directory.list() == []

    @pytest.mark.slow
    def test_a_body_with_any_bit_of_its_frames_turned_saves_nothing_else(self, follower):
        body = body_after(2)
        for bit in [*range(56 * 8), *range((len(body) - 40) * 8, len(body) * 8)]:
            turned = bytearray(body)
            turned[bit // 8] ^= 1 << bit % 8
            assert self.push(follower, bytes(turned))[0] in (413, 416, 422)
            assert follower.directory.list() == []
            if kept_of(follower) < 2 * UNIT:
                leave(follower.directory)

    def test_a_body_cut_off_at_any_frame_keeps_what_it_had(self, follower):
        body = body_after(2)
        for length in [*range(60), *range(len(body) - 60, len(body))]:
            assert self.push(follower, body[:length], Content_Length=str(len(body)))[0] == 422
            assert kept_of(follower) >= 2 * UNIT
        assert self.push(follower, body)[0] == 201

    @pytest.mark.parametrize("data", [pack_data(b"engine")[:-5], pack_data(b"engine")[:-1] + b"x"])
    def test_what_goes_wrong_before_the_first_chunk_costs_none_that_was_kept(self, follower, data):
        meta = SnapshotMeta(8, 3, META.conf_state)
        with SnapshotDir(follower.directory.path) as directory:
            leave(directory, meta=meta, data_size=6)
        assert self.push(follower, data, index=8, Snapstore_Data_Size="6", Content_Length="1000")[0] == 422
        assert (follower.directory.path / reception.partial_name(8)).stat().st_size == 2 * UNIT

    def test_without_an_expectation_nothing_is_told_and_all_may_come(self, follower):
        assert self.push(follower, frames(), expect=False)[0] == 201
        assert follower.directory.verify(7).path.read_bytes() == CONTENT


def test_digests_are_as_good_as_the_bytes_they_stand_for(tmp_path):
    """A leader that reads slowly sends few bytes meanwhile, and is neither silent nor too slow."""
    content, window_s = bytes(20 * UNIT), 0.2
    kept = b"".join(kept_frame(content[:UNIT], at) for at in range(0, len(content), UNIT))
    with Follower(
        tmp_path / "follower", deadlines=Deadlines(idle_timeout_s=window_s, rate_min=40_000)
    ) as follower:
        with pytest.raises(SnapshotTruncated):
            receive(follower.directory, frames(content)[:-20])
        with RawPeer(follower.url) as peer:
            peer.say(put_head(Snapstore_Size=None, Content_Length=str(len(kept) + 20)))
            read_head(peer.socket)
            line = select.poll()
            line.register(peer.socket, select.POLLIN)
            for at in range(0, len(kept), 20):  # 1,600 bytes/s, for twice the window.
                peer.say(kept[at : at + 20])
                assert not line.poll(12.5), peer.hear()
            peer.say(frames(content)[-20:])
            assert peer.hear()[0] == 201
        assert follower.directory.verify(7).path.read_bytes() == content


def test_a_server_closes_although_much_is_left_to_compare(tmp_path, caplog):
    """Few digests in the socket's buffer stand for many gigabytes to read."""
    size, unit = 2**33, _fastpipe.CHUNK_SIZE_DEFAULT
    zeros = kept_frame(bytes(unit), 0)
    large_disk = SimpleNamespace(f_bavail=2**30, f_blocks=2**30, f_frsize=4096)
    with Follower(tmp_path / "follower", limits={"statvfs": lambda _: large_disk}) as follower:
        with (
            contextlib.suppress(PeerRejected),
            follower.directory.receive(META, size=size, chunk_size=unit),
        ):
            os.truncate(follower.directory.path / PART, size)
            raise PeerRejected(503, "a line that broke")
        with RawPeer(follower.url) as peer:
            peer.say(put_head(Snapstore_Size=str(size), Snapstore_Chunk_Size=str(unit), **CHUNKED))
            assert b"Snapstore-Offset: %d\r\n" % size in read_head(peer.socket)
            for at in range(0, size, unit):
                peer.say(b"14\r\n", zeros[:8] + at.to_bytes(8, "big") + zeros[16:], b"\r\n")
            wait_until(lambda: follower.server.receiver._saves and follower.server.receiver._saves[0].bytes)
            follower.server.close()
    assert "cancelled" in caplog.text


class TestKeeping:
    def test_a_wrong_chunk_is_not_kept_and_those_before_it_are(self, directory):
        wire = bytearray(frames())
        wire[2 * (UNIT + 20) + 100] ^= 1
        with pytest.raises(SnapshotCorrupt, match="chunk 2"):
            receive(directory, bytes(wire))
        assert (directory.path / PART).stat().st_size == 2 * UNIT

    def test_a_wrong_whole_keeps_nothing(self, directory):
        """Each chunk was right and all together are not: nobody knows which one lies."""
        wire = bytearray(frames())
        wire[-1] ^= 1
        with pytest.raises(SnapshotCorrupt, match="of the whole"):
            receive(directory, bytes(wire))
        assert names(directory.path) == []

    def test_what_is_too_large_keeps_nothing(self, tmp_path):
        with SnapshotDir(tmp_path / "small", size_max=UNIT) as directory:
            with pytest.raises(SnapshotTooLarge):
                receive(directory, frames())
            assert names(directory.path) == []

    def test_a_silent_peer_is_told_and_its_chunks_are_kept(self, tmp_path):
        with Follower(tmp_path / "follower", deadlines=Deadlines(idle_timeout_s=0.15)) as follower:
            with RawPeer(follower.url) as peer:
                peer.say(put_head())
                peer.hear_continue()
                peer.say(frames()[: UNIT + 100])
                assert peer.hear()[0] == 408
            assert kept_of(follower) == UNIT

    @pytest.mark.parametrize(
        "meta", [SnapshotMeta(7, 4, META.conf_state), SnapshotMeta(7, 3)], ids=["term", "conf state"]
    )
    def test_another_snapshot_of_the_index_begins_anew(self, directory, meta):
        leave(directory)
        assert receive(directory, frames(), meta=meta).meta == meta

    def test_another_size_begins_anew(self, directory):
        leave(directory)
        with directory.receive(META, size=len(CONTENT), chunk_size=UNIT) as begun:
            assert begun.kept == 0
        assert names(directory.path) == []

    def test_a_note_that_cannot_be_read_begins_anew(self, directory):
        leave(directory)
        (directory.path / (PART + ".json")).write_bytes(b"{}")
        with directory.receive(META, size=None, chunk_size=UNIT) as begun:
            assert begun.kept == 0

    def test_one_chunk_leaves_nothing_to_go_on_with(self, directory):
        with (
            pytest.raises(SnapshotTruncated),
            directory.receive(META, size=UNIT, chunk_size=UNIT) as begun,
        ):
            begun.save(b"short", META)
        assert names(directory.path) == []

    def test_only_one_saver_goes_on_with_it(self, directory):
        leave(directory)
        with (
            SnapshotDir(directory.path) as other,
            directory.receive(META, size=None, chunk_size=UNIT) as begun,
        ):
            assert begun.kept == 2 * UNIT
            with (
                pytest.raises(SnapshotBusy, match="another process"),
                other.receive(META, size=None, chunk_size=UNIT),
            ):
                pass
            # Nor does a cleaner take it away.
            assert other.remove_orphans() == []
            os.utime(directory.path / PART, (0, 0))
            assert other.remove_orphans() == []

    @pytest.mark.parametrize("kind", ["link", "dangling link", "fifo", "directory"])
    def test_what_is_not_ours_under_its_name_is_neither_followed_nor_replaced(
        self, directory, tmp_path, kind
    ):
        path, other = directory.path / PART, tmp_path / "other"
        other.write_bytes(b"other")
        if kind == "fifo":
            os.mkfifo(path)
        elif kind == "directory":
            path.mkdir()
        else:
            path.symlink_to(other if kind == "link" else tmp_path / "nowhere")
        with (
            pytest.raises(OSError, match=r"File exists|symbolic links|Is a directory"),
            directory.receive(META, size=None, chunk_size=UNIT),
        ):
            pass
        assert other.read_bytes() == b"other"
        assert not (tmp_path / "nowhere").exists()

    @pytest.mark.parametrize("noted", [False, True])
    def test_a_second_name_of_another_file_is_never_written_to(self, directory, tmp_path, noted):
        other = tmp_path / "other"
        if noted:
            leave(directory)
            (directory.path / PART).rename(other)
        else:
            other.write_bytes(bytes(2 * UNIT))
        before = other.read_bytes()
        (directory.path / PART).hardlink_to(other)
        if noted:
            with pytest.raises(FileExistsError), directory.receive(META, size=None, chunk_size=UNIT):
                pass
        else:
            assert receive(directory, frames()).size == len(CONTENT)
        assert other.read_bytes() == before


class TestSweeping:
    def test_those_before_the_one_that_comes_go(self, directory):
        leave(directory, meta=SnapshotMeta(5))
        with directory.receive(META, size=None, chunk_size=UNIT):
            assert names(directory.path) == [PART, PART + ".json"]

    def test_those_of_stored_indexes_go(self, directory):
        leave(directory, meta=SnapshotMeta(7))
        leave(directory, meta=SnapshotMeta(5))
        directory.save_from(b"newer", 6)
        assert directory.remove_orphans() == [reception.partial_name(5), reception.note_name(5)]
        directory.save_from(b"newer", 7)
        directory.remove_orphans()
        assert not any(name.startswith(".part-") for name in names(directory.path))

    def test_old_ones_go(self, directory):
        leave(directory)
        changed_s = (directory.path / PART).stat().st_mtime
        with SnapshotDir(directory.path) as again:
            assert again.remove_orphans() == []
        os.utime(directory.path / PART, (changed_s, changed_s - reception.PARTIAL_AGE_MAX_S - 60))
        with SnapshotDir(directory.path):
            assert names(directory.path) == []

    def test_the_youngest_stay(self, directory):
        for age, index in enumerate((2, 4, 1, 3)):
            path = directory.path / reception.partial_name(index)
            path.write_bytes(bytes(UNIT))
            (directory.path / reception.note_name(index)).write_bytes(b"{}")
            os.utime(path, (0, path.stat().st_mtime - age))
        directory.remove_orphans()
        kept = [reception.partial_name(index) for index in (2, 4)]
        assert [name for name in names(directory.path) if not name.endswith(".json")] == kept

    def test_a_note_alone_goes_and_what_is_not_ours_stays(self, directory):
        leave(directory)
        (directory.path / PART).unlink()
        for name in (".part-7", ".part-000000000000000G", PART + ".txt"):
            (directory.path / name).write_bytes(b"")
        assert directory.remove_orphans() == [PART + ".json"]
        assert len(names(directory.path)) == 3


class TestFetch:
    @pytest.fixture
    def holder(self, follower):
        follower.directory.save_from(CONTENT, META, chunk_size=UNIT)
        return follower

    def test_it_goes_on_behind_what_was_verified(self, holder, directory):
        leave_as_noted(directory, 2)
        fetched = SnapshotClient().fetch(holder.url, 7, directory)
        assert fetched.path.read_bytes() == CONTENT
        assert names(directory.path) == [f"{7:016x}.db", f"{7:016x}.json"]

    @staticmethod
    def fetched(holder, directory):
        """Fetch it, and return how many of its bytes that took; its manifest and the heads are less."""
        progress = _fastpipe.Progress()
        client = SnapshotClient()
        with CuttingLine(holder.url) as line:
            saved = client.fetch(line.url, 7, directory, progress=progress)
        assert saved.path.read_bytes() == CONTENT
        assert progress.bytes >= len(CONTENT)
        (transfer,) = client.registry.transfers()
        assert (transfer.bytes, transfer.total) == (len(CONTENT), len(CONTENT))
        return line.returned

    @pytest.mark.parametrize("newest", [None, 9])
    def test_only_the_rest_is_asked_for(self, holder, directory, newest):
        if newest is not None:
            directory.save_from(b"newer", newest)
        leave_as_noted(directory, 2)
        assert self.fetched(holder, directory) < len(CONTENT) - 2 * UNIT + FETCH_OVERHEAD_MAX

    def test_nothing_is_fetched_as_well(self, follower, directory):
        follower.directory.save_from(b"", META)
        assert SnapshotClient().fetch(follower.url, 7, directory).size == 0

    def test_what_has_rotten_is_fetched_again(self, holder, directory):
        leave_as_noted(directory, 3)
        part = directory.path / PART
        part.write_bytes(part.read_bytes()[: UNIT + 9] + b"rotten" + part.read_bytes()[UNIT + 15 :])
        assert 2 * UNIT < self.fetched(holder, directory) < len(CONTENT) - UNIT + FETCH_OVERHEAD_MAX

    @pytest.mark.parametrize("reset", [False, True])
    @pytest.mark.parametrize("chunks", [1, 2, 3])
    def test_a_cut_keeps_what_came(self, holder, directory, chunks, reset):
        cut_after = chunks * UNIT + 5
        broken = PeerUnreachable if reset else SnapshotTruncated
        with Serving(holder.directory, cut_after, reset=reset) as url, pytest.raises(broken):
            SnapshotClient().fetch(url, 7, directory)
        # A reset overtakes what the socket still has.
        left = len(CONTENT) - chunks * UNIT + FETCH_OVERHEAD_MAX
        assert self.fetched(holder, directory) < (left if not reset else len(CONTENT) + FETCH_OVERHEAD_MAX)

    def test_a_peer_that_knows_no_ranges_sends_all(self, holder, directory):
        leave_as_noted(directory, 2)
        with Serving(holder.directory) as url:
            assert SnapshotClient().fetch(url, 7, directory).path.read_bytes() == CONTENT


class Serving:
    """A plain HTTP server that knows no ranges: of snapshot 7, which is CONTENT, it sends so many bytes."""

    def __init__(self, directory, cut_after=None, *, reset=False):
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                is_manifest = self.path.endswith("manifest")
                body = (directory.path / f"{7:016x}.json").read_bytes() if is_manifest else CONTENT
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body if is_manifest else body[:cut_after])
                if reset and not is_manifest:
                    reset_at_close(self.connection)
                    os.close(self.connection.detach())  # `close` would take leave first.

            def log_message(self, *args):
                pass

        self._server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})

    def __enter__(self):
        self._thread.start()
        return f"http://127.0.0.1:{self._server.server_port}"

    def __exit__(self, *exception):
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def leave_as_noted(directory, chunks):
    """Leave so many chunks as a fetch of CONTENT leaves them, which knows the size."""
    with pytest.raises(SnapshotTruncated):
        receive(directory, frames()[: chunks * (UNIT + 20)], size=len(CONTENT))


@pytest.mark.slow
def test_200_cuts_cost_less_than_a_chunk_each(tmp_path):
    """One transfer of 1 GiB: the line is cut, the follower and the leader start again, at random."""
    size, unit = 2**30, _fastpipe.CHUNK_SIZE_DEFAULT
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    print(f"seed {seed}")
    with SnapshotDir(tmp_path / "leader") as stored:
        stored.save_from(_Random(size, chance.randbytes(2**20)), META, size=size)
        reached, follower, costs = 0, Follower(tmp_path / "follower"), []
        with CuttingLine(follower.url) as line:
            for place in sorted(chance.randrange(size) for _ in range(200)):
                if chance.random() < 0.1:
                    follower.__exit__()
                    follower = Follower(tmp_path / "follower")
                line.cut_after(
                    max(0, place - reached) + OVERHEAD_MAX, reset=chance.random() < 0.5, url=follower.url
                )
                with (
                    pytest.raises(LINE_BROKE),
                    SnapshotStream(META, stored.open(7, verify=False)) as stream,
                ):
                    SnapshotClient().send_snapshot(line.url, stream)
                kept = kept_of(follower)
                costs.append(line.passed - (kept - reached))
                reached = kept
            line.cut_after(None, url=follower.url)
            with SnapshotStream(META, stored.open(7, verify=False)) as stream:
                sent = SnapshotClient().send_snapshot(line.url, stream)
        with follower:
            assert sent.kept == reached
            assert max(costs) < unit + OVERHEAD_MAX + size // unit * FRAMING_MAX
            mean, most = sum(costs) / 200 / unit, max(costs) / unit
            print(f"200 cuts: {mean:.2f} chunks sent again a cut, {most:.2f} at most")
            assert follower.directory.verify(7).manifest == stored.stat(7).manifest


class _Random:
    """A reader of so many bytes, no two blocks alike."""

    def __init__(self, size, block):
        self._left, self._block, self._number = size, block, 0

    def read(self, size):
        self._number += 1
        piece = self._number.to_bytes(8, "big") + self._block[8 : min(size, self._left, len(self._block))]
        self._left -= len(piece)
        return piece if self._left >= 0 else b""
