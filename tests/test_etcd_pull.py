"""A pull from an etcd server that sends what it should, and from some that do not."""

import os
import socket
import threading

import pytest

from etcd_databases import PAGE_SIZE, database, leaf, store
from etcd_server import (
    BLOB_SIZE,
    WAIT_S,
    EtcdServer,
    blob,
    digest,
    grpc,
    messages,
    nothing_left,
    pull,
    refused,
    sent,
)
from nodes import wait_until
from residue import names
from snapstore import _fastpipe
from snapstore.directory import SnapshotDir
from snapstore.errors import (
    PeerRejected,
    PeerUnreachable,
    PipeClosed,
    SnapshotCorrupt,
    SnapshotExists,
    SnapshotNotFound,
    SnapshotTooLarge,
    SnapshotTruncated,
    TransportError,
)
from snapstore.etcd.pull import EtcdClient, EtcdStatus

#: Some blobs and a bit.
DATABASE = store(7, filler=os.urandom(3 * BLOB_SIZE + 100))

#: Silence is noticed after so long; what answers does it in a fraction.
SILENCE_S = 0.5


@pytest.fixture
def directory(tmp_path):
    with SnapshotDir(tmp_path / "snapshots") as directory:
        yield directory


def test_the_file_is_the_database_and_its_digest_and_its_index_the_revision(directory):
    saved = pull(directory, sent(DATABASE))
    assert (saved.index, saved.meta.term) == (7, 0)
    assert saved.path.read_bytes() == DATABASE + digest(DATABASE)
    assert directory.verify(7).size == len(DATABASE) + 32
    assert names(directory.path) == ["0000000000000007.db", "0000000000000007.json"]


@pytest.mark.parametrize("blob_size", [1, 7, PAGE_SIZE, 5 * PAGE_SIZE, 10**6])
def test_the_server_cuts_as_it_likes(directory, blob_size):
    content = store(3)
    assert pull(directory, sent(content, blob_size=blob_size)).path.read_bytes() == content + digest(content)


def test_the_digest_may_come_in_parts_and_with_the_end_of_the_database(directory):
    trailer = digest(DATABASE)
    said = [blob(DATABASE[:-1], 1), blob(DATABASE[-1:] + trailer[:1]), blob(b""), blob(trailer[1:])]
    assert pull(directory, said).index == 7


def test_unknown_fields_and_a_filled_header_are_taken(directory):
    # 3.6 sends its version along; what is later is not known here.
    first, *others = sent(DATABASE)
    extra = messages.encode(messages.SnapshotResponse(header={"revision": 5}, version="3.6.1"))
    assert pull(directory, [first + extra + b"\xfa\x01\x03new", *others]).index == 7


def test_progress_counts_the_whole_file(directory):
    progress = _fastpipe.Progress()
    with EtcdServer(lambda *_: sent(DATABASE)) as server:
        EtcdClient(server.url).pull(directory, progress=progress)
    assert progress.bytes == len(DATABASE) + 32


def test_the_status_is_an_estimate():
    with EtcdServer(None, revision=41) as server:
        assert EtcdClient(server.url).status() == EtcdStatus("3.4.23", 41, 4096)


FLIPPED = DATABASE[:50_000] + bytes([DATABASE[50_000] ^ 1]) + DATABASE[50_001:]
SHORT = DATABASE[:-PAGE_SIZE]
FOREIGN = database(leaf(3))

#: What a server sends, and what is said of it.
BROKEN = {
    "a bit is wrong": (sent(FLIPPED, trailer=digest(DATABASE)), SnapshotCorrupt, "SHA-256"),
    "the digest is wrong": (sent(DATABASE, trailer=bytes(32)), SnapshotCorrupt, "SHA-256"),
    "nothing comes": ([], SnapshotTruncated, "ended after 0 bytes"),
    "an empty message comes": ([blob(b"")], SnapshotTruncated, "ended after 0 bytes"),
    "it ends after a blob": (list(sent(DATABASE))[:1], SnapshotTruncated, "ended after 32768 bytes"),
    "it ends before the digest": (list(sent(DATABASE))[:-1], SnapshotTruncated, "ended after"),
    "it ends in the digest": (
        sent(DATABASE, trailer=digest(DATABASE)[:-1]),
        SnapshotTruncated,
        "ended after",
    ),
    "the digest is too long": (
        sent(DATABASE, trailer=digest(DATABASE) + b"!"),
        SnapshotCorrupt,
        "more than the .* promised",
    ),
    "bytes follow the digest": (
        [*sent(DATABASE), blob(b"more")],
        SnapshotCorrupt,
        "more than the .* promised",
    ),
    "a blob comes twice": (
        [*list(sent(DATABASE))[:1], *sent(DATABASE)],
        SnapshotCorrupt,
        "says that .* remain",
    ),
    "a blob is missing": (
        [message for place, message in enumerate(sent(DATABASE)) if place != 1],
        SnapshotCorrupt,
        "says that .* remain",
    ),
    "it promises a page more": (
        sent(DATABASE, size=len(DATABASE) + PAGE_SIZE),
        SnapshotCorrupt,
        "says that 0 remain",
    ),
    "the database is cut, and so is its digest": (
        sent(SHORT),
        SnapshotTruncated,
        f"has {len(SHORT)} bytes of",
    ),
    "the database is too long, its digest too": (sent(DATABASE + bytes(512)), SnapshotCorrupt, "512 more"),
    "it is no database": (sent(os.urandom(BLOB_SIZE)), SnapshotCorrupt, "not a bbolt database"),
    "it is no database of etcd": (sent(FOREIGN), SnapshotCorrupt, "not etcd's"),
    "it is no message": ([b"\xff\xff\xff"], TransportError, "does not answer as etcd does"),
    "a message is too large": ([blob(bytes(5 * 2**20))], TransportError, "larger than max"),
    "it promises what no store has": ([blob(b"x", 2**50)], SnapshotTooLarge, "more than the limit"),
    "it promises what no file can have": ([blob(b"x", 2**63)], SnapshotCorrupt, "no file has so many"),
    "it promises all there can be": ([blob(b"x", 2**64 - 1)], SnapshotCorrupt, "no file has so many"),
}


@pytest.mark.parametrize(("said", "error", "words"), BROKEN.values(), ids=BROKEN.keys())
def test_nothing_is_left_of_what_is_broken(directory, said, error, words):
    refused(directory, list(said), error, words)


def test_a_promise_beyond_the_limit_is_refused_before_the_rest(tmp_path):
    def first_only(server, _context):
        yield blob(b"x", 10**6)
        server.hold()

    with (
        SnapshotDir(tmp_path / "snapshots", size_max=10**6) as directory,
        EtcdServer(first_only) as server,
        nothing_left(directory),
        pytest.raises(SnapshotTooLarge),
    ):
        EtcdClient(server.url).pull(directory)


def test_a_stream_without_an_end_is_cut(directory):
    def endless(_server, context):
        yield blob(DATABASE[:BLOB_SIZE], len(DATABASE) - BLOB_SIZE)
        while context.is_active():
            yield blob(bytes(BLOB_SIZE), 0)

    with EtcdServer(endless) as server, nothing_left(directory), pytest.raises(SnapshotCorrupt):
        EtcdClient(server.url).pull(directory)


@pytest.mark.parametrize("count", [0, pytest.param(1, marks=pytest.mark.slow), 3])
def test_a_server_that_falls_silent_is_left(directory, count):
    def silent(server, _context):
        yield from list(sent(DATABASE))[:count]
        server.hold()

    words = f"for 0.5 s, after {count * BLOB_SIZE} bytes"
    with EtcdServer(silent) as server, nothing_left(directory), pytest.raises(PeerUnreachable, match=words):
        EtcdClient(server.url, idle_timeout_s=SILENCE_S, rate_min=0).pull(directory)


def test_messages_without_bytes_are_silence(directory):
    def empty(_server, context):
        while context.is_active():
            yield blob(b"", len(DATABASE))

    with (
        EtcdServer(empty) as server,
        nothing_left(directory),
        pytest.raises(PeerUnreachable, match="too little, for"),
    ):
        EtcdClient(server.url, idle_timeout_s=SILENCE_S, rate_min=0).pull(directory)


@pytest.mark.slow
def test_a_server_that_drips_is_left(directory):
    def dripping(_server, context):
        for start in range(len(DATABASE)):
            if not context.is_active():
                return
            yield blob(DATABASE[start : start + 1], len(DATABASE) - start - 1)

    options = {"idle_timeout_s": SILENCE_S, "rate_min": 10**9}
    with EtcdServer(dripping) as server, nothing_left(directory), pytest.raises(PeerUnreachable):
        EtcdClient(server.url, **options).pull(directory)


@pytest.mark.parametrize(
    ("code", "error"),
    [("UNAVAILABLE", PeerUnreachable), ("INTERNAL", PeerRejected), ("RESOURCE_EXHAUSTED", PeerRejected)],
)
def test_an_error_on_the_way_is_told_in_the_server_s_words(directory, code, error):
    def failing(_server, context):
        yield from list(sent(DATABASE))[:2]
        context.abort(getattr(grpc.StatusCode, code), "etcdserver: the disk is gone")

    with (
        EtcdServer(failing) as server,
        nothing_left(directory),
        pytest.raises(error, match=r"after \d+ bytes of a snapshot: etcdserver: the disk is gone"),
    ):
        EtcdClient(server.url).pull(directory)


def test_a_server_s_words_are_made_fit_to_be_shown(directory):
    def shouting(_server, context):
        yield from list(sent(DATABASE))[:1]
        context.abort(grpc.StatusCode.INTERNAL, "\x1b[2Jgone\n" + "!" * 1000)

    with EtcdServer(shouting) as server, pytest.raises(PeerRejected) as refusal:
        EtcdClient(server.url).pull(directory)
    assert "\ufffd[2Jgone\ufffd!!!" in refusal.value.reason
    assert refusal.value.reason.isprintable()
    assert refusal.value.reason.count("!") < 500


def test_a_server_that_is_stopped_on_the_way(directory):
    def stopping(server, _context):
        yield from list(sent(DATABASE))[:2]
        server.server.stop(None)
        server.hold()

    with (
        EtcdServer(stopping) as server,
        nothing_left(directory),
        pytest.raises(PeerUnreachable, match="bytes of a snapshot"),
    ):
        EtcdClient(server.url, idle_timeout_s=WAIT_S).pull(directory)


def test_nobody_listens(directory):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with nothing_left(directory), pytest.raises(PeerUnreachable, match=rf"127\.0\.0\.1:{port}, asked for"):
        EtcdClient(f"etcd://127.0.0.1:{port}").pull(directory)


def test_who_listens_says_nothing(directory):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = EtcdClient(f"etcd://127.0.0.1:{listener.getsockname()[1]}", call_timeout_s=SILENCE_S)
        with nothing_left(directory), pytest.raises(PeerUnreachable):
            client.pull(directory)


def test_a_server_of_something_else(directory):
    from concurrent.futures import ThreadPoolExecutor

    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with nothing_left(directory), pytest.raises(TransportError, match="it is no etcd"):
        EtcdClient(f"etcd://127.0.0.1:{port}").pull(directory)
    server.stop(0).wait(WAIT_S)


@pytest.mark.parametrize(
    "status",
    [b"\xff", messages.encode(messages.StatusResponse(header={"revision": -1}))],
    ids=["no message", "a negative revision"],
)
def test_a_status_that_cannot_be(directory, status):
    with EtcdServer(None, status=status) as server, pytest.raises(TransportError):
        EtcdClient(server.url).pull(directory)


@pytest.mark.parametrize("option", ["call_timeout_s", "idle_timeout_s"])
def test_a_timeout_that_cannot_be(option):
    with pytest.raises(ValueError, match="above 0 seconds"):
        EtcdClient("etcd://127.0.0.1", **{option: 0})


def test_a_pull_can_be_cancelled(directory):
    progress = _fastpipe.Progress()

    def cancelled(_server, context):
        yield from list(sent(DATABASE))[:2]
        progress.cancel()
        wait_until(lambda: not context.is_active())

    with EtcdServer(cancelled) as server, nothing_left(directory), pytest.raises(PipeClosed):
        EtcdClient(server.url).pull(directory, progress=progress)


class IdleDirectory:
    """Takes no byte, and looks whether the server gets rid of all of them nevertheless."""

    def __init__(self, server_done):
        self._server_done = server_done

    def confirm(self, index):
        raise SnapshotNotFound

    def save_from(self, source, read_meta, **options):
        assert not self._server_done.wait(SILENCE_S), "all of it is in memory"
        raise SnapshotExists("not wanted")


def test_memory_is_the_pipe_s_whatever_the_size():
    server_done = threading.Event()
    size = 96 * 2**20  # A third of a second's worth, where nobody holds the server up.

    def large(_server, _context):
        for done in range(BLOB_SIZE, size + 1, BLOB_SIZE):
            yield blob(bytes(BLOB_SIZE), size - done)
        server_done.set()

    with EtcdServer(large) as server, pytest.raises(SnapshotExists):
        EtcdClient(server.url).pull(IdleDirectory(server_done))
