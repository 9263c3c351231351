"""How a client reaches a peer: the URL judged, the line made, TLS on it, the token in each head.

Knows nothing of what is asked for then.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

from snapstore.errors import PeerUnreachable, PeerUntrusted
from snapstore.transport.address import Address, connect, parse_url
from snapstore.transport.relay import Relay
from snapstore.transport.tls import TlsFailed
from snapstore.transport.token import check_token, stays_here, token_headers

if TYPE_CHECKING:
    import socket

    from typing_extensions import Self

    from snapstore.transport.patience import Deadlines
    from snapstore.transport.severance import Severance
    from snapstore.transport.tls import TlsContext


class Dialer:
    """Makes connections to peers, as `SnapshotClient` was told to. Safe to use from any thread."""

    def __init__(
        self,
        deadlines: Deadlines,
        tls: TlsContext | None,
        token: str | None,
        *,
        token_in_clear: bool,
    ) -> None:
        self._deadlines = deadlines
        self._tls = tls
        self._token = check_token(token)
        self._token_in_clear = token_in_clear
        self._severance: Severance | None = None

    def severed_by(self, severance: Severance) -> Self:
        """Return one that does as this does, for a single call whose lines `severance` can cut."""
        twin = copy.copy(self)
        twin._severance = severance
        return twin

    def check(self, url: str) -> Address:
        """Return where `url` is; ValueError where it is no URL, or nobody must be spoken to there."""
        address = parse_url(url)
        if address.tls:
            if self._tls is None:
                raise ValueError(f"{url} needs tls=, a context with this node's certificate")
        elif not stays_here(address):
            if self._tls is not None:
                raise ValueError(f"{url} is without TLS, and this client has it: should it be https://?")
            if self._token is not None and not self._token_in_clear:
                raise ValueError(f"everybody on the way to {url} could read the token: use https://")
        return address

    def headers(self, address: Address) -> list[tuple[str, str]]:
        """Return what every request to `address` has."""
        return [("Host", address.http_host), *token_headers(self._token)]

    @contextmanager
    def connected(self, url: str, address: Address) -> Iterator[socket.socket]:
        """Yield a line to the peer at `url`, plain for whoever uses it, with limits of his own for each wait.

        `address` is what `check` made of the URL. What is to be said first is best at hand before: who
        accepts has to wait for it. Raises PeerUnreachable, and PeerUntrusted where the peers' TLS does not
        fit.
        """
        until_s = time.monotonic() + self._deadlines.connect_timeout_s
        try:
            network = connect(address, self._deadlines.connect_timeout_s)
        except OSError as error:
            raise PeerUnreachable(f"{url} cannot be reached: {error}") from error
        with network, self._severance.over(network) if self._severance else nullcontext():
            if address.tls and self._tls is not None:
                with self._secured(network, url, address, self._tls, until_s) as plain:
                    yield plain
            else:
                yield network

    @contextmanager
    def _secured(
        self, network: socket.socket, url: str, address: Address, tls: TlsContext, until_s: float
    ) -> Iterator[socket.socket]:
        try:
            relay = Relay(
                network,
                tls,
                host=address.host,
                handshake_timeout_s=until_s - time.monotonic(),
                # Whoever uses the line has a shorter patience of his own; this one bounds the end.
                idle_timeout_s=self._deadlines.fsync_timeout_s,
            )
        except TlsFailed as error:
            raise PeerUntrusted(f"{url}: {error}") from error
        except OSError as error:
            raise PeerUnreachable(f"{url} cannot be reached: {error}") from error
        try:
            with relay:
                yield relay.plain
        except PeerUnreachable:
            # With TLS 1.3 a peer refuses our certificate only after the handshake.
            if isinstance(relay.failure, TlsFailed):
                raise PeerUntrusted(f"{url}: {relay.failure}") from relay.failure
            raise
