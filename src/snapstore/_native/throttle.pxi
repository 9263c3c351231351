# A throttle: so many bytes a second for all transfers that share it, changeable while they run.
#
# Time is the only state: the moment from which on the next bytes may go (the generic cell rate algorithm,
# as in ATM's traffic contracts). Whoever wants to move bytes pushes it on by what they cost, in one
# atomic exchange, and waits until the moment that it found. No lock, no queue, no thread.
#
# A change of the rate stretches what is left of every wait, and of the moment itself, by as much: nothing
# that went is forgotten, and nobody has to ask anew.
#
# Two kinds of transfers share it, and the urgent go first: while one of those was seen lately, all others
# together have no more than their share.
#
# Nobody starves: whatever the rate and however many share it, a piece waits no longer than it would with
# the lowest limit to itself, so that no transfer falls to where its peer counts as stalled. What goes for
# that reason comes on top of the rate, and is not accounted for: else the moment would run away into the
# future while many wait, and hold back the few that are left later.

cdef enum:
    BURST_NS = 50 * 1000 * 1000  # what was left unused is forgotten after so long: no gush after a pause
    URGENT_NS = 200 * 1000 * 1000  # an urgent transfer whose turn came so lately still counts
    SHARE_PART = 8               # of the rate, for all that is not urgent beside what is
    RATE_LEAST = 64 * 1024       # bytes/s: four times the least rate at which a peer counts as alive

cdef struct ThrottleState:
    uint64_t rate                # bytes/s; 0: no limit
    int64_t free_ns              # from when on the next bytes may go
    int64_t share_free_ns        # the same, for what is not urgent beside what is
    int64_t urgent_ns            # when an urgent transfer last had its turn, or will have it
    uint64_t bytes               # moved by all together, since the beginning
    uint64_t waited_ns           # by all together, since the beginning

cdef extern from * nogil:
    """
    static inline int64_t atomic_read_i64(const int64_t *at) { return __atomic_load_n(at, __ATOMIC_RELAXED); }
    static inline void atomic_write_i64(int64_t *at, int64_t value) { __atomic_store_n(at, value, __ATOMIC_RELAXED); }
    static inline void atomic_write_u64(uint64_t *at, uint64_t value) { __atomic_store_n(at, value, __ATOMIC_RELAXED); }
    static inline int atomic_swap_i64(int64_t *at, int64_t *expected, int64_t value) {
        return __atomic_compare_exchange_n(at, expected, value, 0, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
    }
    """
    int64_t atomic_read_i64(const int64_t* at) noexcept
    void atomic_write_i64(int64_t* at, int64_t value) noexcept
    void atomic_write_u64(uint64_t* at, uint64_t value) noexcept
    bint atomic_swap_i64(int64_t* at, int64_t* expected, int64_t value) noexcept


cdef int64_t throttle_push(int64_t* free_ns, uint64_t count, uint64_t rate, int64_t now,
                           int64_t latest) noexcept nogil:
    """Take the time that `count` bytes cost at `rate`; from when on they may go, which is `latest` at last."""
    cdef int64_t found = atomic_read_i64(free_ns)
    cdef int64_t start
    while True:
        start = max(found, now - BURST_NS)
        if start > latest:
            return latest
        if atomic_swap_i64(free_ns, &found, start + <int64_t>(count * 1e9 / rate)):
            return start


cdef int64_t throttle_take(ThrottleState* throttle, uint64_t count, uint64_t rate, bint urgent, int64_t now,
                           int64_t latest) noexcept nogil:
    """From when on `count` bytes may go, which are accounted for now."""
    cdef int64_t start = throttle_push(&throttle.free_ns, count, rate, now, latest)
    if urgent:
        # Who waits for its turn is there, too, however long a turn takes at this rate.
        atomic_write_i64(&throttle.urgent_ns, max(start, now))
    elif now - atomic_read_i64(&throttle.urgent_ns) < URGENT_NS:
        # Its share is its own: it does not stand in line behind what is urgent.
        start = throttle_push(&throttle.share_free_ns, count, max(rate // SHARE_PART, <uint64_t>1), now, latest)
    return start


cdef inline int64_t stretched(int64_t until_ns, int64_t now, uint64_t before, uint64_t after) noexcept nogil:
    """What is left of a wait, in bytes still the same, at another rate."""
    if until_ns <= now or after == 0:
        return now
    return now + <int64_t>((until_ns - now) * (<double>before / after))


cdef void throttle_stretch(int64_t* free_ns, int64_t now, uint64_t before, uint64_t after) noexcept nogil:
    cdef int64_t found = atomic_read_i64(free_ns)
    while not atomic_swap_i64(free_ns, &found, stretched(found, now, before, after)):
        pass


cdef void throttle_change(ThrottleState* throttle, uint64_t rate) noexcept nogil:
    """For one thread at a time; whoever waits sees it at its next look."""
    cdef int64_t now = now_ns()
    cdef uint64_t before = atomic_read_u64(&throttle.rate)
    throttle_stretch(&throttle.free_ns, now, before, rate)
    throttle_stretch(&throttle.share_free_ns, now, before, rate)
    atomic_write_u64(&throttle.rate, rate)


cdef int throttle_wait(ThrottleState* throttle, uint64_t count, uint64_t rate, bint urgent,
                       Pulse* pulse) noexcept nogil:
    """Wait until `count` bytes may go; 0, SIGNALLED or CANCELLED. A change of the rate counts at once."""
    cdef int64_t began = now_ns(), now = began, start
    cdef int64_t latest = began + <int64_t>(count * 1e9 / RATE_LEAST)
    cdef uint64_t changed
    cdef timespec slice
    cdef int code = 0
    start = throttle_take(throttle, count, rate, urgent, now, latest)
    while now < start and code == 0:
        slice.tv_sec = 0
        slice.tv_nsec = <long>min(start - now, <int64_t>SLICE_NS)
        nanosleep(&slice, NULL)
        code = pulse_check(pulse)
        now = now_ns()
        changed = atomic_read_u64(&throttle.rate)
        if changed != rate:
            start = min(latest, stretched(start, now, rate, changed))
            rate = changed
    if now > began:
        atomic_add_u64(&throttle.waited_ns, now - began)
    return code


cdef int pace(Pulse* pulse, uint64_t count) noexcept nogil:
    atomic_add_u64(&pulse.throttle.bytes, count)
    cdef uint64_t rate = atomic_read_u64(&pulse.throttle.rate)
    return throttle_wait(pulse.throttle, count, rate, pulse.urgent, pulse) if rate else 0


cdef inline int pace_out(Pulse* pulse, uint64_t count) noexcept nogil:
    """Before `count` bytes are sent."""
    return 0 if pulse.throttle == NULL or pulse.paces_in else pace(pulse, count)


cdef inline int pace_in(Pulse* pulse, uint64_t count) noexcept nogil:
    """Before `count` bytes are read for a save."""
    return pace(pulse, count) if pulse.throttle != NULL and pulse.paces_in else 0
