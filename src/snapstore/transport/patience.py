"""How long either side waits for the other: each stage has a budget of its own. No clocks.

No budget is for a whole transfer. What has a length is measured by what comes in a while, so that no
snapshot is too large and no link too slow that carries the least rate; see `Deadlines`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

#: Within one network a connection takes milliseconds; a peer that needs longer is down.
CONNECT_TIMEOUT_S = 5.0

#: A head is one packet; a peer that needs longer, or is idle so long between two, is not a peer.
HEAD_TIMEOUT_S = 10.0

#: A link that carries nothing for so long is gone; half of a usual dead-peer time, a dozen heartbeats.
IDLE_TIMEOUT_S = 30.0

#: In bytes/s. No link that a cluster runs on is slower; a peer that drips must not keep a place for ever.
RATE_MIN = 16 * 1024

#: What a node may take to step a saved snapshot before its leader is told to come again: some minutes
#: of copying gigabytes into a KV. Less than FSYNC_TIMEOUT_S by what an fsync of them takes.
APPLY_TIMEOUT_S = 120.0

#: A follower that has the snapshot already lets its node step it before it answers the offer, and makes
#: its name last: longer than APPLY_TIMEOUT_S, by the fsync of a directory on a busy disk.
OFFER_TIMEOUT_S = 150.0

#: What the follower may take after the last byte: its fsync of gigabytes, and the node's own step.
FSYNC_TIMEOUT_S = 300.0

#: In bytes/s. Both sides read again what was kept, at the pace of the slower disk, and little is sent
#: meanwhile: the leader waits this much longer. No disk that holds snapshots is slower.
READ_BACK_RATE_MIN = 32 * 1024 * 1024

#: However much was kept, a peer is never silent for longer than it needs for what the buffers of the line
#: hold of its digests: those of less than a terabyte.
READ_BACK_S_MAX = 6 * 3600.0

#: No stage that is silent for so long comes to its end, and it is below what a socket's timer takes.
TIMEOUT_S_MAX = 24 * 3600.0


@dataclass(frozen=True, slots=True)
class Deadlines:
    """What each stage of a transfer may take, in seconds. Immutable; for clients and servers alike.

    `connect_timeout_s`: a connection and its TLS handshake, asked for by a client.
    `head_timeout_s`: a whole head and a TLS handshake, and the time between two requests, at a server.
    `offer_timeout_s`: from a request's head to the answer's.
    `idle_timeout_s` and `rate_min`: a body, either way. Stalled is who keeps us waiting for so long
    without a byte, or for so long in all with fewer than `rate_min` bytes/s; the waiting counts, not
    the time that our own disk takes.
    `fsync_timeout_s`: from the last byte sent to the answer that it is saved.
    `apply_timeout_s`: what the node makes of a saved snapshot (`on_saved`). When it is over, the peer is
    told to come again (503); the node goes on meanwhile, and the snapshot stays saved.
    """

    connect_timeout_s: float = CONNECT_TIMEOUT_S
    head_timeout_s: float = HEAD_TIMEOUT_S
    offer_timeout_s: float = OFFER_TIMEOUT_S
    idle_timeout_s: float = IDLE_TIMEOUT_S
    rate_min: float = RATE_MIN
    fsync_timeout_s: float = FSYNC_TIMEOUT_S
    apply_timeout_s: float = APPLY_TIMEOUT_S

    def __post_init__(self) -> None:
        check_rate(self.rate_min)
        for field in fields(self):
            # Not the other way round: a NaN is no time either.
            if field.name.endswith("_s") and not 0 < getattr(self, field.name) <= TIMEOUT_S_MAX:
                raise ValueError(
                    f"{field.name} is above 0 seconds, up to {TIMEOUT_S_MAX:.0f}, "
                    f"not {getattr(self, field.name)}"
                )


def check_rate(rate_min: float) -> float:
    """Return `rate_min`, in bytes/s: 0 (a byte now and then will do) or more."""
    if not 0 <= rate_min < float("inf"):
        raise ValueError(f"rate_min must be 0 or more bytes/s, not {rate_min}")
    return rate_min


def read_back_s(kept: int) -> float:
    """How much longer to wait where `kept` bytes are read again, in seconds; a peer names the number."""
    return min(kept / READ_BACK_RATE_MIN, READ_BACK_S_MAX)
