"""The leader's side of the walk, and a follower's pull: one connection for each snapshot.

Blocking calls for any thread; the bytes are moved by the C core without the GIL. When an attempt failed,
retry.py says whether there is another; a call ends with the peer's answer, or with the error of its
last attempt.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from snapstore import _fastpipe
from snapstore.errors import PeerRejected, SnapshotCorrupt, SnapshotTruncated, TransportError
from snapstore.manifest import MANIFEST_SIZE_MAX, Manifest, digest_text
from snapstore.meta import check_index
from snapstore.retry import RetryPolicy, is_passing
from snapstore.transfer import Direction, Transfer
from snapstore.transfers import TransferRegistry
from snapstore.transport.address import Address
from snapstore.transport.answers import Answers, SentSnapshot, believed
from snapstore.transport.breaks import line_broke, naming
from snapstore.transport.dial import Dialer
from snapstore.transport.heads import Head, read_response, request_head
from snapstore.transport.patience import READ_BACK_RATE_MIN, Deadlines
from snapstore.wire import Offer, check_cluster, entity_tag, pack_data, parse_kept

if TYPE_CHECKING:
    import socket

    from typing_extensions import Self

    from snapstore._fastpipe import Progress, Throttle
    from snapstore.directory import SnapshotDir
    from snapstore.stored import SavedSnapshot, StoredSnapshot
    from snapstore.stream import SnapshotStream
    from snapstore.transport.severance import Severance
    from snapstore.transport.tls import TlsContext

#: A library tries once: a raft engine around it tries again by itself, and two loops would multiply.
_ONCE = RetryPolicy(attempts_max=1)


@dataclass
class _Push:
    """A snapshot on its way to one peer, in one attempt or several."""

    url: str
    offer: Offer
    stream: SnapshotStream
    transfer: Transfer
    urgent: bool
    body_begun: bool = False

    @property
    def repeatable(self) -> bool:
        """Whether another attempt would send all of it; raises what the stream was closed for."""
        return not self.body_begun or self.stream.rereadable


class SnapshotClient:
    """Sends snapshots to followers and fetches them from peers. Safe to use from any thread.

    `cluster` goes with each offer. `deadlines` say what each stage may take; no size is too large for
    them. With `retry`, a call whose attempt failed for the moment tries again by itself, behind what
    the receiver has verified and kept; `progress` then counts the bytes of all attempts, and to cancel it
    ends the waits between them, too. Without, each call is one attempt.

    `throttle` says how fast all that is sent may go, together with whoever else was given it; None: as fast
    as it does. What is fetched keeps to the throttle of the directory that it is saved in.

    `tls` (see `transport.tls`: `client_context`, and `ReloadingContext` for files that change) is for
    the peers whose URL is https. `token` goes with each request, but in the clear to this machine only,
    unless `token_in_clear` says that the network between keeps secrets. `registry`, the node's, shows
    its transfers; None: one of its own.
    """

    def __init__(
        self,
        *,
        cluster: str = "",
        deadlines: Deadlines | None = None,
        retry: RetryPolicy | None = None,
        throttle: Throttle | None = None,
        tls: TlsContext | None = None,
        token: str | None = None,
        token_in_clear: bool = False,
        registry: TransferRegistry | None = None,
    ) -> None:
        self.cluster = check_cluster(cluster)
        self.deadlines = deadlines or Deadlines()
        self.retry = retry or _ONCE
        self._throttle = throttle
        self.registry = registry or TransferRegistry()
        self._answers = Answers(self.deadlines)
        self._dialer = Dialer(self.deadlines, tls, token, token_in_clear=token_in_clear)

    def severed_by(self, severance: Severance) -> Self:
        """Return a client that does as this one, for a single call whose lines `severance` can cut."""
        twin = copy.copy(self)
        twin._dialer = self._dialer.severed_by(severance)
        return twin

    def check_url(self, url: str) -> None:
        """Raise ValueError where `url` is none, or this client must not speak to it.

        A client with TLS never speaks without it to another machine, whatever the URL says. Each
        call that takes a URL begins with this.
        """
        self._dialer.check(url)

    def send_snapshot(
        self,
        url: str,
        stream: SnapshotStream,
        *,
        chunk_size: int = _fastpipe.CHUNK_SIZE_DEFAULT,
        progress: Progress | None = None,
        message: bytes = b"",
        urgent: bool = True,
    ) -> SentSnapshot:
        """Send `stream` to the peer at `url`; returns when the follower has saved it for good.

        `message` is what a raft engine wants told along with it; the peer's `on_offer` finds it in the
        offer. ValueError beyond `wire.MESSAGE_SIZE_MAX` bytes. `urgent=False` is for what may take longer,
        as to rebalance: beside urgent transfers of the same throttle it has no more than an eighth.

        Raises PeerRejected with the peer's reason, PeerUnreachable when it cannot be reached or
        leaves or falls silent, TransportError when it does not speak as agreed, and as it is what
        reading the stream raises, or the reason it was closed for. The stream stays open: close it,
        or leave its `with`, whatever happened.

        After a break, send the same snapshot again, in the same stream or a new one: the transfer
        goes on behind what the follower has verified and kept. Both sides read that part again, and
        compare digests in place of the bytes.
        """
        offer = Offer(stream.meta, stream.size, chunk_size, self.cluster, len(stream.meta.data), message)
        with (
            stream.watched(progress) as watched,
            self.registry.watch(
                Direction.OUT, url, offer.meta.index, total=stream.size, progress=watched
            ) as transfer,
        ):
            push = _Push(url, offer, stream, transfer, urgent)
            try:
                return self.retry.run(
                    lambda: self._push_twice(push),
                    watched,
                    f"snapshot {offer.meta.index} to {url}",
                    passing=lambda error: is_passing(error) and push.repeatable,
                )
            except TransportError as error:
                if stream.reason is not None:  # Closed while it waited for the next attempt.
                    raise stream.reason from error
                raise

    def send_etcd(
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
        """Send `source`, a database of etcd's, to the etcd member at `url`: `EtcdSender.send`.

        Raises what that does, and MissingExtra where the extra `etcd` is not installed.
        """
        # From above, and it needs an extra: so not before somebody calls this.
        from snapstore.etcd.sender import EtcdSender

        limits = self.deadlines
        sender = EtcdSender(
            self._dialer,
            self._answers,
            limits.idle_timeout_s,
            limits.rate_min,
            limits.fsync_timeout_s,
            self._throttle,
        )
        with self.registry.watch(
            Direction.OUT, url, source.meta.index, total=source.size, progress=progress
        ) as transfer:
            sender.send(
                url,
                source,
                message,
                cluster_id=cluster_id,
                peer_urls=peer_urls,
                verify=verify,
                progress=transfer.progress,
                urgent=urgent,
            )

    def list(self, url: str) -> list[dict[str, Any]]:
        """Return what the peer has stored: index, term, size, digest and problem of each."""

        return [*self._list(url, "snapshots")]

    def list_transfers(self, url: str) -> Sequence[dict[str, Any]]:
        """Return the peer's transfers, as `Transfer.to_json`: those under way, then the last that ended."""
        return self._list(url, "transfers")

    def fetch(
        self,
        url: str,
        index: int,
        directory: SnapshotDir,
        *,
        digest: str | None = None,
        progress: Progress | None = None,
        urgent: bool = True,
    ) -> SavedSnapshot:
        """Fetch the peer's snapshot of `index` into `directory`, verified chunk by chunk.

        `digest`, as in `SavedSnapshot.digest`, is what its whole must have, where that is known.
        Raises PeerRejected, PeerUnreachable, SnapshotCorrupt where the bytes are not those of the
        peer's manifest, and what `SnapshotDir.save_from` raises. Fetching again after a break goes on
        behind what was verified and kept. `urgent` is as in `SnapshotDir.save_from`.
        """
        index = check_index(index)
        with self.registry.watch(Direction.IN, url, index, progress=progress) as transfer:
            return self.retry.run(
                lambda: self._pull(url, directory, digest, transfer, urgent),
                transfer.progress,
                f"snapshot {index} from {url}",
                # The line ended too early; what came of it is kept.
                passing=lambda error: is_passing(error) or isinstance(error, SnapshotTruncated),
            )

    # The pull.

    def _pull(
        self, url: str, directory: SnapshotDir, digest: str | None, transfer: Transfer, urgent: bool
    ) -> SavedSnapshot:
        index, progress = transfer.index, transfer.progress
        transfer.begin_attempt()
        target = f"/v1/snapshots/{index}"
        manifest = Manifest.from_bytes(self._get(url, target + "/manifest"))
        if manifest.meta.index != index:
            raise SnapshotCorrupt(f"the peer sent the manifest of index {manifest.meta.index} for {index}")
        if digest not in (None, digest_text(manifest.digest)):
            raise SnapshotCorrupt(f"the peer has another snapshot {index} than the one of {digest}")
        transfer.total = manifest.size
        with directory.receive(
            manifest.meta,
            size=manifest.size,
            chunk_size=manifest.chunk_size,
            data_size=len(manifest.meta.data),
        ) as reception:
            reception.check(manifest, progress)
            with self._dialer.connected(url) as (sock, address), naming(url):
                head = self._request(sock, address, "GET", target, _range_headers(manifest, reception.kept))
                if head.status != HTTPStatus.PARTIAL_CONTENT:
                    reception.kept = 0
                body = _fastpipe.Body(sock.fileno(), head.kept, head.body_length)
                transfer.begin_attempt(reception.kept)
                return reception.save(
                    body,
                    manifest.meta,
                    expected=manifest,
                    progress=progress,
                    idle_timeout_s=self.deadlines.idle_timeout_s,
                    rate_min=self.deadlines.rate_min,
                    urgent=urgent,
                )

    # The push.

    def _push_twice(self, push: _Push) -> SentSnapshot:
        """One attempt; at once another where it failed for what the peer has thrown away meanwhile."""
        try:
            return self._push(push)
        except PeerRejected as rejected:
            # It kept bytes of another snapshot that was announced alike; they are gone now.
            if rejected.status != HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE or not push.repeatable:
                raise
        return self._push(push)

    def _push(self, push: _Push) -> SentSnapshot:
        push.transfer.begin_attempt()
        with self._dialer.connected(push.url) as (sock, address):
            with naming(push.url):
                answer = self._offer(sock, address, push.offer)
                if answer.status != HTTPStatus.CONTINUE:
                    sent = believed(push.url, self._answers.read_sent(sock, answer, push.offer), None)
                    push.transfer.existed = True
                    return sent
                kept = parse_kept(answer.headers, push.offer)
            # One that said more than "go on" has refused already.
            copied = None if answer.kept else self._send_body(sock, push, kept)
            patience_s = self.deadlines.connect_timeout_s
            if copied:
                patience_s = self.deadlines.fsync_timeout_s + kept / READ_BACK_RATE_MIN
            with naming(push.url):
                answer = read_response(sock, answer.kept, patience_s, of="PUT")
                sent = self._answers.read_sent(sock, answer, push.offer, kept)
        return believed(push.url, sent, copied)

    def _offer(self, sock: socket.socket, address: Address, offer: Offer) -> Head:
        """Make the offer; the peer's "go on" (100 Continue), or its answer where that is final."""
        headers = [*self._dialer.headers(address), *offer.headers(), ("Expect", "100-continue")]
        sock.sendall(request_head("PUT", f"/v1/snapshots/{offer.meta.index}", headers))
        return read_response(sock, b"", self.deadlines.offer_timeout_s, of="PUT", or_continue=True)

    def _send_body(self, sock: socket.socket, push: _Push, kept: int) -> _fastpipe.Copied | None:
        """Send all of the stream; None where the line broke: the peer left, or answered in the middle."""
        stream, data = push.stream, pack_data(push.stream.meta.data)
        patience_s = self.deadlines.idle_timeout_s + kept / READ_BACK_RATE_MIN
        push.body_begun = True
        try:
            sock.settimeout(patience_s)
            if data:
                sock.sendall(b"%x\r\n%b\r\n" % (len(data), data))
            return _fastpipe.send_frames(
                stream.source,
                sock.fileno(),
                size=push.offer.size,
                chunk_size=push.offer.chunk_size,
                kept=kept,
                http_chunked=True,
                progress=push.transfer.progress,
                idle_timeout_s=patience_s,
                rate_min=self.deadlines.rate_min,
                throttle=self._throttle,
                urgent=push.urgent,
            )
        except Exception as error:
            # Closed meanwhile, by whoever compacted the log or stopped the store: that is why.
            if stream.reason is not None and stream.reason is not error:
                raise stream.reason from error
            if line_broke(sock, error):
                return None
            raise

    # Requests without a body of ours.

    def _list(self, url: str, kind: str) -> Sequence[dict[str, Any]]:
        def attempt() -> Any:
            with self._dialer.connected(url) as (sock, address), naming(url):
                head = self._request(sock, address, "GET", f"/v1/{kind}")
                return self._answers.read_json(sock, head).get(kind)

        listed = self.retry.run(attempt, _fastpipe.Progress(), f"the list of {url}")
        if not isinstance(listed, list) or not all(isinstance(entry, dict) for entry in listed):
            raise TransportError(f"{url} did not answer with a list of {kind}")
        return listed

    def _get(self, url: str, target: str) -> bytes:
        with self._dialer.connected(url) as (sock, address), naming(url):
            return self._answers.read_all(
                sock, self._request(sock, address, "GET", target), MANIFEST_SIZE_MAX
            )

    def _request(
        self,
        sock: socket.socket,
        address: Address,
        method: str,
        target: str,
        more: Sequence[tuple[str, str]] = (),
    ) -> Head:
        headers = [*self._dialer.headers(address), ("Connection", "close"), *more]
        sock.sendall(request_head(method, target, headers))
        head = read_response(sock, b"", self.deadlines.offer_timeout_s, of=method)
        if head.status not in (HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT):
            raise self._answers.read_rejection(sock, head)
        return head


def _range_headers(manifest: Manifest, start: int) -> Sequence[tuple[str, str]]:
    """Ask for what follows `start`, of exactly this snapshot or all of it (RFC 9110, 13.1.5)."""
    if start == 0:
        return ()
    return [("Range", f"bytes={start}-"), ("If-Range", entity_tag(manifest))]
