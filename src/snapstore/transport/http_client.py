"""The leader's side of the walk, and a follower's pull: one connection for each snapshot.

Blocking calls for any thread; the bytes are moved by the C core without the GIL. Retries are the
caller's: a call ends with the peer's answer or with one error that says why there is none.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, NoReturn

from snapstore import _fastpipe
from snapstore.errors import PeerRejected, PeerUnreachable, SnapshotCorrupt, SnapstoreError, TransportError
from snapstore.manifest import MANIFEST_SIZE_MAX, Manifest
from snapstore.meta import check_index
from snapstore.transport.address import Address, connect, parse_url
from snapstore.transport.heads import Head, HeadMalformed, read_response, request_head
from snapstore.wire import Offer, check_cluster, exact_reader, pack_data

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
        leaves or falls silent, and what reading the stream raises. The stream stays open: close it,
        or leave its `with`, whatever happened.
        """
        offer = Offer(stream.meta, stream.size, chunk_size, self.cluster, len(stream.meta.data))
        with self._connected(url) as (sock, address):
            kept = self._offer(sock, address, offer)
            if isinstance(kept, SentSnapshot):
                return kept
            self._send_body(sock, offer, stream, progress)
            answer = read_response(sock, kept, self.answer_timeout_s, of="PUT")
            return self._sent(sock, answer)

    def list(self, url: str) -> list[dict[str, Any]]:
        """Return what the peer has stored: index, term, size, digest and problem of each."""
        answer = self._get_json(url, "/v1/snapshots")
        if not isinstance(answer.get("snapshots"), list):
            raise TransportError(f"{url} did not answer with a list of snapshots")
        return list(answer["snapshots"])

    def fetch(
        self, url: str, index: int, directory: SnapshotDir, *, progress: Progress | None = None
    ) -> SavedSnapshot:
        """Fetch the peer's snapshot of `index` into `directory`, verified chunk by chunk.

        Raises PeerRejected, PeerUnreachable, SnapshotCorrupt where the bytes are not those of the
        peer's manifest, and what `SnapshotDir.save_from` raises. A failed fetch leaves nothing.
        """
        index = check_index(index)
        target = f"/v1/snapshots/{index}"
        manifest = Manifest.from_bytes(self._get(url, target + "/manifest", MANIFEST_SIZE_MAX))
        if manifest.meta.index != index:
            raise SnapshotCorrupt(f"the peer sent the manifest of index {manifest.meta.index} for {index}")
        with self._connected(url) as (sock, address):
            head = self._request(sock, address, "GET", target)
            body = self._body(sock, head)
            if body is None:
                raise TransportError(f"{url} sent no body for snapshot {index}")
            return directory.save_from(
                body,
                manifest.meta,
                size=manifest.size,
                expected=manifest,
                progress=progress,
                idle_timeout_s=self.idle_timeout_s,
            )

    # The push.

    def _offer(self, sock: socket.socket, address: Address, offer: Offer) -> bytes | SentSnapshot:
        """Make the offer; what was read beyond the peer's "go on", or its answer where that is final."""
        headers = [("Host", address.http_host), *offer.headers(), ("Expect", "100-continue")]
        sock.sendall(request_head("PUT", f"/v1/snapshots/{offer.meta.index}", headers))
        answer = read_response(sock, b"", self.answer_timeout_s, of="PUT")
        if answer.status == HTTPStatus.CONTINUE:
            return answer.kept
        return self._sent(sock, answer)

    def _send_body(
        self, sock: socket.socket, offer: Offer, stream: SnapshotStream, progress: Progress | None
    ) -> None:
        sock.settimeout(self.idle_timeout_s)
        data = pack_data(stream.meta.data)
        try:
            if data and offer.size is None:
                data = b"%x\r\n%b\r\n" % (len(data), data)
            sock.sendall(data)
            _fastpipe.send_frames(
                stream.source,
                sock.fileno(),
                size=offer.size,
                chunk_size=offer.chunk_size,
                http_chunked=offer.size is None,
                progress=progress,
                idle_timeout_s=self.idle_timeout_s,
            )
        except SnapstoreError as error:
            # Closed meanwhile, by whoever compacted the log or stopped the store: that is the reason.
            raise stream.reason or error from error
        except (ConnectionError, TimeoutError) as error:
            self._heed_answer(sock, error)

    def _heed_answer(self, sock: socket.socket, error: OSError) -> NoReturn:
        """The line broke while we were sending: a follower that refused has said why."""
        try:
            answer = read_response(sock, b"", self.connect_timeout_s, of="PUT")
        except (OSError, HeadMalformed):
            raise error from None
        self._sent(sock, answer)
        raise TransportError("the peer answered before it had the whole snapshot") from error

    def _sent(self, sock: socket.socket, answer: Head) -> SentSnapshot:
        fields = self._json(sock, answer)
        if answer.status not in (HTTPStatus.OK, HTTPStatus.CREATED):
            raise _rejected(answer, fields)
        try:
            return SentSnapshot(**fields)
        except TypeError:
            raise TransportError(f"the peer's answer is not one of ours: {fields}") from None

    # Requests without a body of ours.

    def _get(self, url: str, target: str, size_max: int) -> bytes:
        with self._connected(url) as (sock, address):
            return self._read_all(sock, self._request(sock, address, "GET", target), size_max)

    def _get_json(self, url: str, target: str) -> dict[str, Any]:
        with self._connected(url) as (sock, address):
            return self._json(sock, self._request(sock, address, "GET", target))

    def _request(self, sock: socket.socket, address: Address, method: str, target: str) -> Head:
        headers = [("Host", address.http_host), ("Connection", "close")]
        sock.sendall(request_head(method, target, headers))
        head = read_response(sock, b"", self.answer_timeout_s, of=method)
        if head.status != HTTPStatus.OK:
            raise _rejected(head, self._json(sock, head))
        return head

    def _body(self, sock: socket.socket, head: Head) -> _fastpipe.Body | None:
        if head.body_length == 0:
            return None
        return _fastpipe.Body(sock.fileno(), head.kept, head.body_length)

    def _read_all(self, sock: socket.socket, head: Head, size_max: int) -> bytes:
        body, length = self._body(sock, head), head.body_length
        if body is None:
            return b""
        if length is None or length > size_max:
            raise TransportError(f"the peer's answer has {length} bytes; the limit is {size_max}")
        return exact_reader(body, self.idle_timeout_s)(length)

    def _json(self, sock: socket.socket, head: Head) -> dict[str, Any]:
        text = self._read_all(sock, head, _ANSWER_SIZE_MAX)
        try:
            fields = json.loads(text or b"{}")
        except (ValueError, RecursionError):
            fields = None
        return fields if isinstance(fields, dict) else {"error": text[:200].decode("utf-8", "replace")}

    @contextmanager
    def _connected(self, url: str) -> Iterator[tuple[socket.socket, Address]]:
        address = parse_url(url)
        try:
            sock = connect(address, self.connect_timeout_s)
        except OSError as error:
            raise PeerUnreachable(f"{url} cannot be reached: {error}") from error
        with sock:
            sock.settimeout(self.idle_timeout_s)
            try:
                yield sock, address
            except HeadMalformed as error:
                raise TransportError(f"{url} does not speak our HTTP: {error}") from error
            except (ConnectionError, TimeoutError) as error:
                raise PeerUnreachable(f"{url} left or fell silent: {error}") from error


def _rejected(head: Head, fields: dict[str, Any]) -> PeerRejected:
    retry_after = head.headers.get("retry-after", "")
    return PeerRejected(
        head.status,
        str(fields.get("error", "no reason given")),
        float(retry_after) if retry_after.isascii() and retry_after.isdigit() else None,
    )
