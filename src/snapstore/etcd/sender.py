"""`POST /raft/snapshot`, said as an etcd leader says it: a stored database, sent on to a member.

Knows no directory and no raft beyond this one message, which somebody else has made or was sent.

    judge the message, and the meta pages    before anybody is called
    head, message, database                  the database in one call of the C core, without the GIL; what
                                             ends a chunk goes out only where its digest is right
    the member's answer                      after its fsync, read as etcd reads it (`checkPostResponse`)

The body tells its length beforehand. A leader's does not, since Go has a stream there, and members take
both. With a length the database goes as it lies, and one that breaks off is short, not complete.
"""

from __future__ import annotations

from contextlib import nullcontext
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from snapstore import _fastpipe
from snapstore.errors import PeerRejected, SnapshotCorrupt, TransportError
from snapstore.etcd import bolt
from snapstore.etcd.handshake import CLUSTER_VERSION_MIN, VERSION, format_id
from snapstore.etcd.messages import MSG_SNAP, encode, snapshot_meta
from snapstore.stored import StoredSnapshot
from snapstore.transport.answers import Answers
from snapstore.transport.breaks import line_broke, naming
from snapstore.transport.heads import Call, Head

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence
    from contextlib import AbstractContextManager

    from snapstore._fastpipe import Image, Progress, Throttle
    from snapstore.manifest import Manifest
    from snapstore.meta import SnapshotMeta
    from snapstore.stream import SnapshotStream
    from snapstore.transport.dial import Dialer

#: A member waits so long for a sender's next byte, and then it is done with all of them (etcd's
#: `ConnReadTimeout`). So nothing that can take long comes between the head and the last byte.
MEMBER_PATIENCE_S = 5.0

#: A member whose patience ended says so after it has listened once more, as long as before.
_LAST_WORDS_S = 2 * MEMBER_PATIENCE_S

#: What is passed on of a member's reason, in characters.
_WORDS_SIZE_MAX = 500


class EtcdSender:
    """Sends snapshots to etcd members, with what a `SnapshotClient` has. Safe to use from any thread."""

    def __init__(
        self,
        dialer: Dialer,
        answers: Answers,
        idle_timeout_s: float,
        rate_min: float,
        answer_timeout_s: float,
        throttle: Throttle | None = None,
    ) -> None:
        self._dialer = dialer
        self._answers = answers
        self._idle_timeout_s = idle_timeout_s
        self._rate_min = rate_min
        self._answer_timeout_s = answer_timeout_s
        self._throttle = throttle

    def send(
        self,
        url: str,
        source: StoredSnapshot | SnapshotStream,
        message: Any,
        *,
        cluster_id: int,
        peer_urls: Sequence[str] = (),
        verify: bool = True,
        progress: Progress | None = None,
        urgent: bool = True,
    ) -> None:
        """Send `source` to the member whose peer URL is `url`; returns when it is saved there.

        `message` is the `raftpb.Message` of type MsgSnap that goes before the database: what an
        EtcdReceiver was sent, or what `messages.snapshot_message` makes. It says whom it is for and
        on whose behalf it comes (`to`, `from`), and must be of the index and the term of `source`.
        `cluster_id` is theirs; `peer_urls` are those of the one in `from`, so that a member which
        does not know it yet can speak to it. A saved snapshot is not an installed one: what becomes
        of it, the member tells its leader. One that it has no use for it accepts, too.

        The source's bytes must lie where they can be read at random, as those of all stored snapshots
        do, and stay open until the call ends. With `verify` they are proved: by the meta pages of the
        database, which tell its size, before anybody is called; and, of a stored snapshot, by its
        manifest, chunk by chunk, as they go out. Only what a `SnapshotStream` has beyond its meta
        pages nobody can prove.

        Raises SnapshotCorrupt and SnapshotTruncated where the source is not sound, and OSError where
        it cannot be read. The member never has a whole body then, and saves nothing.
        Raises PeerRejected where the member says no, with its words and what to do about them. A
        `status` of 403 says that the sender was removed from the cluster: a leader that is told so
        stops. PeerUnreachable and TransportError are as in `SnapshotClient.send_snapshot`, and so is
        what a stream raises that was closed meanwhile. ValueError for what cannot be sent at all.

        `urgent` is as in `SnapshotClient.send_snapshot`. A member waits MEMBER_PATIENCE_S for each byte,
        and a throttle lets pieces of 256 KiB pass: give this transfer 100 kB/s or more.
        """
        prefix = _prefix(source.meta, message)
        image = _open_image(source)
        proof = _prove(source, image) if verify else None
        fields = [
            ("Content-Length", str(len(prefix) + image.size)),
            ("Content-Type", "application/octet-stream"),
            ("X-Etcd-Cluster-Id", format_id(cluster_id)),
            ("X-Min-Cluster-Version", CLUSTER_VERSION_MIN),
            ("X-Server-From", format_id(getattr(message, "from"))),
            ("X-Server-Version", VERSION),
        ]
        if peer_urls:
            fields.append(("X-Peerurls", ",".join(peer_urls)))
        address = self._dialer.check(url)
        # No token: it is for our own peers.
        call = Call("POST", "/raft/snapshot", [("Host", address.http_host), *fields])
        with self._dialer.connected(url, address) as sock:
            sent = self._send_body(sock, call.head + prefix, image, source, proof, progress, urgent)
            with naming(url):
                patience_s = self._answer_timeout_s if sent else _LAST_WORDS_S
                answer = call.read_answer(sock, patience_s)
                if answer.status != HTTPStatus.NO_CONTENT:
                    raise self._rejection(sock, answer, message, cluster_id)
            if not sent:
                raise TransportError(f"{url} claims to have saved what it was not sent")

    def _send_body(
        self,
        sock: socket.socket,
        opening: bytes,
        image: Image,
        source: StoredSnapshot | SnapshotStream,
        proof: Manifest | None,
        progress: Progress | None,
        urgent: bool,
    ) -> bool:
        """Send `opening` and all of `image`; False where the line broke: the member left, or answered."""
        try:
            _fastpipe.send_words(sock.fileno(), opening, timeout_s=self._idle_timeout_s)
            with _watched(source, progress) as watched:
                _fastpipe.send(
                    image,
                    sock.fileno(),
                    expected=proof.chunk_digests if proof else None,
                    chunk_size=proof.chunk_size if proof else _fastpipe.CHUNK_SIZE_DEFAULT,
                    progress=watched,
                    idle_timeout_s=self._idle_timeout_s,
                    rate_min=self._rate_min,
                    throttle=self._throttle,
                    urgent=urgent,
                )
        except SnapshotCorrupt as error:
            raise type(error)(f"snapshot {source.meta.index}: {error}", error.chunk) from error
        except Exception as error:
            reason = None if isinstance(source, StoredSnapshot) else source.reason
            if reason is not None and reason is not error:
                raise reason from error
            if line_broke(sock, error):
                return False
            raise
        return True

    def _rejection(self, sock: socket.socket, answer: Head, message: Any, cluster_id: int) -> PeerRejected:
        fields = self._answers.read_json(sock, answer)
        said = str(fields.get("message") or fields.get("error") or "no reason given")
        words = said[:_WORDS_SIZE_MAX].removesuffix("\n")
        shown = words if words.isprintable() else ascii(words)
        advice = _advice(answer, words, message, cluster_id)
        return PeerRejected(answer.status, f"{shown}; {advice}" if advice else shown)


def _prefix(meta: SnapshotMeta, message: Any) -> bytes:
    """The message as it goes before the database; ValueError where it is not for this one."""
    if message.type != MSG_SNAP:
        raise ValueError(f"a message of type {MSG_SNAP} (MsgSnap) goes before a snapshot, not {message.type}")
    told = snapshot_meta(message.snapshot)
    if (told.index, told.term) != (meta.index, meta.term):
        raise ValueError(
            f"the message is of index {told.index} and term {told.term}, "
            f"the snapshot of {meta.index} and {meta.term}"
        )
    data = encode(message)
    return len(data).to_bytes(8, "big") + data


def _open_image(source: StoredSnapshot | SnapshotStream) -> Image:
    if isinstance(source, StoredSnapshot):
        return source.image()
    image = source.source
    if not isinstance(image, _fastpipe.Image):
        raise ValueError("a database is sent from where it lies: save it first, this stream passes once")
    return image


def _prove(source: StoredSnapshot | SnapshotStream, image: Image) -> Manifest | None:
    """Look at the meta pages; the manifest that all of it must agree with, where there is one."""
    head = _read(image, bolt.HEAD_SIZE)
    meta = bolt.read_stream_head(_read(image, bolt.head_size(head)))
    bolt.check_size(meta, image.size)
    if not isinstance(source, StoredSnapshot):
        return None
    if source.saved.problem is not None:
        raise SnapshotCorrupt(f"{source.path}: {source.saved.problem}")
    return source.saved.manifest


def _read(image: Image, size: int) -> bytes:
    """The first `size` bytes, or as many as there are."""
    data = bytearray(min(size, image.size))
    return bytes(memoryview(data)[: image.readinto(data, 0)])


def _watched(
    source: StoredSnapshot | SnapshotStream, progress: Progress | None
) -> AbstractContextManager[Progress | None]:
    return nullcontext(progress) if isinstance(source, StoredSnapshot) else source.watched(progress)


def _advice(answer: Head, words: str, message: Any, cluster_id: int) -> str:
    """What to do about an answer, where that is known."""
    member, sender = format_id(message.to), format_id(getattr(message, "from"))
    if answer.status == HTTPStatus.FORBIDDEN and "mismatch" in words:
        return f"the member there is not {member}: look at the URL, and at `to` in the message"
    if answer.status == HTTPStatus.FORBIDDEN:
        return f"the sender {sender} was removed from the cluster: send on behalf of a member of it"
    if words == "incompatible version":
        return f"the etcd there is older than {CLUSTER_VERSION_MIN}, or too new for {VERSION}, as we call us"
    if words == "cluster ID mismatch":
        theirs = answer.headers.get("x-etcd-cluster-id", "")
        return f"it is of the cluster {theirs[:16]!r}, and this was sent to {format_id(cluster_id)!r}"
    if "i/o timeout" in words:
        return f"it waits {MEMBER_PATIENCE_S:g} s for each byte, and a disk or the line here took longer"
    return ""
