"""A server that speaks as much of etcd's gRPC as a pull asks for, and says what a test lets it say."""

from __future__ import annotations

import contextlib
import hashlib
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

grpc = pytest.importorskip("grpc", reason="ETCD'S gRPC IS NOT TESTED: snapstore[etcd] is not installed")
pytest.importorskip("google.protobuf", reason="ETCD IS NOT TESTED: snapstore[etcd] is not installed")

from residue import names  # noqa: E402 - These need what was just looked for.
from snapstore.etcd import messages  # noqa: E402
from snapstore.etcd.pull import EtcdClient  # noqa: E402

#: What etcd puts into a message.
BLOB_SIZE = 32 * 1024

#: A token that is shown where it should be; another is made up by nobody here.
TOKEN = "zyxwvut.7"

#: Longer than any answer takes; a test that waits so long has failed.
WAIT_S = 20.0


def digest(database):
    return hashlib.sha256(database).digest()


def blob(data, remaining=0):
    return messages.encode(messages.SnapshotResponse(blob=data, remaining_bytes=remaining))


def sent(database, *, trailer=None, size=None, blob_size=BLOB_SIZE):
    """The messages in which etcd sends `database`; `size` is what it promises."""
    size = len(database) if size is None else size
    for start in range(0, len(database), blob_size):
        piece = database[start : start + blob_size]
        yield blob(piece, size - start - len(piece))
    yield blob(digest(database) if trailer is None else trailer)


class EtcdServer:
    """Serves on a free port. `snapshot(server, context)` gives the messages of a call.

    `users` are passwords by name; with any, a call needs the token, and a snapshot the user `root`.
    """

    def __init__(self, snapshot, *, revision=1, users=None, credentials=None, status=None):
        self._snapshot, self._users = snapshot, users or {}
        self._status = status or messages.encode(
            messages.StatusResponse(
                header=messages.ResponseHeader(revision=revision), version="3.4.23", dbSize=4096
            )
        )
        #: The methods that were called, in order.
        self.called = []
        self._over, self._held_in_vain = threading.Event(), False
        self.server = grpc.server(ThreadPoolExecutor(4))
        self.server.add_generic_rpc_handlers((self._maintenance(), self._auth()))
        if credentials is None:
            port = self.server.add_insecure_port("127.0.0.1:0")
        else:
            port = self.server.add_secure_port("localhost:0", credentials)
        self.url = f"etcd://{'127.0.0.1' if credentials is None else 'localhost'}:{port}"

    def _maintenance(self):
        methods = {
            "Snapshot": grpc.unary_stream_rpc_method_handler(self._give_snapshot),
            "Status": grpc.unary_unary_rpc_method_handler(self._give_status),
        }
        return grpc.method_handlers_generic_handler("etcdserverpb.Maintenance", methods)

    def _auth(self):
        methods = {"Authenticate": grpc.unary_unary_rpc_method_handler(self._authenticate)}
        return grpc.method_handlers_generic_handler("etcdserverpb.Auth", methods)

    def _check_access(self, context, user):
        if not self._users:
            return
        shown = dict(context.invocation_metadata()).get("token")
        if shown is None:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "etcdserver: user name is empty")
        if shown != f"{TOKEN}.{user}":
            context.abort(grpc.StatusCode.PERMISSION_DENIED, "etcdserver: permission denied")

    def _give_snapshot(self, request, context):
        self.called.append("Snapshot")
        self._check_access(context, "root")
        yield from self._snapshot(self, context)

    def _give_status(self, request, context):
        self.called.append("Status")
        return self._status

    def _authenticate(self, request, context):
        self.called.append("Authenticate")
        asked = messages.decode(messages.AuthenticateRequest, request)
        if not self._users:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, "etcdserver: authentication is not enabled")
        if self._users.get(asked.name) != asked.password:
            words = "etcdserver: authentication failed, invalid user ID or password"
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, words)
        return messages.encode(messages.AuthenticateResponse(token=f"{TOKEN}.{asked.name}"))

    def hold(self):
        """Say nothing more, until the client has left and the test is over."""
        self._held_in_vain |= not self._over.wait(WAIT_S)

    def __enter__(self):
        self.server.start()
        return self

    def __exit__(self, *exception):
        self._over.set()
        assert self.server.stop(0).wait(WAIT_S)
        assert not self._held_in_vain, "the client waited for more"


@contextlib.contextmanager
def nothing_left(directory):
    """Whatever is pulled inside: afterwards the directory is as before, and no thread of a pull lives."""
    before = names(directory.path)
    yield
    assert names(directory.path) == before
    assert "snapstore-etcd-pull" not in {thread.name for thread in threading.enumerate()}


def pull(directory, said, **options):
    """Pull from a server that sends the messages `said`; `options` are its own."""
    with EtcdServer(lambda *_: iter(said), **options) as server:
        return EtcdClient(server.url).pull(directory)


def refused(directory, said, error, words, **options):
    """The same, in vain."""
    with nothing_left(directory), pytest.raises(error, match=words):
        pull(directory, said, **options)
