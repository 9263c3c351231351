"""How an etcd server is reached over gRPC, and what it means when it is not.

Addresses, TLS, channels and errors, as values. No calls are made here.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from urllib.parse import urlsplit

from snapstore.errors import MissingExtra, PeerRejected, PeerUnreachable, TransportError
from snapstore.transport.address import Address
from snapstore.transport.answers import shown
from snapstore.transport.tls import PemFile, client_context, words_of

try:
    import grpc
    from grpc import RpcError as RpcError  # Callers take it from here.
    from grpc.experimental import ChannelOptions
except ImportError as error:
    raise MissingExtra("etcd's API needs gRPC: pip install 'snapstore[etcd]'") from error

#: Where etcd listens for clients, unless told otherwise.
PORT_DEFAULT = 2379

#: gRPC's own limit where none is set, now by name. etcd's messages have 32 KiB and a bit.
MESSAGE_SIZE_MAX = 4 * 1024 * 1024

_OPTIONS = (
    ("grpc.max_receive_message_length", MESSAGE_SIZE_MAX),
    # Peers are spoken to directly, whatever the environment says of proxies; as over HTTP here.
    ("grpc.enable_http_proxy", 0),
    # A connection for each channel, closed with it: one that failed for another is not waited for.
    ("grpc.use_local_subchannel_pool", 1),
    # Who reads the messages takes them from the line, without a second thread that hands each over:
    # half the processor time. A name that gRPC does not know (any more) is no error.
    (ChannelOptions.SingleThreadedUnaryStream, 1),
)

#: What it means that there is no answer, whether the line or the server's state is the reason.
_UNREACHABLE = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
}

#: Refusals of the API as HTTP says them, by gRPC's own table (google/rpc/code.proto).
_STATUSES = {
    grpc.StatusCode.INVALID_ARGUMENT: HTTPStatus.BAD_REQUEST,
    grpc.StatusCode.FAILED_PRECONDITION: HTTPStatus.BAD_REQUEST,
    grpc.StatusCode.UNAUTHENTICATED: HTTPStatus.UNAUTHORIZED,
    grpc.StatusCode.PERMISSION_DENIED: HTTPStatus.FORBIDDEN,
    grpc.StatusCode.RESOURCE_EXHAUSTED: HTTPStatus.TOO_MANY_REQUESTS,
}

#: etcd's words that need some more.
_HINTS = {
    "user name is empty": "it wants a user and a password",
    "permission denied": "only users with the role root may take a snapshot",
    "authentication is not enabled": "leave the user out",
}


@dataclass(frozen=True, slots=True)
class EtcdTls:
    """TLS towards etcd: paths of PEM files, as etcdctl's --cacert, --cert and --key.

    `ca` signs the server's certificate. `cert` and `key`, which has no passphrase, go together: what
    this client shows where the server asks for it.
    """

    ca: PemFile
    cert: PemFile | None = None
    key: PemFile | None = None

    def credentials(self) -> grpc.ChannelCredentials:
        """Read the files; raises OSError with the path, and ValueError that says what is wrong."""
        ca = Path(self.ca).read_bytes()
        if self.cert is None or self.key is None:
            if self.cert is not self.key:
                raise ValueError("a certificate and its key go together")
            _check_authority(self.ca)
            return grpc.ssl_channel_credentials(ca)
        # gRPC would say only at the handshake, and not in words, that a file is no good.
        client_context(self.cert, self.key, self.ca)
        return grpc.ssl_channel_credentials(ca, Path(self.key).read_bytes(), Path(self.cert).read_bytes())


def _check_authority(ca: PemFile) -> None:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cafile=ca)
    except ssl.SSLError as error:
        raise ValueError(f"{ca} has no certificates in PEM: {words_of(error)}") from error


def parse_endpoint(text: str) -> Address:
    """Read `etcd://HOST[:PORT]` or `etcd://[IPV6][:PORT]`; raises ValueError."""
    parts = urlsplit(text)
    if parts.path not in ("", "/") or parts.query or parts.fragment or parts.username is not None:
        raise ValueError(f"an etcd endpoint ends behind the port and has no user, unlike {text!r}")
    if parts.scheme != "etcd" or not parts.hostname:
        raise ValueError(f"an etcd endpoint is etcd://HOST:PORT, not {text!r}")
    return Address(parts.hostname, PORT_DEFAULT if parts.port is None else parts.port)


def open_channel(address: Address, credentials: grpc.ChannelCredentials | None) -> grpc.Channel:
    """Return a channel, to be closed; it connects with the first call."""
    if credentials is None:
        return grpc.insecure_channel(str(address), options=_OPTIONS)
    return grpc.secure_channel(str(address), credentials, options=_OPTIONS)


def error_of(error: RpcError, endpoint: str, what: str) -> TransportError:
    """Return what a failed call means; `what` says how far it was.

    PeerUnreachable where no answer came, else PeerRejected with etcd's words; its `status` is HTTP's
    for the code of gRPC.
    """
    code, details = error.code(), shown(error.details() or "no reason given")
    if code in _UNREACHABLE:
        return PeerUnreachable(f"{endpoint}, {what}: {details}")
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return TransportError(f"{endpoint}, {what}: it is no etcd, or an old one: {details}")
    hint = next((f"; {hint}" for words, hint in _HINTS.items() if words in details), "")
    status = _STATUSES.get(code, HTTPStatus.INTERNAL_SERVER_ERROR)
    return PeerRejected(status, f"{endpoint}, {what}: {details} ({code.name}){hint}")
