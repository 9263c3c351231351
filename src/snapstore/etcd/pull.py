"""The pull: an etcd server's database, taken over gRPC as `etcdctl snapshot save` takes it.

Makes the calls and moves the bytes; what the bytes must be is decided in blobs.py and revision.py, and
what lasts is the SnapshotDir's. A thread takes messages from gRPC and writes them into a pipe, and the
save reads that in C: so silence has its limit and Ctrl-C its effect. gRPC asks the server for more only
as messages are taken, and memory is the pipe's, whatever the size of the database.

What is stored is the file that etcdctl would have written, the database and its SHA-256 behind it, so
that `etcdctl snapshot restore` takes it with its hash check on. Unlike etcdctl's it was verified.
"""

from __future__ import annotations

import threading
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from snapstore import _fastpipe
from snapstore.errors import PeerUnreachable, SnapshotExists, SnapshotNotFound, TransportError
from snapstore.etcd import messages
from snapstore.etcd.blobs import TRAILER_SIZE, Blobs
from snapstore.etcd.dial import EtcdTls, RpcError, error_of, open_channel, parse_endpoint
from snapstore.etcd.revision import read_revision
from snapstore.meta import SnapshotMeta
from snapstore.transfer import Direction
from snapstore.transfers import TransferRegistry
from snapstore.transport.patience import IDLE_TIMEOUT_S, RATE_MIN, check_rate
from snapstore.transport.token import stays_here

if TYPE_CHECKING:
    from collections.abc import Iterator

    import grpc
    from typing_extensions import Self

    from snapstore._fastpipe import Image, Progress
    from snapstore.directory import SnapshotDir
    from snapstore.stored import SavedSnapshot
    from snapstore.transfer import Transfer

#: For calls that move no snapshot. etcd hashes a password for a tenth of a second, and has other work.
CALL_TIMEOUT_S = 5.0

#: The slots of the pipe: small, so that a slow line fills one well before it counts as silent, and
#: together as much as the largest message.
_SLOT_SIZE = 256 * 1024
_SLOTS = 16

_Metadata = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class EtcdStatus:
    """What a server says of itself: its version, the revision it stands at, its database's bytes."""

    version: str
    revision: int
    size: int


class EtcdClient:
    """Pulls snapshots from one etcd server. Safe to use from any thread, not across a fork.

    `endpoint` is `etcd://HOST:PORT`; the members of a cluster are asked one by one, since a snapshot
    is one member's. `tls` makes the connection encrypted. `user` and `password` are for servers with
    authentication on; in the clear they go to this machine only, unless `password_in_clear` says that
    the network between keeps secrets. Timeouts in seconds; that of a pull, `idle_timeout_s`, follows
    its progress, with at least `rate_min` bytes/s over that time. `registry`, the node's, shows its pulls;
    None: one of its own.

    Raises ValueError for what cannot be, and OSError for files of `tls` that cannot be read.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        tls: EtcdTls | None = None,
        user: str | None = None,
        password: str | None = None,
        password_in_clear: bool = False,
        call_timeout_s: float = CALL_TIMEOUT_S,
        idle_timeout_s: float = IDLE_TIMEOUT_S,
        rate_min: float = RATE_MIN,
        registry: TransferRegistry | None = None,
    ) -> None:
        if min(call_timeout_s, idle_timeout_s) <= 0:
            raise ValueError("timeouts are above 0 seconds")
        self.endpoint = endpoint
        self.call_timeout_s = call_timeout_s
        self.idle_timeout_s = idle_timeout_s
        self.rate_min = check_rate(rate_min)
        self.registry = registry or TransferRegistry()
        self._address = parse_endpoint(endpoint)
        self._credentials = tls.credentials() if tls is not None else None
        if (user is None) is not (password is None):
            raise ValueError("a user and a password go together")
        try:
            f"{user}{password}".encode()
        except UnicodeEncodeError:  # Its words would show what it is of.
            raise ValueError("a user and a password are text, in UTF-8") from None
        if user is not None and tls is None and not (password_in_clear or stays_here(self._address)):
            raise ValueError(f"without TLS the password would go to {endpoint} in the clear")
        self._user, self._password = user, password

    def status(self) -> EtcdStatus:
        """Ask the server how it stands; an estimate of what a pull will bring. Raises as `pull` does."""
        with self._connected() as (channel, metadata):
            return self._status(channel, metadata)

    def pull(self, directory: SnapshotDir, *, progress: Progress | None = None) -> SavedSnapshot:
        """Save the server's database, as of one moment, under its revision. Returns when it lasts.

        The file is what `etcdctl snapshot save` writes: the database, then the 32 bytes of its SHA-256.
        Its index is the revision that the database itself says it stands at, its term 0. `progress`
        counts bytes and can cancel.

        Raises SnapshotExists before any byte of it came where the revision that the server stands at
        is stored already, and also at the end, where it came to a stored one meanwhile;
        PeerUnreachable where the server is not reached, breaks off or falls silent; PeerRejected with
        etcd's words, for want of permission, too; SnapshotTruncated and SnapshotCorrupt where the
        bytes are fewer, more or others than etcd promised, or no database of etcd; TransportError
        where it does not speak as etcd does; and what `SnapshotDir.save_from` raises. After any error
        nothing is left. Nothing is resumed: the next pull is of another moment.
        """
        with (
            self.registry.watch(Direction.IN, self.endpoint, 0, progress=progress) as transfer,
            self._connected() as (channel, metadata),
        ):
            transfer.index = self._status(channel, metadata).revision
            self._refuse_stored(directory, transfer.index)
            method: grpc.UnaryStreamMultiCallable[bytes, bytes]
            method = channel.unary_stream("/etcdserverpb.Maintenance/Snapshot")
            call = method(messages.encode(messages.SnapshotRequest()), metadata=metadata)
            with _Download(call, self.endpoint) as download:
                return self._save(download, directory, transfer)

    def _save(self, download: _Download, directory: SnapshotDir, transfer: Transfer) -> SavedSnapshot:
        def meta_of(image: Image) -> SnapshotMeta:
            revision = transfer.index = read_revision(image, image.size - TRAILER_SIZE)
            directory.set_aside(revision, "etcd has a good one")  # A sound one is never touched.
            return SnapshotMeta(revision)

        try:
            transfer.total = download.size(self.idle_timeout_s)
            return directory.save_from(
                download.reader,
                meta_of,
                size=transfer.total,
                progress=transfer.progress,
                idle_timeout_s=self.idle_timeout_s,
                rate_min=self.rate_min,
            )
        except TimeoutError as error:
            raise PeerUnreachable(
                f"{self.endpoint} sent nothing, or too little, for {self.idle_timeout_s:g} s,"
                f" after {download.received} bytes"
            ) from error

    def _refuse_stored(self, directory: SnapshotDir, revision: int) -> None:
        try:
            stored = directory.confirm(revision)
        except SnapshotNotFound:
            return
        if not stored.problem:  # A broken one makes way, once there is a good one.
            raise SnapshotExists(
                f"{self.endpoint} stands at revision {revision}, and {stored.path} exists; it was kept",
                stored.path,
            )

    @contextmanager
    def _connected(self) -> Iterator[tuple[grpc.Channel, _Metadata]]:
        """Yield a channel, and what shows on each call who we are."""
        with open_channel(self._address, self._credentials) as channel:
            yield channel, self._log_in(channel)

    def _log_in(self, channel: grpc.Channel) -> _Metadata:
        if self._user is None:
            return ()
        request = messages.AuthenticateRequest(name=self._user, password=self._password)
        token = self._ask(channel, "Auth/Authenticate", request, messages.AuthenticateResponse).token
        if not (token.isascii() and token.isprintable()):  # gRPC would say so, and show it.
            raise TransportError(f"{self.endpoint} does not answer as etcd does: its token is none")
        return (("token", token),)

    def _status(self, channel: grpc.Channel, metadata: _Metadata) -> EtcdStatus:
        request = messages.StatusRequest()
        answer = self._ask(channel, "Maintenance/Status", request, messages.StatusResponse, metadata)
        if answer.header.revision < 0 or answer.dbSize < 0:
            raise TransportError(f"{self.endpoint} says that it stands at revision {answer.header.revision}")
        return EtcdStatus(answer.version, answer.header.revision, answer.dbSize)

    def _ask(
        self, channel: grpc.Channel, name: str, request: Any, kind: Any, metadata: _Metadata = ()
    ) -> Any:
        method: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(f"/etcdserverpb.{name}")
        try:
            answer = method(messages.encode(request), timeout=self.call_timeout_s, metadata=metadata)
            return messages.decode(kind, answer)
        except RpcError as error:
            raise error_of(error, self.endpoint, f"asked for {name}") from error
        except messages.MessageMalformed as error:
            raise TransportError(f"{self.endpoint} does not answer as etcd does: {error}") from error


class _Download:
    """A call of Maintenance.Snapshot on its way into a pipe; leaving `with` ends it.

    The end of the pipe comes only after the last check; what failed is raised by whoever reads it.
    """

    def __init__(self, call: Any, endpoint: str) -> None:
        self._call, self._endpoint = call, endpoint
        self._blobs = Blobs()
        self._size: Future[int] = Future()
        self.reader, self._writer = _fastpipe.pipe(chunk_size=_SLOT_SIZE, chunks=_SLOTS)
        self._thread = threading.Thread(target=self._run, name="snapstore-etcd-pull", daemon=True)

    @property
    def received(self) -> int:
        """Bytes that came."""
        return self._blobs.received

    def size(self, timeout_s: float) -> int:
        """Wait for the first message, which tells how many bytes there will be, trailer included."""
        try:
            return self._size.result(timeout_s) + TRAILER_SIZE
        except FutureTimeout:  # Before Python 3.11 not the TimeoutError that others raise.
            raise TimeoutError("the first message did not come") from None

    def _run(self) -> None:
        try:
            for data in self._call:
                blob = self._blobs.take(messages.decode(messages.SnapshotResponse, data))
                if not self._size.done():
                    self._size.set_result(self._blobs.database_size or 0)
                self._writer.write(blob)
            self._blobs.end()
        except BaseException as error:  # noqa: BLE001 - It crosses to the thread that reads.
            self._fail(self._reason(error))
        else:
            self._writer.close()

    def _fail(self, reason: BaseException) -> None:
        if not self._size.done():
            self._size.set_exception(reason)
        self._writer.close(reason)

    def _reason(self, error: BaseException) -> BaseException:
        if isinstance(error, RpcError):
            return error_of(error, self._endpoint, f"after {self.received} bytes of a snapshot")
        if isinstance(error, messages.MessageMalformed):
            return TransportError(f"{self._endpoint} does not answer as etcd does: {error}")
        return error

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._call.cancel()
        self.reader.close()  # Whoever waits for room in the pipe is let go.
        self._thread.join()
