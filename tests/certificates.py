"""Certificates for tests, made when they are needed and never kept: an authority, and what it signs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from snapstore.transport.tls import client_context, server_context

trustme = pytest.importorskip("trustme", reason="TLS IS NOT TESTED: trustme is not installed")


@dataclass(frozen=True)
class Credentials:
    """PEM files of one node."""

    cert: Path
    key: Path
    ca: Path

    @property
    def server(self):
        return server_context(self.cert, self.key, self.ca)

    @property
    def client(self):
        return client_context(self.cert, self.key, self.ca)


class Authority:
    """Signs certificates for the nodes of one cluster, into a directory."""

    def __init__(self, path):
        path.mkdir()
        self.path = path
        self.file = path / "ca.pem"
        self._ca = trustme.CA()
        self._ca.cert_pem.write_to_path(self.file)

    def issue(self, *names, trusting=None, **options):
        """Credentials for the hosts `names`; they trust this authority, or another's file."""
        signed = self._ca.issue_cert(*names, **options)
        stem = self.path / str(len(list(self.path.iterdir())))
        cert, key = stem.with_suffix(".pem"), stem.with_suffix(".key")
        for part in signed.cert_chain_pems:
            part.write_to_path(cert, append=True)
        signed.private_key_pem.write_to_path(key)
        return Credentials(cert, key, trusting or self.file)


def locked_key(key, target):
    """The private key of the file `key`, under a passphrase, at `target`."""
    from cryptography.hazmat.primitives.serialization import (
        BestAvailableEncryption,
        Encoding,
        PrivateFormat,
        load_pem_private_key,
    )

    opened = load_pem_private_key(key.read_bytes(), None)
    lock = BestAvailableEncryption(b"secret")
    target.write_bytes(opened.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, lock))
    return target
