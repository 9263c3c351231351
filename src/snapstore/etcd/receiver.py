"""`POST /raft/snapshot`: an etcd leader's snapshot, checked as etcd checks it, and saved as etcd does not.

The order and the words of the answers are those of etcd's `rafthttp.snapshotHandler`. Three things
differ, and each is for the better: the database is checked against its own meta pages, so that one
which ends too early is refused; what is stored already is not read again; and the answer is never
403, since a leader that is told so stops itself. Knows no sockets but through the Exchange, no
threads, and no raft beyond this one message.
"""

from __future__ import annotations

import logging
import threading
from contextlib import contextmanager
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from snapstore.errors import SnapshotExists, SnapshotTruncated, SnapstoreError
from snapstore.etcd import bolt
from snapstore.etcd.handshake import MethodRefused, PeerRefused, check_method, check_peer, own_headers
from snapstore.etcd.messages import (
    MSG_SNAP,
    SNAPSHOT_MESSAGE_SIZE_MAX,
    MessageMalformed,
    decode_snapshot_message,
    snapshot_meta,
)
from snapstore.transfer import Direction

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from snapstore.directory import SnapshotDir
    from snapstore.meta import SnapshotMeta
    from snapstore.stored import SavedSnapshot
    from snapstore.transport.routes import Exchange

logger = logging.getLogger("snapstore.etcd")

#: Of the message before the database, in bytes: etcd's own limit from 3.7.1 on. Ours is lower, and what
#: lies between is told as a failed save, since etcd would take it.
MESSAGE_SIZE_MAX = 64 * 1024 * 1024

#: A leader has one snapshot under way to one member. A second comes from a new leader.
SAVES_MAX = 2

#: A real leader that is told 5xx sends all of it again 100 ms later. This long we let it wait for that
#: answer, which it does patiently: a save that failed will not do better at once.
RETRY_DELAY_S = 5.0

#: Read at a time of a message: memory is taken as bytes come, not as a peer announces them.
_PIECE_SIZE = 256 * 1024

_LENGTH_SIZE = 8


def wait_unless_gone(exchange: Exchange, seconds: float) -> None:
    """Hold an answer back for `seconds`, or until there is nobody any more to have it."""
    exchange.wait_hangup(seconds)


class EtcdReceiver:
    """Takes etcd's snapshots into one directory, from any number of threads.

    `cluster_id` and `member_id` are ours, uint64; without a `member_id` a message to any member is
    taken, as etcd 3.4 does. `on_saved(saved, message)` is called after the save and before the answer,
    with the `raftpb.Message`, so that a node can step it then; an exception there is a 500. It is called
    again where a leader sends what is stored already, as it may have missed the first answer.

    `delay(exchange, seconds)` holds back each 5xx by `retry_delay_s`.
    """

    def __init__(
        self,
        directory: SnapshotDir,
        *,
        cluster_id: int,
        member_id: int | None = None,
        on_saved: Callable[[SavedSnapshot, Any], object] | None = None,
        saves_max: int = SAVES_MAX,
        retry_delay_s: float = RETRY_DELAY_S,
        delay: Callable[[Exchange, float], object] = wait_unless_gone,
    ) -> None:
        if saves_max < 1 or retry_delay_s < 0:
            raise ValueError("saves_max is 1 or more, retry_delay_s is 0 seconds or more")
        self._directory = directory
        self._cluster_id = cluster_id
        self._member_id = member_id
        self._on_saved = on_saved
        self._room = threading.BoundedSemaphore(saves_max)
        self._retry_delay_s = retry_delay_s
        self._delay = delay

    def receive(self, exchange: Exchange) -> None:
        """Answer one request. Raises ConnectionError where the line is to end without an answer."""
        try:
            check_method(exchange.head.method, "POST")
            check_peer(exchange.head.headers, self._cluster_id)
            with self._place():
                exchange.go_on()
                self._take(exchange)
        except PeerRefused as refused:
            logger.warning("refused etcd's snapshot from %s: %s", exchange.peer, refused)
            self._refuse(exchange, refused)
        except (ConnectionError, TimeoutError):
            raise
        except Exception:
            # A leader that hears of it at once sends all of it again at once, whatever the reason.
            logger.exception("etcd's snapshot from %s failed for a reason of our own", exchange.peer)
            self._refuse(exchange, _not_saved("this node failed; its log says why"))
        else:
            exchange.respond(HTTPStatus.NO_CONTENT, headers=own_headers(self._cluster_id))

    def _refuse(self, exchange: Exchange, refused: PeerRefused) -> None:
        if refused.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            self._delay(exchange, self._retry_delay_s)
        refuse(exchange, refused, self._cluster_id)

    @contextmanager
    def _place(self) -> Iterator[None]:
        if not self._room.acquire(blocking=False):
            raise _not_saved("other snapshots are being saved")
        try:
            yield
        finally:
            self._room.release()

    def _take(self, exchange: Exchange) -> None:
        message = self._read_message(exchange)
        # etcd looks at this after the save, and answers 403; for us it is the wrong address, no more.
        if self._member_id is not None and message.to != self._member_id:
            raise _not_processed("cannot process message to mismatch member")
        if message.snapshot.metadata.index == 0:
            return  # To raft this is no snapshot at all, and to etcd an old one.
        try:
            meta = snapshot_meta(message.snapshot)
            saved = self._stored(meta) or self._save(exchange, meta)
        except ConnectionError:
            raise
        except (OSError, SnapstoreError, MessageMalformed) as error:
            raise _not_saved(str(error)) from error
        if saved.index > meta.index:
            return
        logger.info("etcd's snapshot %d from %s: %d bytes", saved.index, exchange.peer, saved.size)
        if self._on_saved is not None:
            try:
                self._on_saved(saved, message)
            except Exception as error:
                raise _not_processed(str(error)) from error

    def _read_message(self, exchange: Exchange) -> Any:
        try:
            size = int.from_bytes(_read(exchange, _LENGTH_SIZE), "big")
            if size > MESSAGE_SIZE_MAX:
                raise MessageMalformed("rafthttp: error limit exceeded")
            if size > SNAPSHOT_MESSAGE_SIZE_MAX:
                raise _not_saved(f"its message has {size} bytes, the limit is {SNAPSHOT_MESSAGE_SIZE_MAX}")
            message = decode_snapshot_message(_read(exchange, size))
        except (MessageMalformed, SnapstoreError, TimeoutError) as error:
            words = "unexpected EOF" if isinstance(error, SnapshotTruncated) else str(error)
            raise PeerRefused(HTTPStatus.BAD_REQUEST, f"failed to decode raft message ({words})") from error
        if message.type != MSG_SNAP:
            raise PeerRefused(HTTPStatus.BAD_REQUEST, "wrong raft message type")
        return message

    def _stored(self, meta: SnapshotMeta) -> SavedSnapshot | None:
        """What is stored and makes this one needless: a newer one, or itself."""
        newest = self._directory.newest(above=meta.index)
        if newest is not None:
            return newest
        saved = self._directory.confirm_sound(meta.index, "an etcd leader sends a good one")
        if saved is not None and saved.meta.term != meta.term:
            words = f"one of term {saved.meta.term} is stored with this index; remove it to have the other"
            raise SnapshotExists(words, saved.path)
        return saved

    def _save(self, exchange: Exchange, meta: SnapshotMeta) -> SavedSnapshot:
        head = read_body(exchange, bolt.HEAD_SIZE)
        if (wanted := bolt.head_size(head)) > len(head):
            head += read_body(exchange, wanted - len(head))
        size = bolt.read_stream_head(head).size
        exchange.body.put_back(head)
        with exchange.registry.watch(Direction.IN, exchange.peer, meta.index, total=size) as transfer:
            try:
                return self._directory.save_from(
                    exchange.body,
                    meta,
                    size=size,
                    progress=transfer.progress,
                    idle_timeout_s=exchange.idle_timeout_s,
                    rate_min=exchange.rate_min,
                )
            except SnapshotExists:
                saved = self._stored(meta)  # Somebody else was quicker with it, or it is no snapshot.
                if saved is None:
                    raise
                transfer.existed = True
                return saved


def refuse(exchange: Exchange, refused: PeerRefused, cluster_id: int) -> None:
    """Answer as Go's `http.Error` does; `cluster_id` is ours, and not for who came by a wrong method."""
    fields = [("Content-Type", "text/plain; charset=utf-8"), ("X-Content-Type-Options", "nosniff")]
    if isinstance(refused, MethodRefused):
        fields.append(("Allow", refused.allowed))
    else:
        fields += own_headers(cluster_id)
    exchange.respond(refused.status, f"{refused.reason}\n".encode("utf-8", "replace"), fields)


def _not_saved(reason: str) -> PeerRefused:
    words = f"failed to save KV snapshot ({reason})"
    return PeerRefused(HTTPStatus.INTERNAL_SERVER_ERROR, words)


def _not_processed(reason: str) -> PeerRefused:
    words = f"failed to process raft message ({reason})"
    return PeerRefused(HTTPStatus.INTERNAL_SERVER_ERROR, words)


def _read(exchange: Exchange, size: int) -> bytes:
    """Exactly `size` bytes of the body; MessageMalformed, in Go's words, where it has fewer."""
    data = read_body(exchange, size)
    if len(data) < size:
        raise MessageMalformed("unexpected EOF" if data else "EOF")
    return data


def read_body(exchange: Exchange, size: int) -> bytes:
    """Return the next `size` bytes of the body; fewer only at its end."""
    data = bytearray()
    piece = memoryview(bytearray(min(size, _PIECE_SIZE)))
    while len(data) < size:
        room = piece[: size - len(data)]
        count = exchange.body.readinto(
            room, idle_timeout_s=exchange.idle_timeout_s, rate_min=exchange.rate_min
        )
        if count == 0:
            break
        data += room[:count]
    return bytes(data)
