"""What a client asks peers without a body of its own: one connection for each question."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from snapstore import _fastpipe
from snapstore.errors import TransportError
from snapstore.transport.breaks import naming
from snapstore.transport.heads import Call, Head

if TYPE_CHECKING:
    import socket

    from snapstore.transport.answers import Answers
    from snapstore.transport.dial import Dialer
    from snapstore.transport.patience import Deadlines


class Questions:
    """Asks, as `SnapshotClient` was told to. Raises as `SnapshotClient.fetch`. From any thread."""

    def __init__(self, dialer: Dialer, answers: Answers, deadlines: Deadlines) -> None:
        self._dialer = dialer
        self._answers = answers
        self._deadlines = deadlines

    @contextmanager
    def asked(
        self, url: str, target: str, more: Sequence[tuple[str, str]] = ()
    ) -> Iterator[tuple[socket.socket, Head]]:
        """Ask for `target` with `more` headers; yield the line, and the head of an answer that is a yes."""
        address, limits = self._dialer.check(url), self._deadlines
        call = Call("GET", target, [*self._dialer.headers(address), ("Connection", "close"), *more])
        with self._dialer.connected(url, address) as sock, naming(url):
            _fastpipe.send_words(sock.fileno(), call.head, timeout_s=limits.idle_timeout_s)
            head = call.read_answer(sock, limits.offer_timeout_s)
            if head.status not in (HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT):
                raise self._answers.read_rejection(sock, head)
            yield sock, head

    def get(self, url: str, target: str, size_max: int) -> bytes:
        """Return all of `target`; TransportError beyond `size_max` bytes."""
        with self.asked(url, target) as (sock, head):
            return self._answers.read_all(sock, head, size_max)

    def list(self, url: str, kind: str) -> Sequence[dict[str, Any]]:
        """Return the peer's list of this kind: "snapshots" or "transfers"."""
        with self.asked(url, f"/v1/{kind}") as (sock, head):
            listed = self._answers.read_json(sock, head).get(kind)
        if not isinstance(listed, list) or not all(isinstance(entry, dict) for entry in listed):
            raise TransportError(f"{url} did not answer with a list of {kind}")
        return listed
