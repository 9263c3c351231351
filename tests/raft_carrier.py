"""The way of a snapshot from one member to another without threads: workers, a line, the follower's disk."""

from __future__ import annotations

from http import HTTPStatus

from raft_members import Crash
from snapstore.errors import PeerRejected, PeerUnreachable, PipeClosed, StoreClosed
from snapstore.manifest import Manifest
from snapstore.stored import SavedSnapshot


class Disk:
    """What a follower has of each snapshot; the twin of a `SnapshotDir`. `durable` outlives it."""

    def __init__(self):
        self.durable = {}


class FakeWorkers:
    """Runs what it was given when it is told to: all, or one of them."""

    def __init__(self):
        self.tasks = []

    def submit(self, call, *args):
        self.tasks.append((call, args))

    def run_one(self, choice=0):
        call, args = self.tasks.pop(choice % len(self.tasks))
        call(*args)

    def run(self):
        while self.tasks:
            self.run_one()


class MemoryCarrier:
    """Carries a snapshot from one thread to the same one, as `outcome` says; turns the follower meanwhile.

    An error that no follower and no line can be the cause of is kept in `broken`: to the exchange it is
    one more attempt that failed.
    """

    def __init__(self, disk):
        self.disk = disk
        self.outcome = "sent"
        self.follower = None
        self.broken = []

    def send_snapshot(self, url, stream, *, progress, message):
        try:
            self._send(url, stream, message)
        except BaseException as error:
            refused = isinstance(error, PeerRejected) and error.status != HTTPStatus.BAD_REQUEST
            if not (refused or isinstance(error, (PeerUnreachable, PipeClosed, StoreClosed))):
                self.broken.append(error)
            raise

    def _send(self, url, stream, message):
        assert url == "2"
        if self.outcome == "cut":
            stream.source.readinto(bytearray(1), 0)
            raise PeerUnreachable("cut")
        if self.outcome in ("busy", "no space", "corrupt"):
            status = {"busy": 503, "no space": 507, "corrupt": 422}[self.outcome]
            raise PeerRejected(status, self.outcome, 3.0 if status == 503 else None)
        raw = bytearray(stream.size)
        assert stream.source.readinto(raw, 0) == stream.size
        saved = self._save(stream.meta, bytes(raw))
        if self.outcome == "saved only":
            raise PeerUnreachable("it was killed after its last fsync")
        self._have_stepped(saved, message)
        if self.outcome == "answer lost":
            raise PeerUnreachable("the answer was lost")

    def _save(self, meta, raw):
        self.disk.durable.setdefault(meta.index, raw)
        return SavedSnapshot(meta.index, None, len(raw), Manifest(meta, len(raw), 0, 4096, b""))

    def _have_stepped(self, saved, message):
        arrival = self.follower().exchange.begin(saved, message)
        try:
            if self.outcome == "stuck":
                arrival.outcome.cancel()
                raise PeerRejected(503, "raft's thread does not come by", 1.0)
            while not arrival.outcome.done():
                self.follower().turn()
            arrival.outcome.result(0)
        except Crash:
            raise PeerUnreachable("it died") from None
        finally:
            arrival.discard()


OUTCOMES = [
    "sent",
    "cut",
    "busy",
    "no space",
    "corrupt",
    "saved only",
    "answer lost",
    "stuck",
]
