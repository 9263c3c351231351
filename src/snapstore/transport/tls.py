"""TLS: contexts that let in who has a certificate of ours, and how it fails, in words.

Sane defaults and nothing else: any other `ssl.SSLContext` does as well. The bytes are relay.py's. Files
that change are read anew by a `ReloadingContext`, for the connections that come then.
"""

from __future__ import annotations

import contextlib
import logging
import os
import ssl
import threading
from collections.abc import Callable

logger = logging.getLogger("snapstore.transport")

PemFile = str | os.PathLike[str]


class TlsFailed(ConnectionError):
    """The peers did not come to terms, or what came later is not TLS; the message says why."""


class NotTls(TlsFailed):
    """The peer speaks something else."""


#: What is wrong with a certificate's time (X509_V_ERR_*, openssl/x509_vfy.h): not yet valid, expired.
_TIME_ERRORS = (9, 10)


class ReloadingContext:
    """The context that `make` makes of PEM files, and makes anew when they have changed. Any thread.

    `make` is `server_context` or `client_context`, with the files that it takes; raises what that does.
    Stands where a context may: in `SnapshotServer(tls=...)` and `SnapshotClient(tls=...)`. Each new
    connection looks at the files' names first, so that a renewed certificate needs no signal and no
    restart; connections under way keep what they began with. While the new files are no good (one of
    a pair is still the old one, or the certificate is expired) the old context stays in use, the log
    says so, once, and each new connection tries again. Writers should rename new files into place: the
    certificate, then its key.
    """

    def __init__(
        self,
        make: Callable[[PemFile, PemFile, PemFile], ssl.SSLContext],
        cert: PemFile,
        key: PemFile,
        ca: PemFile,
    ) -> None:
        self._make = make
        self._files = (cert, key, ca)
        self._reading = threading.Lock()
        self._told = ""
        # Before the files are read: one that changes meanwhile is read again.
        self._seen = self._look()
        self._context = make(cert, key, ca)

    def current(self) -> ssl.SSLContext:
        """Return the context for a connection that begins now. Never raises, and waits for no one."""
        # One thread reads; the others go on with what there is.
        if self._look() != self._seen and self._reading.acquire(blocking=False):
            try:
                self._read()
                logger.info("the certificates of %s were read anew", self._files[0])
            except (OSError, ValueError) as error:
                self._tell(f"the certificates from before stay in use: {error}")
            finally:
                self._reading.release()
        return self._context

    def reload(self) -> None:
        """Read the files now. Raises ValueError and OSError as `make` does; the old context stays then."""
        with self._reading:
            self._read()

    def _read(self) -> None:
        seen = self._look()
        context = self._make(*self._files)
        _check_time(*self._files[:2], server_side=context.protocol == ssl.PROTOCOL_TLS_SERVER)
        self._context, self._seen, self._told = context, seen, ""

    def _look(self) -> list[tuple[int, int, int, int] | None]:
        """What the files' status tells; also of those that a link leads to, as where secrets are mounted."""
        seen: list[tuple[int, int, int, int] | None] = []
        for path in self._files:
            try:
                status = os.stat(path)
            except OSError:
                seen.append(None)
            else:
                seen.append((status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns))
        return seen

    def _tell(self, words: str) -> None:
        if words != self._told:
            self._told = words
            logger.warning("%s", words)


#: What is taken as `tls=`.
TlsContext = ssl.SSLContext | ReloadingContext


def context_of(tls: TlsContext) -> ssl.SSLContext:
    """Return the context for a connection that begins now."""
    return tls.current() if isinstance(tls, ReloadingContext) else tls


def server_context(cert: PemFile, key: PemFile, ca: PemFile) -> ssl.SSLContext:
    """Return a context for `SnapshotServer`: TLS 1.2 or later, for peers with a certificate of `ca` only.

    Paths of PEM files: `cert` is the node's own chain, `key` belongs to it and has no passphrase, `ca`
    signs the peers'. Raises OSError with the path of a file that cannot be read, and ValueError that
    says what is wrong with it.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_REQUIRED
    # Nobody comes back often enough for a ticket, and none can outlive its certificate.
    context.num_tickets = 0
    context.options |= ssl.OP_NO_TICKET
    return _furnished(context, cert, key, ca)


def client_context(cert: PemFile, key: PemFile, ca: PemFile) -> ssl.SSLContext:
    """Return a context for `SnapshotClient`: the peer needs a certificate of `ca` for the URL's host.

    Otherwise as `server_context`; `cert` and `key` are what this node shows.
    """
    return _furnished(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), cert, key, ca)


def _furnished(context: ssl.SSLContext, cert: PemFile, key: PemFile, ca: PemFile) -> ssl.SSLContext:
    for path in (cert, key, ca):
        with open(path, "rb"):  # OpenSSL's own errors do not name the file.
            pass
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])

    def no_passphrase() -> str:
        raise ValueError(
            f"{os.fspath(key)} is encrypted; a node starts alone, so give it one without passphrase"
        )

    try:
        context.load_verify_locations(cafile=ca)
    except ssl.SSLError as error:
        raise ValueError(f"{os.fspath(ca)} has no certificates in PEM: {words_of(error)}") from error
    try:
        context.load_cert_chain(cert, key, no_passphrase)
    except ssl.SSLError as error:
        files = f"{os.fspath(cert)} and {os.fspath(key)}"
        raise ValueError(f"{files} are not a certificate in PEM and its key: {words_of(error)}") from error
    return context


def _check_time(cert: PemFile, key: PemFile, *, server_side: bool) -> None:
    """Raise ValueError where the certificate of a node is expired, or not valid yet.

    Python's ssl tells nobody the dates of a certificate of its own, so a peer that trusts this very
    certificate shakes hands with it, in memory: from the other side, since one that may only be shown by
    a client is refused of a server before anybody looks at its dates. What else the peer may say is for
    real ones to judge.
    """
    client, server = (ssl.SSLContext(role) for role in (ssl.PROTOCOL_TLS_CLIENT, ssl.PROTOCOL_TLS_SERVER))
    client.check_hostname = False
    client.verify_mode = ssl.CERT_NONE
    for side in (client, server):
        side.load_cert_chain(cert, key)
    judge = client if server_side else server
    judge.verify_mode = ssl.CERT_REQUIRED
    judge.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    judge.load_verify_locations(cafile=cert)
    here, there = ssl.MemoryBIO(), ssl.MemoryBIO()
    asking, answering = client.wrap_bio(here, there), server.wrap_bio(there, here, server_side=True)
    try:
        for end in (asking, answering, asking, answering):
            with contextlib.suppress(ssl.SSLWantReadError):
                end.do_handshake()
    except ssl.SSLCertVerificationError as error:
        if error.verify_code in _TIME_ERRORS:
            raise ValueError(f"{os.fspath(cert)}: {words_of(error)}") from error


def words_of(error: ssl.SSLError) -> str:
    """What OpenSSL says, without its libraries and line numbers."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message
    return (error.reason or str(error.args[-1])).replace("_", " ").lower()
