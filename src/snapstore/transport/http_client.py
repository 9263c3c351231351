"""The leader's side of the walk, and a follower's pull: one connection for each snapshot.

Blocking calls for any thread; the bytes are moved by the C core without the GIL. Retries are the
caller's: a call ends with the peer's answer or with one error that says why there is none.
"""

from __future__ import annotations

import json
import select
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from snapstore import _fastpipe
from snapstore.errors import PeerRejected, PeerUnreachable, SnapshotCorrupt, TransportError
from snapstore.manifest import MANIFEST_SIZE_MAX, Manifest, digest_text
from snapstore.meta import check_index
from snapstore.transport.address import Address, connect, parse_url
from snapstore.transport.heads import Head, HeadMalformed, read_response, request_head
from snapstore.wire import Offer, check_cluster, pack_data

if TYPE_CHECKING:
    import socket

    from snapstore._fastpipe import Progress
    from snapstore.directory import SnapshotDir
    from snapstore.stored import SavedSnapshot
    from snapstore.stream import SnapshotStream

#: Within one network a connection takes milliseconds; a peer that needs longer is down.
CONNECT_TIMEOUT_S = 5.0

#: Silence on the line, either way, after which the peer counts as gone.
IDLE_TIMEOUT_S = 30.0

#: What the follower may take after the last byte: its fsync of gigabytes, and the node's own step.
ANSWER_TIMEOUT_S = 300.0

#: An answer is a line of JSON; a peer that sends more is not one of ours.
_ANSWER_SIZE_MAX = 1024 * 1024

#: Read at a time of an answer; most have less.
_PIECE_SIZE = 16 * 1024

#: What an answer must have; what a newer follower says besides is passed over.
_ANSWER_TYPES: dict[str, type | tuple[type, ...]] = {
    "index": int,
    "size": int,
    "digest": str,
    "existed": bool,
    "sync_s": (int, float),
}


@dataclass(frozen=True, slots=True)
class SentSnapshot:
    """What the follower answered: the snapshot is saved there. `size` in bytes.

    `existed` tells that it was there before and no byte was sent; `sync_s` is what the follower's
    fsyncs took, in seconds.
    """

    index: int
    size: int
    digest: str
    existed: bool
    sync_s: float


class SnapshotClient:
    """Sends snapshots to followers and fetches them from peers. Safe to use from any thread.

    `cluster` goes with each offer. Timeouts in seconds; they follow progress, so no size is too
    large for them.
    """

    def __init__(
        self,
        *,
        cluster: str = "",
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        idle_timeout_s: float = IDLE_TIMEOUT_S,
        answer_timeout_s: float = ANSWER_TIMEOUT_S,
    ) -> None:
        self.cluster = check_cluster(cluster)
        self.connect_timeout_s = connect_timeout_s
        self.idle_timeout_s = idle_timeout_s
        self.answer_timeout_s = answer_timeout_s

    def send_snapshot(
        self,
        url: str,
        stream: SnapshotStream,
        *,
        chunk_size: int = _fastpipe.CHUNK_SIZE_DEFAULT,
        progress: Progress | None = None,
    ) -> SentSnapshot:
        """Send `stream` to the peer at `url`; returns when the follower has saved it for good.

        Raises PeerRejected with the peer's reason, PeerUnreachable when it cannot be reached or
        leaves or falls silent, TransportError when it does not speak as agreed, and as it is what
        reading the stream raises, or the reason it was closed for. The stream stays open: close it,
        or leave its `with`, whatever happened.
        """
        offer = Offer(stream.meta, stream.size, chunk_size, self.cluster, len(stream.meta.data))
        with self._connected(url) as (sock, address):
            with _naming(url):
                answer = self._offer(sock, address, offer)
                if answer.status != HTTPStatus.CONTINUE:
                    return self._sent(sock, answer, offer)
            # One that said more than "go on" has refused already.
            copied = None if answer.kept else self._send_body(sock, offer, stream, progress)
            patience_s = self.connect_timeout_s if copied is None else self.answer_timeout_s
            with _naming(url):
                sent = self._sent(sock, read_response(sock, answer.kept, patience_s, of="PUT"), offer)
        # Where it exists, another sender was quicker, and whose bytes are there is not our concern.
        if not sent.existed and (copied is None or sent.digest != digest_text(copied.digest)):
            raise TransportError(f"{url} claims to have saved what it was not sent: {sent}")
        return sent

    def list(self, url: str) -> list[dict[str, Any]]:
        """Return what the peer has stored: index, term, size, digest and problem of each."""
        with self._connected(url) as (sock, address), _naming(url):
            listed = self._json(sock, self._request(sock, address, "GET", "/v1/snapshots")).get("snapshots")
        if not isinstance(listed, list) or not all(isinstance(entry, dict) for entry in listed):
            raise TransportError(f"{url} did not answer with a list of snapshots")
        return listed

    def fetch(
        self, url: str, index: int, directory: SnapshotDir, *, progress: Progress | None = None
    ) -> SavedSnapshot:
        """Fetch the peer's snapshot of `index` into `directory`, verified chunk by chunk.

        Raises PeerRejected, PeerUnreachable, SnapshotCorrupt where the bytes are not those of the
        peer's manifest, and what `SnapshotDir.save_from` raises. A failed fetch leaves nothing.
        """
        index = check_index(index)
        target = f"/v1/snapshots/{index}"
        manifest = Manifest.from_bytes(self._get(url, target + "/manifest"))
        if manifest.meta.index != index:
            raise SnapshotCorrupt(f"the peer sent the manifest of index {manifest.meta.index} for {index}")
        with self._connected(url) as (sock, address), _naming(url):
            head = self._request(sock, address, "GET", target)
            body = _fastpipe.Body(sock.fileno(), head.kept, head.body_length)
            return directory.save_from(
                body,
                manifest.meta,
                size=manifest.size,
                expected=manifest,
                progress=progress,
                idle_timeout_s=self.idle_timeout_s,
            )

    # The push.

    def _offer(self, sock: socket.socket, address: Address, offer: Offer) -> Head:
        """Make the offer; the peer's "go on" (100 Continue), or its answer where that is final."""
        headers = [("Host", address.http_host), *offer.headers(), ("Expect", "100-continue")]
        sock.sendall(request_head("PUT", f"/v1/snapshots/{offer.meta.index}", headers))
        return read_response(sock, b"", self.answer_timeout_s, of="PUT", or_continue=True)

    def _send_body(
        self, sock: socket.socket, offer: Offer, stream: SnapshotStream, progress: Progress | None
    ) -> _fastpipe.Copied | None:
        """Send all of `stream`; None where the line broke: the peer left, or answered in the middle."""
        data = pack_data(stream.meta.data)
        if data and offer.size is None:
            data = b"%x\r\n%b\r\n" % (len(data), data)
        try:
            sock.settimeout(self.idle_timeout_s)
            sock.sendall(data)
            with stream.watched(progress) as watched:
                return _fastpipe.send_frames(
                    stream.source,
                    sock.fileno(),
                    size=offer.size,
                    chunk_size=offer.chunk_size,
                    http_chunked=offer.size is None,
                    progress=watched,
                    idle_timeout_s=self.idle_timeout_s,
                )
        except Exception as error:
            # Closed meanwhile, by whoever compacted the log or stopped the store: that is why.
            if stream.reason is not None and stream.reason is not error:
                raise stream.reason from error
            if isinstance(error, (ConnectionError, TimeoutError)) and _line_is_broken(sock):
                return None
            raise

    def _sent(self, sock: socket.socket, answer: Head, offer: Offer) -> SentSnapshot:
        fields = self._json(sock, answer)
        if answer.status not in (HTTPStatus.OK, HTTPStatus.CREATED):
            raise _rejected(answer, fields)
        known: dict[str, Any] = {name: fields.get(name) for name in _ANSWER_TYPES}
        if known["index"] != offer.meta.index or not all(
            isinstance(value, _ANSWER_TYPES[name]) for name, value in known.items()
        ):
            raise TransportError(f"the peer's answer is not one to this offer: {fields}")
        return SentSnapshot(**known)

    # Requests without a body of ours.

    def _get(self, url: str, target: str) -> bytes:
        with self._connected(url) as (sock, address), _naming(url):
            return self._read_all(sock, self._request(sock, address, "GET", target), MANIFEST_SIZE_MAX)

    def _request(self, sock: socket.socket, address: Address, method: str, target: str) -> Head:
        headers = [("Host", address.http_host), ("Connection", "close")]
        sock.sendall(request_head(method, target, headers))
        head = read_response(sock, b"", self.answer_timeout_s, of=method)
        if head.status != HTTPStatus.OK:
            raise _rejected(head, self._json(sock, head))
        return head

    def _read_all(self, sock: socket.socket, head: Head, size_max: int) -> bytes:
        body = _fastpipe.Body(sock.fileno(), head.kept, head.body_length)
        data = bytearray()
        piece = bytearray(min(size_max, _PIECE_SIZE))
        try:
            while count := body.readinto(piece, idle_timeout_s=self.idle_timeout_s):
                data += memoryview(piece)[:count]
                if len(data) > size_max:
                    raise TransportError(f"the peer's answer has more than {size_max} bytes, the limit")
        except SnapshotCorrupt as error:
            raise TransportError("the peer's answer broke off, or is malformed") from error
        return bytes(data)

    def _json(self, sock: socket.socket, head: Head) -> dict[str, Any]:
        text = self._read_all(sock, head, _ANSWER_SIZE_MAX)
        try:
            fields = json.loads(text)
        except (ValueError, RecursionError):
            fields = None
        if isinstance(fields, dict):
            return fields
        return {"error": text[:200].decode("utf-8", "replace") or "no reason given"}

    @contextmanager
    def _connected(self, url: str) -> Iterator[tuple[socket.socket, Address]]:
        address = parse_url(url)
        try:
            sock = connect(address, self.connect_timeout_s)
        except OSError as error:
            raise PeerUnreachable(f"{url} cannot be reached: {error}") from error
        with sock:
            sock.settimeout(self.idle_timeout_s)
            yield sock, address


@contextmanager
def _naming(url: str) -> Iterator[None]:
    """Turn what a line does when it breaks into what the peer at `url` did."""
    try:
        yield
    except HeadMalformed as error:
        raise TransportError(f"{url} does not speak our HTTP: {error}") from error
    except (ConnectionError, TimeoutError) as error:
        raise PeerUnreachable(f"{url} left or fell silent: {error}") from error


def _line_is_broken(sock: socket.socket) -> bool:
    """Whether the peer has spoken, left, or takes no more: if not, it was the KV that failed."""
    line = select.poll()
    line.register(sock, select.POLLIN | select.POLLOUT)
    return [events for _, events in line.poll(0)] != [select.POLLOUT]


def _rejected(head: Head, fields: dict[str, Any]) -> PeerRejected:
    retry_after = head.headers.get("retry-after", "")
    return PeerRejected(
        head.status,
        str(fields.get("error", "no reason given")),
        float(retry_after) if retry_after.isascii() and retry_after.isdigit() else None,
    )
