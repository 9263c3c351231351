"""How long either side waits for the other. Numbers and their reasons; no clocks."""

from __future__ import annotations

#: A link that carries nothing for so long is gone; half of a usual dead-peer time, a dozen heartbeats.
IDLE_TIMEOUT_S = 30.0

#: In bytes/s. No link that a cluster runs on is slower; a peer that drips must not keep a place for ever.
RATE_MIN = 16 * 1024


#: In bytes/s. Both sides read again what was kept, at the pace of the slower disk, and little is sent
#: meanwhile: the leader waits this much longer. No disk that holds snapshots is slower.
READ_BACK_RATE_MIN = 32 * 1024 * 1024


def check_rate(rate_min: float) -> float:
    """Return `rate_min`, in bytes/s: 0 (a byte now and then will do) or more."""
    if not 0 <= rate_min < float("inf"):
        raise ValueError(f"rate_min must be 0 or more bytes/s, not {rate_min}")
    return rate_min
