"""rraft-py (tikv's raft-rs for Python) on the exchange: its messages, its errors, its border.

rraft-py is known by its names only and imported when an `Rraft` is made: PyPI has no build of it for
Linux. So this is tested against `snapstore.testing.scripted_node`, which has the shape of 0.2.27 and
enforces the rules that were seen there; nothing here was tried with a build of your own.

    rraft = Rraft()
    node = RawNode(config, Storage(log), logger)      # log.snapshot(...) calls rraft.snapshot(...)
    exchange = Exchange(store, rraft, client, slot, ...)
    rraft.attach(node, exchange)

Rules of raft-rs that bind all this: one thread; "later" nested as below, since any other exception of
a storage is a panic that ends the process; each MsgSnapshot reported on, or its follower never gets
another entry; nothing but `ready`'s own handling between `ready()` and `advance()`.
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any

from snapstore.errors import MissingExtra, SnapshotTemporarilyUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from snapstore.meta import ConfState, SnapshotMeta
    from snapstore.raft.exchange import Exchange

logger = logging.getLogger("snapstore.raft")


class Rraft:
    """An `Engine`, and what a node's storage and loop call. For the raft thread.

    `module` stands in for the package `rraft`; MissingExtra where it is not given nor installed.
    """

    def __init__(self, module: Any = None) -> None:
        self._rraft = module if module is not None else _import_rraft()
        self._node: Any = None
        self._exchange: Exchange[Any] | None = None

    def attach(self, node: Any, exchange: Exchange[Any]) -> None:
        """Join the RawNode and the exchange: each is needed to make the other."""
        self._node = node
        self._exchange = exchange

    @property
    def _attached(self) -> Exchange[Any]:
        if self._exchange is None:
            raise SnapshotTemporarilyUnavailable("no exchange is attached yet")
        return self._exchange

    # The storage.

    def snapshot(self, request_index: int, to: int) -> Any:
        """Answer the storage's `snapshot(request_index, to)`: metadata alone, or "later"."""
        try:
            return self._snapshot_of(self._attached.snapshot(to, request_index))
        except SnapshotTemporarilyUnavailable as error:
            logger.debug("member %d is told later: %s", to, error)
        except Exception:
            logger.exception("no snapshot for member %d", to)
        raise self._rraft.StoreError(self._rraft.SnapshotTemporarilyUnavailableError())

    def _snapshot_of(self, meta: SnapshotMeta) -> Any:
        snapshot = self._rraft.Snapshot.default()
        metadata = snapshot.get_metadata()
        metadata.set_index(meta.index)
        metadata.set_term(meta.term)
        metadata.set_conf_state(self._conf_state_of(meta.conf_state))
        return snapshot

    def _conf_state_of(self, members: ConfState) -> Any:
        conf_state = self._rraft.ConfState(list(members.voters), list(members.learners))
        conf_state.set_voters_outgoing(list(members.voters_outgoing))
        conf_state.set_learners_next(list(members.learners_next))
        conf_state.set_auto_leave(members.auto_leave)
        return conf_state

    # The Ready.

    def send(self, messages: Iterable[Any], send: Callable[[int, bytes], object]) -> None:
        """Send what a Ready or LightReady gave: snapshots through the exchange, the rest by `send`.

        `send(to, encoded message)` is the node's own transport; what it raises is logged, since raft
        sends again by itself.
        """
        for message in messages:
            to = message.get_to()
            try:
                if message.get_msg_type() == self._rraft.MessageType.MsgSnapshot:
                    self._send_snapshot(to, message)
                else:
                    send(to, bytes(message.encode()))
            except Exception:
                logger.exception("a message to member %d was not sent", to)

    def _send_snapshot(self, to: int, message: Any) -> None:
        index, raw = 0, b""  # No snapshot was lent with this index: the engine is told that it failed.
        try:
            index, raw = _index_of(message.get_snapshot()), bytes(message.encode())
        finally:
            self._attached.send(to, index, raw)

    def install(self, ready: Any) -> int:
        """Swap the KV if `ready` has a snapshot; returns its index, or 0.

        Call it before the log applies that snapshot. What it raises, the node must not survive.
        """
        index = _index_of(ready.snapshot())
        if index:
            self._attached.install(index)
        return index

    # The engine, as the exchange sees it.

    def report_snapshot(self, to: int, *, finished: bool) -> None:
        """Tell raft-rs what became of the MsgSnapshot to `to`."""
        status = self._rraft.SnapshotStatus
        self._node.report_snapshot(to, status.Finish if finished else status.Failure)

    def step_snapshot(self, message: bytes, meta: SnapshotMeta) -> None:
        """Step an encoded MsgSnapshot about `meta`; ValueError for any other."""
        try:
            decoded = self._rraft.Message.decode(message)
        except Exception as error:
            raise ValueError(f"this is no raft message: {error}") from error
        if decoded.get_msg_type() != self._rraft.MessageType.MsgSnapshot:
            raise ValueError("a snapshot came with a raft message of another type")
        metadata = decoded.get_snapshot().get_metadata()
        if (metadata.get_index(), metadata.get_term()) != (meta.index, meta.term):
            raise ValueError(
                f"the raft message is about snapshot {metadata.get_index()} of term {metadata.get_term()},"
                f" the bytes are {meta.index} of term {meta.term}"
            )
        self._node.step(decoded)


def _index_of(snapshot: Any) -> int:
    index: int = snapshot.get_metadata().get_index()
    return index


def _import_rraft() -> Any:
    try:
        return importlib.import_module("rraft")
    except ImportError as error:
        raise MissingExtra("rraft-py is not installed; for Linux it has to be built from source") from error
