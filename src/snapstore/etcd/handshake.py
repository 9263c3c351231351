"""What an etcd member checks of every peer's request before it reads it, in etcd's order and words.

Headers in, a verdict out. No sockets, no bodies. After `checkClusterCompatibilityFromHeader` and
`addRemoteFromRequest` of etcd's `rafthttp`, and `types.NewURLs`.
"""

from __future__ import annotations

import re
from email.utils import formatdate
from http import HTTPStatus
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Mapping

#: What we are to our peers: the newest etcd whose wire format this was compared with.
VERSION = "3.8.0"

#: No peer below is spoken to; every etcd since says the same.
CLUSTER_VERSION_MIN = "3.0.0"

#: What a peer is taken for that does not tell: such are refused, being older than all this.
_VERSION_UNTOLD = "2.0.0"

_VERSION = re.compile(r"(\d{1,18})\.(\d{1,18})\.\d{1,18}(?:-[0-9A-Za-z.-]+)?(?:\+[0-9A-Za-z.-]+)?")
_ID = re.compile(r"[0-9a-fA-F]{1,16}")
_SCHEMES = {"http", "https", "unix", "unixs"}


class PeerRefused(Exception):
    """The answer to a peer's request is no: `status`, and `reason` in etcd's words."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(f"{status}: {reason}")
        self.status = status
        self.reason = reason


class MethodRefused(PeerRefused):
    """The path takes one method, `allowed`, and the request has another."""

    def __init__(self, allowed: str) -> None:
        super().__init__(HTTPStatus.METHOD_NOT_ALLOWED, "Method Not Allowed")
        self.allowed = allowed


class PeerUnbearable(ConnectionError):
    """etcd panics over such a request: the connection ends without an answer."""


def format_id(member: int) -> str:
    """Return a member's or a cluster's id as it stands in headers: hexadecimal, no leading zeros."""
    return f"{member:x}"


def parse_id(text: str) -> int:
    """Return the id that `text` is; raises ValueError."""
    if not _ID.fullmatch(text):
        raise ValueError(f"an id is 1 to 16 hexadecimal digits, not {text!r}")
    return int(text, 16)


def own_headers(cluster_id: int) -> list[tuple[str, str]]:
    """Return what stands in the head of every answer that was worth a check."""
    return [("X-Etcd-Cluster-Id", format_id(cluster_id)), ("Date", formatdate(usegmt=True))]


def check_method(method: str, allowed: str) -> None:
    """Raise MethodRefused for any other than `allowed`: that is looked at before all else."""
    if method != allowed:
        raise MethodRefused(allowed)


def check_peer(headers: Mapping[str, str], cluster_id: int) -> None:
    """Let a peer's request pass, raise PeerRefused, or raise PeerUnbearable.

    `headers` by names in lower case; `cluster_id` is ours.
    """
    server = _version(headers, "x-server-version")
    cluster_min = _version(headers, "x-min-cluster-version")
    if server < _parse(CLUSTER_VERSION_MIN) or cluster_min > _parse(VERSION):
        raise PeerRefused(HTTPStatus.PRECONDITION_FAILED, "incompatible version")
    if headers.get("x-etcd-cluster-id", "") != format_id(cluster_id):
        raise PeerRefused(HTTPStatus.PRECONDITION_FAILED, "cluster ID mismatch")
    # Who gives an id and addresses wants to be remembered; we do not, but etcd would look at them.
    urls = headers.get("x-peerurls", "")
    if urls and _ID.fullmatch(headers.get("x-server-from", "")):
        for url in urls.split(","):
            _check_peer_url(url.strip())


def _version(headers: Mapping[str, str], name: str) -> tuple[int, int]:
    return _parse(headers.get(name) or _VERSION_UNTOLD)


def _parse(text: str) -> tuple[int, int]:
    """A version's first two numbers: no more counts between peers."""
    found = _VERSION.fullmatch(text)
    if not found:
        raise PeerUnbearable("a peer's version is none")
    return int(found[1]), int(found[2])


def _check_peer_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.netloc.rpartition(":")[1:]
    except ValueError:
        raise PeerUnbearable("a peer's own URL is none") from None
    if parts.scheme not in _SCHEMES or not host or not all(port) or parts.path:
        raise PeerUnbearable("a peer's own URL is not of the form http[s]://HOST:PORT")
