"""The follower's listener, on threads of its own: for any node, asyncio ones included.

Opens the port and says what each connection is; who accepts is crew.py's, and what is said on one
connection.py's.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import ssl
import time
from dataclasses import replace
from http import HTTPStatus
from typing import TYPE_CHECKING

from snapstore.errors import ForkedProcess, PeerRejected
from snapstore.transfers import TransferRegistry
from snapstore.transport.address import ADDRESS_DEFAULT, listen, parse_address, peer_name
from snapstore.transport.advice import advice_headers
from snapstore.transport.connection import Connection
from snapstore.transport.crew import Crew
from snapstore.transport.heads import response_head
from snapstore.transport.linger import LINGER_S, linger
from snapstore.transport.patience import Deadlines
from snapstore.transport.receiver import RETRY_AFTER_S, SAVES_MAX, Receiver
from snapstore.transport.relay import Relay
from snapstore.transport.routes import check_routes
from snapstore.transport.scrape import scrape_routes
from snapstore.transport.tls import NotTls, context_of
from snapstore.transport.token import check_token
from snapstore.wire import HEAD_SIZE_MAX, to_json

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from typing_extensions import Self

    from snapstore._fastpipe import Throttle
    from snapstore.directory import SnapshotDir
    from snapstore.stored import SavedSnapshot
    from snapstore.transport.address import Address
    from snapstore.transport.routes import Route
    from snapstore.transport.tls import TlsContext
    from snapstore.wire import Offer

logger = logging.getLogger("snapstore.transport")

#: Each connection has a thread; a cluster has a handful of peers, and a storm must not eat memory.
CONNECTIONS_MAX = 64


class SnapshotServer:
    """Serves one SnapshotDir. It listens and runs as soon as it is made; `close` ends it.

    `address` is HOST:PORT, [IPV6]:PORT or unix:PATH; port 0 takes a free one, and `url` tells which.
    `on_saved(saved)` is called on a thread of the server's after each save and before its answer;
    an exception there is the peer's answer. `on_offer(offer)` may refuse by raising PeerRejected.
    For one request both are called on the same thread.
    `cluster` refuses offers of other clusters. `deadlines` say what each stage may take. An `on_saved` that
    takes longer goes on, and is not called beside itself for the same index; the peer is told to come
    again, and hears then what came of it.

    `throttle` says how fast all that peers fetch may go, together with whoever else was given it; None: as
    fast as it does. What they send keeps to the throttle of `directory`.

    `tls` (see `transport.tls`: `server_context`, and `ReloadingContext` for files that change) makes it
    speak TLS only. Peers must show `token`, where there is one, with every request but /healthz.

    `routes` are called for requests at their path and below (see `transport.routes.Exchange`), on the
    connection's thread: that is how `etcd.member.EtcdMember` answers. `registry`, the node's, shows its
    transfers, at /v1/transfers and in /metrics too; None: one of its own.
    """

    def __init__(
        self,
        directory: SnapshotDir,
        address: str = ADDRESS_DEFAULT,
        *,
        on_saved: Callable[[SavedSnapshot], object] | None = None,
        on_offer: Callable[[Offer], object] | None = None,
        cluster: str = "",
        saves_max: int = SAVES_MAX,
        connections_max: int = CONNECTIONS_MAX,
        deadlines: Deadlines | None = None,
        throttle: Throttle | None = None,
        tls: TlsContext | None = None,
        token: str | None = None,
        routes: Mapping[str, Route] | None = None,
        registry: TransferRegistry | None = None,
    ) -> None:
        if min(saves_max, connections_max) < 1:
            raise ValueError("saves_max and connections_max are 1 or more")
        wanted = parse_address(address)
        if tls is not None and (
            wanted.path is not None or context_of(tls).protocol == ssl.PROTOCOL_TLS_CLIENT
        ):
            raise ValueError("TLS needs HOST:PORT to listen on, and a context for the server's side")
        self._tls = tls
        self._token = check_token(token)
        self.registry = registry or TransferRegistry()
        self._routes = check_routes(routes or {}) | scrape_routes(directory, self.registry)
        self.directory = directory
        self.deadlines = deadlines or Deadlines()
        self._throttle = throttle
        self.receiver = Receiver(
            directory,
            cluster=cluster,
            on_offer=on_offer,
            on_saved=on_saved,
            saves_max=saves_max,
            deadlines=self.deadlines,
        )
        self._connections_max = connections_max
        self._pid = os.getpid()
        listener, bound = listen(wanted)
        self.address = replace(bound, tls=tls is not None)
        self._crew = Crew(
            listener, serve=self._serve, turn_away=self._turn_away, connections_max=connections_max
        )
        try:
            self._crew.start()
        except BaseException:
            self._remove_name()
            raise

    address: Address

    @property
    def url(self) -> str:
        """The address it is bound to, as a URL: `http[s]://HOST:PORT`, or `http+unix://%2Fpath`.

        Where that is every interface (0.0.0.0), peers need a name of this machine in its place.
        """
        return self.address.url

    def close(self) -> None:
        """Stop listening, cut the connections, and wait for their threads. May come twice.

        A save under way is not stored, and what came of it kept for the next attempt; one that is past
        its fsync is stored.
        """
        if self._pid != os.getpid():
            raise ForkedProcess("this SnapshotServer was made before the fork; the parent serves")
        first = self._crew.cut_off()
        self.receiver.close()
        self._crew.join()
        if first:
            self._remove_name()

    def _remove_name(self) -> None:
        """What a Unix socket leaves in the file system."""
        if self.address.path is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.address.path)

    def _turn_away(self, connection: socket.socket) -> None:
        if not self._crew.closing:
            logger.warning("turned away %s: %d connections", peer_name(connection), self._connections_max)
        with connection, contextlib.suppress(OSError):
            if self._tls is not None:
                return  # Words would need a handshake, and who accepts must not wait for anybody.
            connection.setblocking(False)
            answer = to_json({"error": f"busy: more than {self._connections_max} connections"})
            headers = [("Content-Length", str(len(answer))), *advice_headers(RETRY_AFTER_S)]
            head = response_head(HTTPStatus.SERVICE_UNAVAILABLE, headers, keep_alive=False)
            connection.sendall(head + answer)
            connection.shutdown(socket.SHUT_WR)
            connection.recv(HEAD_SIZE_MAX)  # A head left unread would turn the answer into a reset.

    def _serve(self, connection: socket.socket) -> None:
        try:
            with connection:
                if connection.family != socket.AF_UNIX:
                    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                peer = peer_name(connection)
                if self._tls is None:
                    self._connection(connection, peer).run()
                else:
                    self._serve_tls(connection, peer, self._tls)
        except Exception:
            logger.exception("a connection failed for a reason of our own")

    def _serve_tls(self, network: socket.socket, peer: str, tls: TlsContext) -> None:
        until_s = time.monotonic() + self.deadlines.head_timeout_s
        try:
            relay = Relay(
                network,
                tls,
                host=None,
                handshake_timeout_s=self.deadlines.head_timeout_s,
                idle_timeout_s=self.deadlines.idle_timeout_s,
            )
        except NotTls:
            words = "this port speaks TLS; its URL begins with https://"
            self._connection(network, peer).refuse(PeerRejected(HTTPStatus.BAD_REQUEST, words))
        except OSError as error:
            if not self._crew.closing:
                logger.warning("refused %s: %s", peer, error)
            linger(network, min(LINGER_S, until_s - time.monotonic()))  # It should read why.
        else:
            with relay:
                self._connection(relay.plain, peer).run()

    def _connection(self, plain: socket.socket, peer: str) -> Connection:
        return Connection(
            plain,
            self.directory,
            self.receiver,
            peer=peer,
            token=self._token,
            deadlines=self.deadlines,
            registry=self.registry,
            throttle=self._throttle,
            routes=self._routes,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._crew.closing else "serving"
        return f"<SnapshotServer {self.url} {state} {self.directory.path}>"
