# The face of a throttle.

RATE_LIMIT_MIN = RATE_LEAST
"""The lowest limit, and what each transfer has in any case, in bytes/s: four times the least rate at which a peer
counts as alive."""

cdef uint64_t check_rate_limit(rate) except? 0xBAD:
    if not RATE_LIMIT_MIN <= rate <= 10 ** 15:
        raise ValueError(f"a rate is at least {RATE_LIMIT_MIN} bytes/s, below which peers take a transfer for "
                         f"stalled, not {rate}")
    return <uint64_t>rate


cdef class Throttle:
    """How many bytes a second all transfers that are given it may move, together.

    `rate` in bytes/s, at least RATE_LIMIT_MIN; None for no limit. While a transfer that is urgent runs,
    those that are not have an eighth of that together, and else all of it. Each transfer has
    RATE_LIMIT_MIN in any case, so that many at a low rate are faster together than it says. Made once for
    a node and shared: any thread may use it, and change it while transfers run.
    """

    cdef ThrottleState state

    def __init__(self, rate=None):
        self.state.urgent_ns = -URGENT_NS
        self.rate = rate

    @property
    def rate(self):
        """The limit in bytes/s; None where there is none. A change counts at once."""
        return atomic_read_u64(&self.state.rate) or None

    @rate.setter
    def rate(self, rate):
        # One at a time: the GIL is held.
        throttle_change(&self.state, 0 if rate is None else check_rate_limit(rate))

    @property
    def bytes(self):
        """What all transfers together have moved, in bytes."""
        return atomic_read_u64(&self.state.bytes)

    @property
    def waited_s(self):
        """What all transfers together have waited for it, in seconds."""
        return atomic_read_u64(&self.state.waited_ns) / 1e9

    def __repr__(self):
        return f"<Throttle {self.rate or 'no'} bytes/s>"
