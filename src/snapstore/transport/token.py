"""The bearer token that peers of one cluster share (RFC 6750): what one is, where it may go, is it right.

Text in, verdicts out. It is a secret: no message made here has any of it.
"""

from __future__ import annotations

import hmac
import ipaddress
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from snapstore.transport.address import Address

#: Shorter ones can be tried out; 16 characters of a random one are beyond that.
TOKEN_LENGTH_MIN = 16

#: A token stands in a head, and those have a limit, also with proxies in between.
TOKEN_LENGTH_MAX = 1024

#: Printable ASCII without spaces: what a header carries as it is.
_TOKEN = re.compile(rf"[!-~]{{{TOKEN_LENGTH_MIN},{TOKEN_LENGTH_MAX}}}")


def check_token(token: str | None) -> str | None:
    """Return `token`, which may be None for none; ValueError where it could not be one."""
    if token is not None and not _TOKEN.fullmatch(token):
        raise ValueError(
            f"a token has {TOKEN_LENGTH_MIN} to {TOKEN_LENGTH_MAX} printable ASCII characters and no spaces"
        )
    return token


def token_headers(token: str | None) -> list[tuple[str, str]]:
    """Return what a request shows."""
    return [] if token is None else [("Authorization", f"Bearer {token}")]


def shows_token(headers: Mapping[str, str], token: str) -> bool:
    """Whether a request's headers have the token; takes as long for a nearly right one as for any."""
    scheme, _, shown = headers.get("authorization", "").partition(" ")
    # As bytes: text beyond ASCII cannot be compared, and a peer may send it.
    right = hmac.compare_digest(shown.strip(" ").encode("utf-8", "replace"), token.encode("ascii"))
    return right and scheme.lower() == "bearer"


def stays_here(address: Address) -> bool:
    """Whether what goes to `address` never leaves this machine."""
    if address.path is not None or address.host == "localhost":
        return True
    try:
        return ipaddress.ip_address(address.host).is_loopback
    except ValueError:
        return False
