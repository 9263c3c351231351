"""How a part above the transport answers requests of its own on our listener.

A route is called with an Exchange, on the connection's thread, and answers it once. It sees no
connection, and no request but its own. What it leaves unread of a body ends the connection, after
the answer.
"""

from __future__ import annotations

import select
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import TYPE_CHECKING

from snapstore import _fastpipe
from snapstore.transport.heads import Head, response_head

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterable

    from snapstore.transfers import TransferRegistry


#: What a path of the server's own begins with; none is a route's.
_OURS = ("", "v1", "healthz", "metrics")


class Exchange:
    """One request, and the line for its answer. One thread at a time, but for `send`.

    `head` is the request's and `body` its body, a source for `save_from`; `peer` is what the log calls
    the other side, and `registry` what shows the server's transfers. A peer may be silent in a body for
    `idle_timeout_s` seconds, and must send `rate_min` bytes/s.
    """

    def __init__(
        self,
        sock: socket.socket,
        head: Head,
        peer: str,
        registry: TransferRegistry,
        idle_timeout_s: float,
        rate_min: float,
    ) -> None:
        self._socket = sock
        self.head = head
        self.body = _fastpipe.Body(sock.fileno(), head.kept, head.body_length)
        self.peer = peer
        self.registry = registry
        self.idle_timeout_s = idle_timeout_s
        self.rate_min = rate_min
        self.keep_alive = head.keep_alive

    def go_on(self) -> None:
        """Have a body sent that the peer holds back until it is told to (`Expect: 100-continue`)."""
        if self.head.headers.get("expect", "").lower() == "100-continue":
            self.send(response_head(HTTPStatus.CONTINUE, ()))

    def respond(self, status: int, body: bytes = b"", headers: Iterable[tuple[str, str]] = ()) -> None:
        """Answer with all of `body`, but to HEAD. Raises OSError where the peer does not take it."""
        fields = list(headers)
        if status != HTTPStatus.NO_CONTENT:
            fields.append(("Content-Length", str(len(body))))
        self.keep_alive = self.keep_alive and self.body.ended
        answer = response_head(status, fields, keep_alive=self.keep_alive)
        self.send(answer if self.head.method == "HEAD" else answer + body)

    def respond_endless(self, status: int, headers: Iterable[tuple[str, str]] = ()) -> None:
        """Begin an answer that goes on by `send`, and ends when the route returns: so does the line."""
        self.keep_alive = False
        self.send(response_head(status, headers, keep_alive=False))

    def send(self, data: bytes) -> None:
        """Send what belongs to the answer; from any thread, one at a time. OSError where nobody takes it."""
        _fastpipe.send_words(self._socket.fileno(), data, timeout_s=self.idle_timeout_s)

    def wait_hangup(self, timeout_s: float) -> bool:
        """Wait until the peer hangs up, or the server closes; False after `timeout_s` seconds without."""
        poll = select.poll()
        poll.register(self._socket, select.POLLRDHUP)
        return bool(poll.poll(timeout_s * 1000))


Route = Callable[[Exchange], object]


def check_routes(routes: Mapping[str, Route]) -> dict[str, Route]:
    """Return `routes`, by the paths that they and all below answer to; ValueError for what is ours."""
    for path in routes:
        if not path.startswith("/") or path.endswith("/") or path.split("/")[1] in _OURS:
            raise ValueError(f"a route is a path like /raft, and none of the server's own, not {path!r}")
    return dict(routes)


def find_route(routes: Mapping[str, Route], target: str) -> Route | None:
    """Return what answers to `target`, a request's; None where that is the server itself."""
    path = target.partition("?")[0]
    for prefix, route in routes.items():
        if path == prefix or path.startswith(f"{prefix}/"):
            return route
    return None
