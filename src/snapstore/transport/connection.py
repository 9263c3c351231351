"""One peer's connection: request after request, until it leaves or misbehaves.

Routes heads and sends stored snapshots; what becomes of an offer is receiver.py's. Bodies in either
direction are moved by the C core without the GIL, so that no event loop in the process stalls.

    PUT  /v1/snapshots/{index}            the native push
    GET  /v1/snapshots                    a JSON list          (HEAD likewise, for each)
    GET  /v1/snapshots/{index}            the raw image, with Range
    GET  /v1/snapshots/{index}/manifest   its manifest
    GET  /healthz                         "ok"
    GET  /metrics, /v1/transfers,
         /v1/leases                       for operators, see scrape.py
    (routes)                              what a part above answers, see routes.py
"""

from __future__ import annotations

import contextlib
import logging
import socket
from http import HTTPStatus
from typing import TYPE_CHECKING

from snapstore import _fastpipe
from snapstore.errors import DirectoryPoisoned, PeerRejected, SnapshotNotFound, SnapstoreError
from snapstore.transfer import Direction
from snapstore.transport.advice import advice_headers
from snapstore.transport.heads import Head, HeadMalformed, read_request, response_head
from snapstore.transport.image_answer import ImageAnswer
from snapstore.transport.linger import LINGER_S, linger
from snapstore.transport.routes import Exchange, Route, find_route
from snapstore.transport.token import shows_token
from snapstore.wire import (
    Offer,
    OfferMalformed,
    kept_headers,
    parse_index,
    to_json,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from snapstore._fastpipe import Throttle
    from snapstore.directory import SnapshotDir
    from snapstore.stored import StoredSnapshot
    from snapstore.transfers import TransferRegistry
    from snapstore.transport.patience import Deadlines
    from snapstore.transport.receiver import Receiver

logger = logging.getLogger("snapstore.transport")

_PREFIX = "/v1/snapshots"

_JSON = ("Content-Type", "application/json")


class Connection:
    """Speaks HTTP/1.1 with one peer, on the thread that calls `run`.

    `peer` is what the log calls it; with a `token` it has to show that with each request. `throttle` is for
    the images that it is sent.
    """

    def __init__(
        self,
        sock: socket.socket,
        directory: SnapshotDir,
        receiver: Receiver,
        *,
        peer: str,
        token: str | None,
        deadlines: Deadlines,
        registry: TransferRegistry,
        throttle: Throttle | None = None,
        routes: Mapping[str, Route] | None = None,
    ) -> None:
        self._socket = sock
        self._routes = routes or {}
        self._directory = directory
        self._receiver = receiver
        self._peer = peer
        self._token = token
        self._deadlines = deadlines
        self._throttle = throttle
        self._registry = registry
        self._keep_alive = True

    def run(self) -> None:
        """Answer one request after the other, until the peer leaves or is refused."""
        kept = b""
        try:
            while self._keep_alive:
                head = self._read_head(kept)
                if head is None:
                    return
                self._keep_alive = head.keep_alive
                kept = self._answer_request(head)
        except (ConnectionError, TimeoutError) as error:
            # Whatever it was in the middle of has been undone, and nobody is there to be told.
            logger.info("lost %s: %s", self._peer, error)

    def _read_head(self, kept: bytes) -> Head | None:
        try:
            return read_request(self._socket, kept, self._deadlines.head_timeout_s)
        except HeadMalformed as error:
            self.refuse(PeerRejected(error.status, str(error)))
        except TimeoutError:
            words = f"no whole head within {self._deadlines.head_timeout_s:g} s"
            self.refuse(PeerRejected(HTTPStatus.REQUEST_TIMEOUT, words))
        return None

    def _answer_request(self, head: Head) -> bytes:
        """Answer one request; what was read of the next one. A refusal ends the connection."""
        try:
            self._check_token(head)
            route = find_route(self._routes, head.target)
            if route is not None:
                return self._call_route(route, head)
            if head.method == "PUT":
                return self._put(head)
            self._get(head)
            return head.kept
        except PeerRejected as rejected:
            self.refuse(rejected, head)
        except (ConnectionError, TimeoutError):
            raise
        except Exception:
            logger.exception("%s %s failed for a reason of our own", head.method, head.target)
            words = "this node failed; its log says why"
            self.refuse(PeerRejected(HTTPStatus.INTERNAL_SERVER_ERROR, words), head)
        return b""

    def _check_token(self, head: Head) -> None:
        """Before anything else is read or decided; health is asked for by those who have no secrets."""
        if self._token is None or shows_token(head.headers, self._token):
            return
        if head.method in ("GET", "HEAD") and head.target == "/healthz":
            return
        words = "the bearer token is wrong" if "authorization" in head.headers else "show the bearer token"
        raise PeerRejected(HTTPStatus.UNAUTHORIZED, words)

    def _call_route(self, route: Route, head: Head) -> bytes:
        limits = self._deadlines
        exchange = Exchange(
            self._socket, head, self._peer, self._registry, limits.idle_timeout_s, limits.rate_min
        )
        route(exchange)
        self._keep_alive = exchange.keep_alive
        if not exchange.body.ended:
            self._linger()
        return exchange.body.leftover

    # The push.

    def _put(self, head: Head) -> bytes:
        index = parse_index(head.target.removeprefix(_PREFIX + "/"))
        if index is None or not head.target.startswith(_PREFIX + "/"):
            raise PeerRejected(HTTPStatus.NOT_FOUND, f"PUT goes to {_PREFIX}/INDEX")
        try:
            offer = Offer.parse(index, head.headers)
        except OfferMalformed as error:
            raise PeerRejected(HTTPStatus.BAD_REQUEST, str(error)) from None
        body = _fastpipe.Body(self._socket.fileno(), head.kept, head.body_length)
        waiting = head.headers.get("expect", "").lower() == "100-continue"
        go_on = self._send_continue if waiting else lambda _kept: None
        with self._registry.watch(Direction.IN, self._peer, index, total=offer.size) as transfer:
            status, answer = self._receiver.receive(
                offer, body, go_on, lambda late: self.refuse(late, head), transfer.progress
            )
            transfer.existed = answer["existed"]
        # A peer may send its body although it was not wanted.
        self._keep_alive = self._keep_alive and body.ended
        self._respond(status, to_json(answer))
        if not body.ended:
            self._linger()
        return body.leftover

    def _send_continue(self, kept: int) -> None:
        self._send(response_head(HTTPStatus.CONTINUE, kept_headers(kept)))

    # What is stored.

    def _get(self, head: Head) -> None:
        if head.body_length != 0:
            raise PeerRejected(HTTPStatus.BAD_REQUEST, f"{head.method} takes no body")
        if head.method not in ("GET", "HEAD"):
            raise PeerRejected(HTTPStatus.METHOD_NOT_ALLOWED, f"no {head.method} here")
        path = head.target.partition("?")[0]
        if path == "/healthz":
            self._check_health()
            self._respond(HTTPStatus.OK, b"ok\n", [("Content-Type", "text/plain")], head=head)
        elif path in (_PREFIX, _PREFIX + "/"):
            listed = [saved.to_json() for saved in self._directory.list()]
            self._respond(HTTPStatus.OK, to_json({"snapshots": listed}), head=head)
        elif path.startswith(_PREFIX + "/"):
            self._get_snapshot(head, path.removeprefix(_PREFIX + "/"))
        else:
            raise PeerRejected(HTTPStatus.NOT_FOUND, f"nothing at {path}; snapshots are at {_PREFIX}")

    def _check_health(self) -> None:
        try:
            self._directory.check_sound()
        except DirectoryPoisoned as error:  # Every save will be refused until somebody acts.
            raise PeerRejected(HTTPStatus.SERVICE_UNAVAILABLE, str(error)) from error

    def _get_snapshot(self, head: Head, name: str) -> None:
        name, slash, part = name.partition("/")
        index = parse_index(name)
        if index is None or part != ("manifest" if slash else ""):
            raise PeerRejected(HTTPStatus.NOT_FOUND, "snapshots are named by their index in decimal digits")
        try:
            # Not verified here: the receiver does, against the manifest, as it writes.
            stored = self._directory.open(index, verify=False, owner=self._peer)
        except SnapshotNotFound as error:
            raise PeerRejected(HTTPStatus.NOT_FOUND, str(error)) from error
        with stored:
            manifest = stored.saved.manifest
            if slash and manifest is None:
                raise PeerRejected(HTTPStatus.NOT_FOUND, f"snapshot {index}: {stored.saved.problem}")
            if slash and manifest is not None:
                self._respond(HTTPStatus.OK, manifest.to_bytes(), head=head)
            else:
                self._send_image(head, stored)

    def _send_image(self, head: Head, stored: StoredSnapshot) -> None:
        saved = stored.saved
        try:
            answer = ImageAnswer.to(head.headers, saved)
        except ValueError as error:
            unsatisfied = [("Content-Range", f"bytes */{saved.size}"), _JSON]
            status = HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE
            self._respond(status, to_json({"error": str(error)}), unsatisfied, head=head)
            return
        self._send(response_head(answer.status, answer.headers, keep_alive=self._keep_alive))
        if head.method == "HEAD":
            return
        length = answer.length
        with self._registry.watch(Direction.OUT, self._peer, saved.index, total=length) as transfer:
            try:
                sent = _fastpipe.send(
                    stored.image(),
                    self._socket.fileno(),
                    offset=answer.start,
                    length=length,
                    progress=transfer.progress,
                    idle_timeout_s=self._deadlines.idle_timeout_s,
                    rate_min=self._deadlines.rate_min,
                    throttle=self._throttle,
                )
            except (OSError, SnapstoreError) as error:
                raise ConnectionError(f"sending snapshot {saved.index} failed: {error}") from error
            if sent != length:
                raise ConnectionError(f"snapshot {saved.index} ended after {sent} of {length} bytes")

    # Answers.

    def refuse(self, rejected: PeerRejected, head: Head | None = None) -> None:
        """Answer with a no and end the connection; `head` is the request's, where it could be read."""
        logger.warning("refused %s: %s", self._peer, rejected)
        self._keep_alive = False
        headers = [_JSON, *advice_headers(rejected.retry_after_s)]
        if rejected.status == HTTPStatus.UNAUTHORIZED:
            headers.append(("WWW-Authenticate", "Bearer"))
        with contextlib.suppress(OSError):
            self._respond(
                rejected.status, to_json({"error": rejected.reason, **rejected.numbers}), headers, head=head
            )
            if head is None or head.body_length != 0:
                self._linger()

    def _linger(self) -> None:
        self._keep_alive = False
        linger(self._socket, LINGER_S)

    def _respond(
        self,
        status: int,
        body: bytes,
        headers: Iterable[tuple[str, str]] = (_JSON,),
        *,
        head: Head | None = None,
    ) -> None:
        fields = [*headers, ("Content-Length", str(len(body)))]
        answer = response_head(status, fields, keep_alive=self._keep_alive)
        self._send(answer if head is not None and head.method == "HEAD" else answer + body)

    def _send(self, data: bytes) -> None:
        _fastpipe.send_words(self._socket.fileno(), data, timeout_s=self._deadlines.idle_timeout_s)
