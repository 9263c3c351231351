"""The leader's side of the walk, and a follower's pull: one connection for each snapshot.

Blocking calls for any thread; the bytes are moved by the C core without the GIL. When an attempt failed,
retry.py says whether there is another; a call ends with the peer's answer, or with the error of its
last attempt.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from snapstore._fastpipe import CHUNK_SIZE_DEFAULT, Progress
from snapstore.errors import SnapshotTruncated, TransportError
from snapstore.meta import check_index
from snapstore.retry import RetryPolicy, is_passing
from snapstore.transfer import Direction
from snapstore.transfers import TransferRegistry
from snapstore.transport.answers import Answers, SentSnapshot
from snapstore.transport.dial import Dialer
from snapstore.transport.patience import Deadlines
from snapstore.transport.pull import Pull
from snapstore.transport.push import Push
from snapstore.transport.questions import Questions
from snapstore.wire import Offer, check_cluster

if TYPE_CHECKING:
    from typing_extensions import Self

    from snapstore._fastpipe import Throttle
    from snapstore.directory import SnapshotDir
    from snapstore.stored import SavedSnapshot, StoredSnapshot
    from snapstore.stream import SnapshotStream
    from snapstore.transport.severance import Severance
    from snapstore.transport.tls import TlsContext

#: A library tries once: a raft engine around it tries again by itself, and two loops would multiply.
_ONCE = RetryPolicy(attempts_max=1)


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
        chunk_size: int = CHUNK_SIZE_DEFAULT,
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
            push = Push(
                self._dialer,
                self._answers,
                self.deadlines,
                self._throttle,
                url,
                offer,
                stream,
                transfer,
                urgent,
            )
            try:
                return self.retry.run(
                    push.attempt,
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

    def list(self, url: str, *, progress: Progress | None = None) -> list[dict[str, Any]]:
        """Return what the peer has stored: index, term, size, digest and problem of each.

        To cancel `progress` ends the waits between two attempts.
        """
        return [*self._list(url, "snapshots", progress)]

    def list_transfers(self, url: str) -> Sequence[dict[str, Any]]:
        """Return the peer's transfers, as `Transfer.to_json`: those under way, then the last that ended."""
        return self._list(url, "transfers")

    def list_leases(self, url: str) -> Sequence[dict[str, Any]]:
        """Return what the peer holds, as `Lease.to_json`: pins, then stored snapshots."""
        return self._list(url, "leases")

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
            pull = Pull(self._questions(), self.deadlines, url, directory, digest, transfer, urgent)
            return self.retry.run(
                pull.attempt,
                transfer.progress,
                f"snapshot {index} from {url}",
                # The line ended too early; what came of it is kept.
                passing=lambda error: is_passing(error) or isinstance(error, SnapshotTruncated),
            )

    def _list(self, url: str, kind: str, progress: Progress | None = None) -> Sequence[dict[str, Any]]:
        ask = partial(self._questions().list, url, kind)
        return self.retry.run(ask, progress or Progress(), f"the list of {url}")

    def _questions(self) -> Questions:
        return Questions(self._dialer, self._answers, self.deadlines)
