"""TLS: contexts that let in who has a certificate of ours, and how it fails, in words.

Sane defaults and nothing else: any other `ssl.SSLContext` does as well. The bytes are relay.py's.
"""

from __future__ import annotations

import os
import ssl

PemFile = str | os.PathLike[str]


class TlsFailed(ConnectionError):
    """The peers did not come to terms, or what came later is not TLS; the message says why."""


class NotTls(TlsFailed):
    """The peer speaks something else."""


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


def words_of(error: ssl.SSLError) -> str:
    """What OpenSSL says, without its libraries and line numbers."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message
    return (error.reason or str(error.args[-1])).replace("_", " ").lower()
