"""The follower's decision, and the save behind it: an offer in, an answer out.

Decides before any byte of the body, and answers after the last fsync. Knows the directory and the
body; no sockets but through them, no heads, no threads.
"""

from __future__ import annotations

import errno
import threading
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, TypeVar

from snapstore import _fastpipe
from snapstore.errors import (
    ROOM_NUMBERS,
    KeptPrefixWrong,
    NoRoom,
    PeerRejected,
    PipeClosed,
    SnapshotBusy,
    SnapshotCorrupt,
    SnapshotExists,
    SnapshotTooLarge,
    SnapstoreError,
)
from snapstore.transport.steps import Steps
from snapstore.wire import Offer, check_cluster, exact_reader, read_data

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from snapstore.directory import SnapshotDir
    from snapstore.stored import SavedSnapshot
    from snapstore.transport.patience import Deadlines

    _Refuse = Callable[[PeerRejected], object]

T = TypeVar("T")

#: Two at once keep a disk busy; more only share it, and each holds its buffers.
SAVES_MAX = 2

#: What a busy follower tells a leader to wait: long enough not to be a storm, short enough to be soon.
RETRY_AFTER_S = 1.0

#: When to come again where other saves hold the room: one of them has to end, and to have failed.
RETRY_AFTER_S_ROOM = 10.0

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class Receiver:
    """Takes offers for one directory, from any number of threads; `saves_max` bodies at once.

    In order: cluster, stale, the node's own say, stored already, busy, too large, no room.

    `on_offer(offer)` may refuse by raising PeerRejected. `on_saved(saved)` is called after the save
    and before the answer, so that the node steps its raft message then; what it raises is the
    peer's answer. It is called again when a snapshot is offered that is stored already, since the
    leader may have missed the first answer. One that takes longer than `apply_timeout_s` goes on where
    it is, and the peer is refused with 503 meanwhile, as whoever offers this index until it has ended.
    """

    def __init__(
        self,
        directory: SnapshotDir,
        *,
        cluster: str,
        on_offer: Callable[[Offer], object] | None,
        on_saved: Callable[[SavedSnapshot], object] | None,
        saves_max: int,
        deadlines: Deadlines,
    ) -> None:
        self._directory = directory
        self._cluster = check_cluster(cluster)
        self._on_offer = on_offer
        self._steps: Steps | None = None  # Without a step there is nothing to wait for, and no thread for it.
        if on_saved is not None:
            step = partial(self._ask, on_saved, words="saved, but the node refused it")
            self._steps = Steps(step, deadlines.apply_timeout_s)
        self._places = threading.BoundedSemaphore(saves_max)
        self._deadlines = deadlines
        self._lock = threading.Lock()
        self._saves: list[_fastpipe.Progress] = []
        self._closed = False

    def close(self) -> None:
        """End the saves under way, also those that wait for nobody, and begin no more."""
        with self._lock:
            self._closed = True
            saves = list(self._saves)
        for save in saves:
            save.cancel()

    def receive(
        self,
        offer: Offer,
        body: _fastpipe.Body,
        go_on: Callable[[int], None],
        refuse: _Refuse,
        progress: _fastpipe.Progress,
    ) -> tuple[int, dict[str, Any]]:
        """Decide on `offer`; call `go_on` and save `body`, or raise PeerRejected. (status, answer).

        `go_on` is told how many bytes were kept of an earlier attempt: the sender may send their
        digests alone. `refuse` is called, on another thread, where the peer must not wait for the node
        any longer; when the node has come to its end, ConnectionAbortedError is raised. `progress` counts
        the bytes, and `close` cancels it.
        """
        self._decide(offer)
        try:
            saved, existed = self._settle(offer, body, go_on, progress)
        except (PeerRejected, ConnectionError):
            raise
        except NoRoom as error:
            numbers = {name: getattr(error, name) for name in ROOM_NUMBERS}
            advice_s = RETRY_AFTER_S_ROOM if error.for_now else None
            status = HTTPStatus.INSUFFICIENT_STORAGE
            raise PeerRejected(status, error.reason, advice_s, numbers) from error
        except SnapshotBusy as error:
            raise PeerRejected(HTTPStatus.SERVICE_UNAVAILABLE, str(error), RETRY_AFTER_S) from error
        except (OSError, SnapstoreError) as error:
            raise PeerRejected(_status_of(error), str(error)) from error
        if self._steps is not None:
            self._steps.take(saved, refuse)
        return HTTPStatus.OK if existed else HTTPStatus.CREATED, {
            "index": saved.index,
            "size": saved.size,
            "digest": saved.digest,
            "existed": existed,
            "sync_s": round(saved.sync_s, 6),
        }

    def _decide(self, offer: Offer) -> None:
        if self._cluster and offer.cluster != self._cluster:
            raise PeerRejected(
                HTTPStatus.PRECONDITION_FAILED,
                f"this node belongs to cluster {self._cluster!r}, the offer to {offer.cluster!r}",
            )
        newest = self._directory.newest(above=offer.meta.index)
        if newest is not None:
            raise PeerRejected(HTTPStatus.CONFLICT, f"stale: snapshot {newest.index} is stored already")
        self._ask(self._on_offer, offer, "the node refused the offer")

    def _settle(
        self,
        offer: Offer,
        body: _fastpipe.Body,
        go_on: Callable[[int], None],
        progress: _fastpipe.Progress,
    ) -> tuple[SavedSnapshot, bool]:
        """The snapshot, certain to last, and whether it was there before."""
        found = self._existing(offer)
        if found is not None:
            return found, True
        try:
            return self._save(offer, body, go_on, progress), False
        except SnapshotExists as error:
            # Somebody else was quicker with it, or what has the name is no snapshot.
            found = self._existing(offer)
            if found is None:
                raise PeerRejected(HTTPStatus.CONFLICT, "the snapshot's name is taken") from error
            return found, True

    def _existing(self, offer: Offer) -> SavedSnapshot | None:
        """The stored snapshot that this offer is about, if there is one; a different one is a conflict."""
        saved = self._directory.confirm_sound(offer.meta.index, "a peer offers a good one")
        if saved is None:
            return None
        same_meta = replace(saved.meta, data=b"") == offer.meta and len(saved.meta.data) == offer.data_size
        if not same_meta or offer.size not in (None, saved.size):
            raise PeerRejected(HTTPStatus.CONFLICT, "a different snapshot of this index is stored")
        return saved

    def _save(
        self,
        offer: Offer,
        body: _fastpipe.Body,
        go_on: Callable[[int], None],
        progress: _fastpipe.Progress,
    ) -> SavedSnapshot:
        with (
            self._place(),
            self._directory.receive(
                offer.meta, size=offer.size, chunk_size=offer.chunk_size, data_size=offer.data_size
            ) as reception,
        ):
            go_on(reception.kept)
            limits = self._deadlines
            data = read_data(offer, exact_reader(body, limits.idle_timeout_s, limits.rate_min))
            with self._under_way(progress):
                return reception.save(
                    _fastpipe.Frames(body, chunk_size=offer.chunk_size, size=offer.size),
                    replace(offer.meta, data=data),
                    progress=progress,
                    idle_timeout_s=limits.idle_timeout_s,
                    rate_min=limits.rate_min,
                )

    @contextmanager
    def _under_way(self, progress: _fastpipe.Progress) -> Iterator[None]:
        with self._lock:
            self._saves.append(progress)
            if self._closed:
                progress.cancel()
        try:
            yield
        finally:
            with self._lock:
                self._saves.remove(progress)

    @contextmanager
    def _place(self) -> Iterator[None]:
        if not self._places.acquire(blocking=False):
            raise PeerRejected(
                HTTPStatus.SERVICE_UNAVAILABLE, "busy: other snapshots are being saved", RETRY_AFTER_S
            )
        try:
            yield
        finally:
            self._places.release()

    def _ask(self, hook: Callable[[T], object] | None, subject: T, words: str) -> None:
        """Call one of the node's hooks: its own refusal is what the leader has to hear, whatever its type."""
        if hook is None:
            return
        try:
            hook(subject)
        except PeerRejected:
            raise
        except Exception as error:
            raise PeerRejected(HTTPStatus.INTERNAL_SERVER_ERROR, f"{words}: {error}") from error


def _status_of(error: OSError | SnapstoreError) -> int:
    """What a failed save is called towards the peer: its fault, or ours."""
    if isinstance(error, PipeClosed):
        return HTTPStatus.SERVICE_UNAVAILABLE  # Somebody closes this server.
    if isinstance(error, KeptPrefixWrong):
        return HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE
    if isinstance(error, SnapshotCorrupt):
        return HTTPStatus.UNPROCESSABLE_ENTITY
    if isinstance(error, SnapshotTooLarge):
        return HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    if isinstance(error, TimeoutError):
        return HTTPStatus.REQUEST_TIMEOUT
    if isinstance(error, OSError) and error.errno in _NO_SPACE:
        return HTTPStatus.INSUFFICIENT_STORAGE
    return HTTPStatus.INTERNAL_SERVER_ERROR
