"""A raft node that follows a script and forgives nothing: the twin of raft-rs around a snapshot.

For tests of what stands around an engine. It replicates a log, falls back to snapshots, and enforces
the rules that raft-rs has there (and etcd's raft, which has the same loop). It elects nobody: a sole voter
leads when it is told to `campaign`, and its followers are learners. Has the names of rraft-py, so that it
can stand in for that module:

    from snapstore.testing import scripted_node
    node = scripted_node.RawNode(1, log, peers=[2])      # log: a `ScriptedLog`, or your own storage
    rraft = Rraft(scripted_node)

What raft-rs answers with a panic is a `NodePanic` here, which no `except Exception` catches, and the
node is dead after it: an exception of the storage other than a nested `StoreError`; a snapshot of index
0; entries that are not those asked for, or beyond `max_size`; a step while a Ready is open; a second
thread. What raft-rs lets pass and pays for later is a `RuleBroken`: a snapshot reported twice, a
response sent before it was saved. A snapshot that is never reported on stalls its follower, as there.

Plan: the values are scripted_messages.py's, what a turn owes and what a leader knows of a follower are
scripted_ready.py's; the node itself is here.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from snapstore.testing.scripted_messages import (
    CompactedError,
    ConfState,
    Entry,
    Message,
    MessageType,
    Snapshot,
    SnapshotMetadata,
    SnapshotStatus,
    SnapshotTemporarilyUnavailableError,
    StoreError,
    UnavailableError,
)
from snapstore.testing.scripted_ready import NodePanic, Progress, ProgressState, Ready, RuleBroken

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = [
    "CompactedError",
    "ConfState",
    "Entry",
    "Message",
    "MessageType",
    "NodePanic",
    "RawNode",
    "RuleBroken",
    "Snapshot",
    "SnapshotMetadata",
    "SnapshotStatus",
    "SnapshotTemporarilyUnavailableError",
    "StoreError",
    "UnavailableError",
]

#: What one append carries, in bytes of data; small, so that a short log needs several.
APPEND_SIZE_MAX = 64


class RawNode:
    """One node, on the thread that made it. `peers` are the members beside it."""

    def __init__(self, member: int, storage: Any, *, peers: Iterable[int] = ()) -> None:
        self.id = member
        self.dead = False
        self.leads = False
        self.progress: dict[int, Progress] = {peer: Progress(1) for peer in peers}
        self._storage = storage
        self._thread = threading.get_ident()
        self._ready: Ready | None = None
        self._unsaved: list[Entry] = []
        self._snapshot = Snapshot()
        self._messages: list[Message] = []
        self.term, self.commit = storage.initial_state()
        self.applied = self._applying = self.commit

    # For the loop.

    def campaign(self) -> None:
        """Become the leader of a new term, with an entry of it, and know nothing of the followers."""
        self._check("campaign")
        self.term, self.leads = self.term + 1, True
        for peer, known in self.progress.items():
            self.progress[peer] = Progress(self._last_index() + 1, unreported=known.unreported)
        self._append(b"")

    def propose(self, data: bytes) -> None:
        """Append `data` to the log."""
        self._check("propose")
        if not self.leads:
            raise StoreError("ProposalDropped")
        self._append(data)

    def tick(self) -> None:
        """Send a heartbeat to all."""
        self._check("tick")
        for to, progress in self.progress.items() if self.leads else ():
            self._send(MessageType.MsgHeartbeat, to, commit=min(progress.match, self.commit))

    def step(self, message: Message) -> None:
        """Take a message of another node."""
        self._check("step")
        if not message.decoded:
            self._panic("a message was stepped that did not come as bytes")
        if message.get_to() != self.id:
            self._panic(f"a message to {message.get_to()} was stepped")
        if message.get_term() < self.term:
            return
        if message.get_term() > self.term:
            self.term, self.leads = message.get_term(), False
        _STEPS[message.get_msg_type()](self, message)

    def report_snapshot(self, to: int, status: SnapshotStatus) -> None:
        """Hear what became of the MsgSnapshot to `to`."""
        self._check("report_snapshot")
        progress = self.progress[to]
        if not progress.unreported:
            raise RuleBroken(f"a snapshot to {to} was reported that was not sent, or reported before")
        progress.unreported -= 1
        if not self.leads or progress.state is not ProgressState.SNAPSHOT:
            return
        progress.become_probe(progress.pending_snapshot + 1 if status is SnapshotStatus.Finish else 0)
        progress.paused = True  # Until the follower has answered a heartbeat.

    def snap(self) -> Snapshot | None:
        """The snapshot that was taken and is not saved yet."""
        return self._snapshot if _index_of(self._snapshot) else None

    def has_ready(self) -> bool:
        """Whether there is something to do."""
        news = self._unsaved or self._messages or self.snap()
        return bool(news) or self.applied < min(self.commit, self._storage.last_index())

    def ready(self) -> Ready:
        """Return what is to be done; `advance` when it is."""
        self._check("ready")
        last = min(self.commit, self._storage.last_index())
        committed = [] if self.snap() or last <= self.applied else self._entries(self.applied + 1, last)
        immediate = self._messages if self.leads else []
        persisted = [] if self.leads else self._messages
        self._ready = Ready(
            list(self._unsaved), self._snapshot, committed, immediate, persisted, self._is_saved
        )
        self._messages = []
        self._applying = committed[-1].get_index() if committed else self.applied
        return self._ready

    def advance(self, ready: Ready) -> None:
        """Take note that `ready` was saved, sent and applied."""
        if self._ready is not ready:
            raise RuleBroken("advance does not belong to the Ready that is open")
        self._ready = None
        self._check("advance")
        if not self._is_saved(ready):
            self._panic("advance came before the log had what the Ready said")
        if ready.committed or ready.messages_ or ready.persisted_messages_:
            raise RuleBroken("advance came before all was applied and sent")
        self.applied = max(self._applying, _index_of(ready.snapshot_))
        self._unsaved, self._snapshot = [], Snapshot()
        if self.leads:
            self.commit = self._storage.last_index()  # The sole voter has saved it.

    # The leader.

    def _append(self, data: bytes) -> None:
        self._unsaved.append(Entry(index=self._last_index() + 1, term=self.term, data=data))
        for to in self.progress:
            self._send_append(to)

    def _send_append(self, to: int) -> None:
        progress = self.progress[to]
        last = self._storage.last_index()  # As raft-rs with one voter, only what is saved is sent.
        nothing_new = progress.next > last and progress.state is ProgressState.REPLICATE
        if progress.is_paused or nothing_new or progress.next > last + 1:
            return
        try:
            log_term = self._term(progress.next - 1)
            entries = self._entries(progress.next, last) if progress.next <= last else []
        except StoreError:
            self._send_snapshot(to, progress)
            return
        before = {"index": progress.next - 1, "log_term": log_term}
        self._send(MessageType.MsgAppend, to, **before, entries=entries, commit=self.commit)
        if progress.state is ProgressState.REPLICATE:
            progress.next += len(entries)
        else:
            progress.paused = True

    def _send_snapshot(self, to: int, progress: Progress) -> None:
        try:
            snapshot = self._storage.snapshot(0, to)
        except StoreError as error:
            if len(error.args) == 1 and isinstance(error.args[0], SnapshotTemporarilyUnavailableError):
                return
            self._panic(f"the storage's snapshot() raised {error!r}")
        except BaseException as error:  # noqa: BLE001 - what is not nested is a panic, whatever it is.
            self._panic(f"the storage's snapshot() raised {error!r}")
        if _index_of(snapshot) == 0:
            self._panic("need non-empty snapshot")
        progress.state, progress.pending_snapshot = ProgressState.SNAPSHOT, _index_of(snapshot)
        progress.unreported += 1
        self._send(MessageType.MsgSnapshot, to, snapshot=snapshot)

    def _step_append_response(self, message: Message) -> None:
        progress = self.progress[message.get_from()]
        index = message.get_index()
        if message.get_reject():
            if progress.state is not ProgressState.SNAPSHOT and index >= progress.match:
                progress.become_probe(min(index, message.get_reject_hint() + 1))
                self._send_append(message.get_from())
            return
        if index <= progress.match:
            return
        progress.match, progress.next = index, max(progress.next, index + 1)
        if progress.state is ProgressState.PROBE:
            progress.become_probe(index + 1)
            progress.state = ProgressState.REPLICATE
        elif progress.state is ProgressState.SNAPSHOT and index >= progress.pending_snapshot:
            progress.become_probe(index + 1)
        self._send_append(message.get_from())

    def _step_heartbeat_response(self, message: Message) -> None:
        progress = self.progress[message.get_from()]
        progress.paused = False
        if progress.match < self._last_index():
            if progress.state is ProgressState.REPLICATE:  # What was sent may be lost.
                progress.become_probe(progress.match + 1)
            self._send_append(message.get_from())

    # The follower.

    def _step_append(self, message: Message) -> None:
        before, to = message.get_index(), message.get_from()
        if before < self.commit:
            self._send(MessageType.MsgAppendResponse, to, index=self.commit)
            return
        if before > self._last_index() or self._term(before) != message.get_log_term():
            hint = min(before, self._last_index())
            self._send(MessageType.MsgAppendResponse, to, index=before, reject=True, reject_hint=hint)
            return
        new = [entry for entry in message.get_entries() if not self._has(entry)]
        if new:
            self._unsaved = [e for e in self._unsaved if e.get_index() < new[0].get_index()] + new
        last = before + len(message.get_entries())
        self.commit = max(self.commit, min(message.get_commit(), last))
        self._send(MessageType.MsgAppendResponse, to, index=last)

    def _step_heartbeat(self, message: Message) -> None:
        if message.get_commit() > self._last_index():
            self._panic("the log has lost what the leader knows that it had")
        self.commit = max(self.commit, message.get_commit())
        self._send(MessageType.MsgHeartbeatResponse, message.get_from())

    def _step_snapshot(self, message: Message) -> None:
        snapshot = message.get_snapshot()
        if _index_of(snapshot) > self.commit:
            self._snapshot, self._unsaved = snapshot, []
            self.commit = _index_of(snapshot)
        self._send(MessageType.MsgAppendResponse, message.get_from(), index=self.commit)

    # The log: what is saved, and behind it what is not.

    def _last_index(self) -> int:
        if self._unsaved:
            return int(self._unsaved[-1].get_index())
        return _index_of(self._snapshot) or int(self._storage.last_index())

    def _term(self, index: int) -> int:
        if index == _index_of(self._snapshot) and index:
            return int(self._snapshot.get_metadata().get_term())
        for entry in self._unsaved:
            if entry.get_index() == index:
                return int(entry.get_term())
        return int(self._storage.term(index))

    def _has(self, entry: Entry) -> bool:
        index = int(entry.get_index())
        return index <= self._last_index() and self._term(index) == int(entry.get_term())

    def _entries(self, first: int, last: int) -> list[Entry]:
        entries: list[Entry] = self._storage.entries(first, last + 1, None, APPEND_SIZE_MAX)
        indexes = [entry.get_index() for entry in entries]
        if not entries or indexes != list(range(first, first + len(entries))) or indexes[-1] > last:
            self._panic(f"entries({first}, {last + 1}) gave {indexes}")
        if len(entries) > 1 and sum(len(entry.get_data()) for entry in entries) > APPEND_SIZE_MAX:
            self._panic(f"entries({first}, {last + 1}) gave more than max_size")
        return entries

    def _is_saved(self, ready: Ready) -> bool:
        index = _index_of(ready.snapshot_)
        if index and self._storage.first_index() != index + 1:
            return False
        last = ready.entries_[-1].get_index() if ready.entries_ else index
        return bool(self._storage.last_index() >= last)

    # The rules.

    def _send(self, kind: MessageType, to: int, **fields: Any) -> None:
        self._messages.append(Message(msg_type=kind, to=to, term=self.term, **{"from": self.id}, **fields))

    def _check(self, what: str) -> None:
        if self.dead:
            raise NodePanic("the node is dead")
        if threading.get_ident() != self._thread:
            self._panic(f"{what} was called on a second thread")
        if self._ready is not None:
            self._panic(f"{what} was called while a Ready is open")

    def _panic(self, reason: str) -> None:
        self.dead = True
        raise NodePanic(reason)


def _index_of(snapshot: Snapshot) -> int:
    return int(snapshot.get_metadata().get_index())


_STEPS: dict[MessageType, Callable[[RawNode, Message], None]] = {
    MessageType.MsgAppend: RawNode._step_append,
    MessageType.MsgAppendResponse: RawNode._step_append_response,
    MessageType.MsgHeartbeat: RawNode._step_heartbeat,
    MessageType.MsgHeartbeatResponse: RawNode._step_heartbeat_response,
    MessageType.MsgSnapshot: RawNode._step_snapshot,
}
