"""Where peers are: addresses to listen on and URLs to send to. Text in, socket arguments out."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote, urlsplit

if TYPE_CHECKING:
    from collections.abc import Callable

#: What a listener gets where nothing else is said: this machine alone, any free port.
ADDRESS_DEFAULT = "127.0.0.1:0"

#: The ports of URLs that name none (RFC 9110, 4.2).
_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Address:
    """A place to listen on or connect to: a host and a port, with TLS or without, or a Unix socket's path."""

    host: str
    port: int
    path: str | None = None
    tls: bool = False

    def __str__(self) -> str:
        if self.path is not None:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def url(self) -> str:
        """The same as a URL."""
        if self.path is not None:
            return f"http+unix://{quote(self.path, safe='')}"
        return f"{'https' if self.tls else 'http'}://{self}"

    @property
    def http_host(self) -> str:
        """What a request's Host header says."""
        return "localhost" if self.path is not None else str(self)


def parse_address(text: str) -> Address:
    """Read `HOST:PORT`, `[IPV6]:PORT` or `unix:PATH`; raises ValueError."""
    if text.startswith("unix:"):
        if len(text) == len("unix:"):
            raise ValueError("an address unix:PATH needs a path")
        return Address("", 0, text.removeprefix("unix:"))
    host, colon, port = text.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ValueError(f"an address is HOST:PORT, [IPV6]:PORT or unix:PATH, not {text!r}")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        if host and ":" not in host:
            raise ValueError(f"brackets are for an IPv6 address, not as in {text!r}")
    elif ":" in host:
        raise ValueError(f"an IPv6 address goes in brackets: [{host}]:{port}")
    if "[" in host or "]" in host:
        raise ValueError(f"brackets go around an IPv6 address, once, not as in {text!r}")
    if not host:
        raise ValueError(f"{text!r} names no host; 127.0.0.1 is this machine, 0.0.0.0 every interface")
    return Address(host, int(port))


def parse_url(url: str) -> Address:
    """Read `http://HOST:PORT`, `https://[IPV6]:PORT` or `http+unix://%2Fpath`; raises ValueError."""
    parts = urlsplit(url)
    if parts.path not in ("", "/") or parts.query or parts.fragment:
        raise ValueError(f"a peer's URL ends behind the port, not with {url!r}")
    if parts.scheme == "http+unix" and parts.netloc:
        return Address("", 0, unquote(parts.netloc))
    if parts.scheme not in _PORTS or not parts.hostname or parts.username is not None:
        raise ValueError(f"a peer's URL is http[s]://HOST:PORT or http+unix://%2Fpath, not {url!r}")
    port = _PORTS[parts.scheme] if parts.port is None else parts.port
    return Address(parts.hostname, port, tls=parts.scheme == "https")


def listen(address: Address) -> tuple[socket.socket, Address]:
    """Return a listening socket and the address it got (port 0 asks for any free one).

    A Unix socket is for its owner only, mode 0600. The name that a killed listener left is taken over;
    a living one's is not.
    """
    if address.path is not None:
        return _listen_unix(address.path), address
    found = socket.getaddrinfo(
        address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE | socket.AI_NUMERICSERV
    )
    family, _, _, _, place = found[0]
    listener = socket.create_server(place[:2], family=family)
    bound: Any = listener.getsockname()
    return listener, Address(bound[0], bound[1])


def _connect_host(address: Address, timeout_s: float, monotonic: Callable[[], float]) -> socket.socket:
    """Try what the name stands for, one after the other, each for its share of the time that is left."""
    found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    until_s = monotonic() + timeout_s
    failure = OSError(f"{address.host} has no address")
    for number, (family, kind, protocol, _, place) in enumerate(found):
        left_s = until_s - monotonic()
        if left_s <= 0:
            break
        connection = socket.socket(family, kind, protocol)
        try:
            connection.settimeout(left_s / (len(found) - number))
            connection.connect(place)
        except OSError as error:
            connection.close()
            failure = error
        except BaseException:
            connection.close()
            raise
        else:
            return connection
    raise failure


def _listen_unix(path: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    try:
        if _is_abandoned(path):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
        listener.bind(path)
        os.chmod(path, 0o600)  # Whatever the umask: who may connect may read all that is served.
        listener.listen()
    except OSError as error:
        listener.close()
        error.filename = path
        raise
    return listener


def _is_abandoned(path: str) -> bool:
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            return False  # Connecting to any other file is refused, too.
    except OSError:
        return False
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)  # A living listener with a full queue must not hold us up.
        return probe.connect_ex(path) == errno.ECONNREFUSED


def peer_name(connection: socket.socket) -> str:
    """Return who is at the other end, for people: `HOST:PORT`, or that it is a local process."""
    try:
        peer: Any = connection.getpeername()
    except OSError:
        return "a peer that left"
    return str(Address(peer[0], peer[1])) if isinstance(peer, tuple) else "a local process"


def connect(
    address: Address, timeout_s: float, monotonic: Callable[[], float] = time.monotonic
) -> socket.socket:
    """Return a connection; OSError where there is none within `timeout_s` seconds.

    Not counted is how long the system takes to look up a name: nobody can end that.
    """
    if address.path is None:
        connection = _connect_host(address, timeout_s, monotonic)
        # Heads and the last frame are small, and somebody waits for each of them.
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.settimeout(timeout_s)
        connection.connect(address.path)
    except BaseException:
        connection.close()
        raise
    return connection
