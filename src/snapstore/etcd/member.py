"""As much of an etcd member as a leader must see before it sends a snapshot.

It answers heartbeats, and tells who appends entries to it that it has none of them, until the leader
finds that only a snapshot will do. It takes no entry, casts no vote and acknowledges nothing but the
snapshots it has, so it must join as a learner: as a voter it would count and never agree.

    POST /raft/snapshot             receiver.py
    POST /raft                      one raft message
    GET  /raft/probing              are you there
    GET  /raft/stream/message/ID    what we say to the member ID, for as long as it listens
    GET  /raft/stream/msgapp/ID     likewise, but a learner appends nothing: only signs of life
    GET  /version                   a cluster whose members do not all tell cannot be upgraded

Without state of its own: terms are the leader's, and its log is what the directory has.
"""

from __future__ import annotations

import json
import logging
import threading
from datetime import datetime, timezone
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from snapstore.errors import SnapshotCorrupt
from snapstore.etcd.handshake import (
    VERSION,
    PeerRefused,
    check_method,
    check_peer,
    format_id,
    own_headers,
    parse_id,
)
from snapstore.etcd.messages import (
    MSG_APP,
    MSG_APP_RESP,
    MSG_HEARTBEAT,
    MSG_HEARTBEAT_RESP,
    MessageMalformed,
    MessageOutline,
    decode,
    encode,
    raft_message,
)
from snapstore.etcd.receiver import EtcdReceiver, read_body, refuse

if TYPE_CHECKING:
    from snapstore.directory import SnapshotDir
    from snapstore.transport.routes import Exchange, Route

logger = logging.getLogger("snapstore.etcd")

#: Of one message outside a snapshot, in bytes: an entry can be as large as a request (1.5 MiB, and etcd
#: advises against more than 10), and entries are sent by the MiB.
RAFT_MESSAGE_SIZE_MAX = 16 * 1024 * 1024

#: What etcd says while it does not know: the cluster's version is its leader's to decide. A member that
#: joins leaves those out who say so, and gives up where one names a version that is not its own.
_CLUSTER_VERSION = "not_decided"

#: A stream that is silent for 5 s is taken for dead; etcd writes three times within that, and so do we.
LINK_HEARTBEAT_S = 5.0 / 3

#: On the stream of messages, a heartbeat from nobody to nobody; on that of appends, a type of 0.
_MESSAGE_HEARTBEAT = encode(raft_message(MSG_HEARTBEAT, to=0, sender=0, term=0))
_APPEND_HEARTBEAT = bytes(8)


class EtcdMember:
    """Answers all that an etcd leader asks of a member, for `SnapshotServer(routes=member.routes)`.

    Further options are those of EtcdReceiver. `link_heartbeat_s` is the time between signs of life on a
    stream, in seconds. May be called from any thread.
    """

    def __init__(
        self,
        directory: SnapshotDir,
        *,
        cluster_id: int,
        member_id: int | None = None,
        link_heartbeat_s: float = LINK_HEARTBEAT_S,
        **options: Any,
    ) -> None:
        self._directory = directory
        self._cluster_id = cluster_id
        self._member_id = member_id
        self._receiver = EtcdReceiver(directory, cluster_id=cluster_id, member_id=member_id, **options)
        self._link_heartbeat_s = link_heartbeat_s
        self._lock = threading.Lock()
        self._streams: dict[int, _Stream] = {}

    @property
    def routes(self) -> dict[str, Route]:
        """Where it is to be mounted."""
        return {"/raft": self.answer, "/version": self.answer}

    def answer(self, exchange: Exchange) -> None:
        """Answer one request."""
        path = exchange.head.target.partition("?")[0]
        try:
            if path == "/raft/snapshot":
                self._receiver.receive(exchange)
            elif path == "/raft/probing":
                now = datetime.now(timezone.utc).isoformat()
                _respond_json(exchange, {"OK": True, "Now": now})
            elif path == "/version":
                check_method(exchange.head.method, "GET")
                _respond_json(exchange, {"etcdserver": VERSION, "etcdcluster": _CLUSTER_VERSION})
            elif path == "/raft":
                self._take_message(exchange)
            elif path.startswith("/raft/stream/"):
                self._stream(exchange, path.removeprefix("/raft/stream/"))
            else:
                raise PeerRefused(HTTPStatus.NOT_FOUND, "404 page not found")
        except PeerRefused as refused:
            logger.warning("refused %s %s from %s: %s", exchange.head.method, path, exchange.peer, refused)
            refuse(exchange, refused, self._cluster_id)

    # What a leader says.

    def _take_message(self, exchange: Exchange) -> None:
        self._check(exchange, "POST")
        exchange.go_on()
        try:
            message = decode(MessageOutline, _whole_body(exchange))
        except MessageMalformed:
            raise PeerRefused(HTTPStatus.BAD_REQUEST, "error unmarshalling raft message") from None
        answer = None if self._is_strange(message.to) else self._reply(message)
        if answer is not None:
            self._say(message, answer)
        exchange.respond(HTTPStatus.NO_CONTENT, headers=own_headers(self._cluster_id))

    def _reply(self, message: Any) -> dict[str, Any] | None:
        """What raft has a follower say to `message` that holds our snapshots and nothing else."""
        if message.type == MSG_HEARTBEAT:
            return {"type": MSG_HEARTBEAT_RESP, "context": message.context or None}
        if message.type != MSG_APP:
            return None
        newest = self._directory.newest()
        index = newest.index if newest is not None else 0
        if message.index > index:
            return {"type": MSG_APP_RESP, "index": message.index, "reject": True, "rejectHint": index}
        if message.index < index:
            return {"type": MSG_APP_RESP, "index": index}
        return None  # Entries that follow our snapshot: a yes would bring more of them, at full speed.

    def _say(self, heard: Any, fields: dict[str, Any]) -> None:
        """Answer on the stream of the one who spoke. Where there is none it speaks again, as raft does."""
        leader = getattr(heard, "from")
        answer = raft_message(fields.pop("type"), to=leader, sender=heard.to, term=heard.term, **fields)
        with self._lock:
            stream = self._streams.get(leader)
        if stream is not None:
            stream.say(encode(answer))

    # What a leader hears.

    def _stream(self, exchange: Exchange, path: str) -> None:
        self._check(exchange, "GET")
        kind, _, name = path.partition("/")
        try:
            listener = parse_id(name)
        except ValueError:
            listener = 0
        if kind not in ("message", "msgapp") or listener == 0:
            raise PeerRefused(HTTPStatus.NOT_FOUND, "404 page not found")
        if self._member_id is not None:
            addressed = exchange.head.headers.get("x-raft-to", "")
            if addressed != format_id(self._member_id):
                raise PeerRefused(HTTPStatus.PRECONDITION_FAILED, "to field mismatch")
        fields = [("X-Server-Version", VERSION), *own_headers(self._cluster_id)]
        stream = _Stream(exchange, self._link_heartbeat_s)
        if kind == "msgapp":
            stream.run(fields, _APPEND_HEARTBEAT)
            return
        with self._lock:
            self._streams[listener] = stream
        try:
            stream.run(fields, _framed(_MESSAGE_HEARTBEAT))
        finally:
            with self._lock:
                if self._streams.get(listener) is stream:
                    del self._streams[listener]

    def _check(self, exchange: Exchange, method: str) -> None:
        check_method(exchange.head.method, method)
        check_peer(exchange.head.headers, self._cluster_id)

    def _is_strange(self, addressed: int) -> bool:
        return self._member_id is not None and addressed != self._member_id


class _Stream:
    """An answer that does not end: messages to one member. Any thread may speak."""

    def __init__(self, exchange: Exchange, heartbeat_s: float) -> None:
        self._exchange = exchange
        self._heartbeat_s = heartbeat_s
        self._lock = threading.Lock()  # One at a time, and none before the head.
        self._open = False

    def run(self, headers: list[tuple[str, str]], heartbeat: bytes) -> None:
        """Send the head, then signs of life until the listener leaves, by an OSError perhaps."""
        with self._lock:
            self._exchange.respond_endless(HTTPStatus.OK, headers)
            self._open = True
        while not self._exchange.wait_hangup(self._heartbeat_s):
            with self._lock:
                if not self._open:
                    return
                self._exchange.send(heartbeat)

    def say(self, message: bytes) -> None:
        """Send `message`; where nobody listens yet, or any more, it is lost, as messages are."""
        with self._lock:
            if not self._open:
                return
            try:
                self._exchange.send(_framed(message))
            except OSError:
                # Half of it may be on the line, so that nothing can follow; and nobody waits for it again.
                self._open = False


def _whole_body(exchange: Exchange) -> bytes:
    try:
        data = read_body(exchange, RAFT_MESSAGE_SIZE_MAX)
    except (SnapshotCorrupt, TimeoutError) as error:
        raise PeerRefused(HTTPStatus.BAD_REQUEST, "error reading raft message") from error
    if not exchange.body.ended:
        raise PeerRefused(HTTPStatus.BAD_REQUEST, "error reading raft message")
    return data


def _respond_json(exchange: Exchange, fields: dict[str, Any]) -> None:
    exchange.respond(HTTPStatus.OK, json.dumps(fields).encode(), [("Content-Type", "application/json")])


def _framed(message: bytes) -> bytes:
    return len(message).to_bytes(8, "big") + message
