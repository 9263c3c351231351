"""The heads of HTTP/1.1 over a socket, through h11. Bodies pass by here: the C core moves them.

A fresh h11 connection reads each request, and the answers to one, and then says what it read beyond a head;
that goes to the body's reader. What h11 forgives and a proxy might read otherwise (two lengths, odd
codings, lines that end in LF alone or go on in the next) is refused.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, TypeVar

import h11

from snapstore import _fastpipe
from snapstore.wire import HEAD_SIZE_MAX

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterable

SERVER_NAME = "snapstore"

#: A hook of the node's may refuse with a status that has no phrase; the phrase means nothing anyway.
_PHRASES = {status.value: status.phrase for status in HTTPStatus}

#: A follower says "go on" once, and a proxy between may add some; a peer that says no more is none of ours.
_INFORMATIONAL_MAX = 64

#: What is told of a fault in a head, in characters: h11 quotes the line, which may be a whole head long.
_REASON_SIZE_MAX = 200

#: All methods and paths here are far shorter; what is refused is told to people, who read logs.
_METHOD_SIZE_MAX = 32
_TARGET_SIZE_MAX = 512

#: The longest of our own fields, but for the conf state, is a cluster's name.
_FIELD_SIZE_MAX = 256

#: Where others see a line end, or go on, that we would read otherwise: a bare LF, and a folded line.
_TWO_WAYS = re.compile(rb"(?<!\r)\n|\n[ \t]")

#: Where h11 quotes the line that is wrong: a token may stand in it, and what is refused is logged.
_QUOTED = re.compile(r":? (?:bytearray\()?b['\"].*", re.DOTALL)

H = TypeVar("H", h11.Request, h11.Response)


class HeadMalformed(ValueError):
    """A head is not HTTP/1.1 as we take it; `status` is the answer to it."""

    def __init__(self, message: str, status: int = HTTPStatus.BAD_REQUEST) -> None:
        super().__init__(message[:_REASON_SIZE_MAX])
        self.status = int(status)


@dataclass(frozen=True, slots=True)
class Head:
    """A request's or a response's head. Header names in lower case; `kept` was read beyond it."""

    headers: dict[str, str] = field(repr=False)  # One of them may be a token.
    kept: bytes = field(repr=False)
    method: str = ""
    target: str = ""
    status: int = 0
    keep_alive: bool = True

    @property
    def body_length(self) -> int | None:
        """The body's length in bytes; None for the chunked coding; 0 where none was announced."""
        if "transfer-encoding" in self.headers:
            return None
        return int(self.headers.get("content-length", "0"))


def read_request(sock: socket.socket, kept: bytes, timeout_s: float) -> Head | None:
    """Read a request's head within `timeout_s` seconds; None where the peer is gone or silent.

    Raises HeadMalformed, and TimeoutError for a head that was begun and does not end.
    """
    connection = h11.Connection(h11.SERVER, HEAD_SIZE_MAX)
    if kept:
        connection.receive_data(kept)
    found = _read(sock, connection, h11.Request, timeout_s)
    if found is None:
        return None
    request, kept = found
    if request.http_version not in (b"1.0", b"1.1"):
        raise HeadMalformed("this is HTTP/1.1")
    if len(request.method) > _METHOD_SIZE_MAX:
        raise HeadMalformed("no method has so long a name", HTTPStatus.NOT_IMPLEMENTED)
    if len(request.target) > _TARGET_SIZE_MAX:
        raise HeadMalformed(
            f"nothing here has a path over {_TARGET_SIZE_MAX} bytes", HTTPStatus.REQUEST_URI_TOO_LONG
        )
    headers = _headers(request.headers)
    keep_alive = request.http_version == b"1.1" and "close" not in headers.get("connection", "").lower()
    if request.http_version != b"1.1":
        headers.pop("expect", None)  # HTTP/1.0 does not know 100 Continue (RFC 9110, 10.1.1).
    return Head(
        headers, kept, request.method.decode("ascii"), request.target.decode("ascii"), keep_alive=keep_alive
    )


class Call:
    """A request that this side makes, and the heads that come back. `head` is its own, to be sent first.

    Raises ValueError for text that cannot stand in a head.
    """

    def __init__(self, method: str, target: str, headers: Iterable[tuple[str, str]]) -> None:
        self._connection = h11.Connection(h11.CLIENT, HEAD_SIZE_MAX)
        try:
            event = h11.Request(method=method, target=target, headers=list(headers))
        except h11.LocalProtocolError as error:
            raise ValueError(str(error)) from None
        self.head: bytes = self._connection.send(event) or b""

    def read_answer(self, sock: socket.socket, timeout_s: float, *, or_continue: bool = False) -> Head:
        """Read the head of the answer, or, if asked for, of 100 Continue; then the answer is still to come.

        Other informational heads are passed over. Raises HeadMalformed, TimeoutError after `timeout_s`
        seconds, and ConnectionError where the peer leaves without an answer.
        """
        found = _read(sock, self._connection, h11.Response, timeout_s, or_continue=or_continue)
        if found is None:
            raise ConnectionError("the peer closed the connection without an answer")
        response, kept = found
        return Head(_headers(response.headers), kept, status=response.status_code)


def _read(
    sock: socket.socket,
    connection: h11.Connection,
    kind: type[H],
    timeout_s: float,
    *,
    or_continue: bool = False,
) -> tuple[H, bytes] | None:
    until = time.monotonic() + timeout_s
    informational = 0
    said = bytearray(connection.trailing_data[0])  # What h11 has and has not made a head of yet.
    try:
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                data = _receive(sock, until)
                if not data and not said and not informational:
                    return None
                said += data
                connection.receive_data(data)
                continue
            beyond = connection.trailing_data[0]
            if _TWO_WAYS.search(said, 0, len(said) - len(beyond)):
                raise HeadMalformed("a head's lines end in CRLF, and none goes on in the next")
            said = bytearray(beyond)
            if isinstance(event, kind):
                return event, beyond
            if not isinstance(event, h11.InformationalResponse):
                raise ConnectionError(f"the connection ended in a head ({event!r})")
            if or_continue and event.status_code == HTTPStatus.CONTINUE:
                return event, beyond  # type: ignore[return-value]
            informational += 1
            if informational > _INFORMATIONAL_MAX:
                raise HeadMalformed(f"more than {_INFORMATIONAL_MAX} informational answers, and no answer")
    except TimeoutError:
        if said or kind is h11.Response:
            raise
        return None
    except h11.RemoteProtocolError as error:
        raise HeadMalformed(_QUOTED.sub("", str(error)), error.error_status_hint) from None


def _receive(sock: socket.socket, until: float) -> bytes:
    """Some bytes; b"" at the end. The deadline is for the whole: a byte now and then does not move it."""
    left_s = until - time.monotonic()
    if left_s <= 0:
        raise TimeoutError("timed out")
    return _fastpipe.receive_words(sock.fileno(), timeout_s=left_s)


def _headers(raw: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    headers: dict[str, str] = {}
    for name_bytes, value_bytes in raw:
        name, value = name_bytes.decode("ascii"), value_bytes.decode("latin-1")
        if name.startswith("snapstore-"):
            if name in headers:
                raise HeadMalformed(f"{name} comes twice")
            if len(value) > _FIELD_SIZE_MAX and name != "snapstore-conf-state":
                raise HeadMalformed(f"{name} has more than {_FIELD_SIZE_MAX} characters")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    length = headers.get("content-length", "0")
    if len(length) > len(str(_fastpipe.SIZE_MAX)) or int(length) > _fastpipe.SIZE_MAX:
        raise HeadMalformed("Content-Length is beyond all sizes")
    if "transfer-encoding" in headers:
        if "content-length" in headers:
            raise HeadMalformed("Content-Length and Transfer-Encoding exclude each other")
        if headers["transfer-encoding"].lower() != "chunked":
            raise HeadMalformed("the only Transfer-Encoding taken is chunked", HTTPStatus.NOT_IMPLEMENTED)
    return headers


def response_head(status: int, headers: Iterable[tuple[str, str]], *, keep_alive: bool = True) -> bytes:
    """Return a response's head, or that of an informational one (100 Continue)."""
    lines = [f"HTTP/1.1 {status} {_PHRASES.get(status, '')}"]
    lines += [f"{name}: {value}" for name, value in headers]
    if status >= HTTPStatus.OK:
        lines.append(f"Server: {SERVER_NAME}")
        lines += [] if keep_alive else ["Connection: close"]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")
