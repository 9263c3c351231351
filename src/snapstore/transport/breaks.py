"""What a line does when it breaks, as the side that asks sees it: named, and told from its own faults."""

from __future__ import annotations

import select
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from snapstore.errors import PeerUnreachable, ReceiverSilent, TransportError
from snapstore.transport.heads import HeadMalformed
from snapstore.wire import OfferMalformed

if TYPE_CHECKING:
    import socket


@contextmanager
def naming(url: str) -> Iterator[None]:
    """Turn what a line does when it breaks into what the peer at `url` did."""
    try:
        yield
    except (HeadMalformed, OfferMalformed) as error:
        raise TransportError(f"{url} does not speak our HTTP: {error}") from error
    except (ConnectionError, TimeoutError) as error:
        raise PeerUnreachable(f"{url} left or fell silent: {error}") from error


def line_broke(sock: socket.socket, error: Exception) -> bool:
    """Whether a send failed since the peer has spoken, left, or takes no more: if not, it was the KV."""
    if isinstance(error, ReceiverSilent):
        return True
    line = select.poll()
    line.register(sock, select.POLLIN | select.POLLOUT)
    failed = isinstance(error, (ConnectionError, TimeoutError))
    return failed and [events for _, events in line.poll(0)] != [select.POLLOUT]
