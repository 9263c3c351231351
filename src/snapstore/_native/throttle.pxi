# A throttle: so many bytes a second for all transfers that share it, changeable while they run.
#
# Time is the only state: the moment from which on the next bytes may go (the generic cell rate algorithm,
# as in ATM's traffic contracts). Whoever wants to move bytes pushes it on by what they cost, in one
# atomic exchange, and waits until the moment that it found. No lock, no queue, no thread.
#
# Two kinds of transfers share it, and the urgent go first: while one of those was seen lately, all others
# together have no more than the least share, which keeps them from starving.

cdef enum:
    BURST_NS = 50 * 1000 * 1000  # what was left unused is forgotten after so long: no gush after a pause
    URGENT_NS = 200 * 1000 * 1000  # an urgent transfer that asked so lately still counts

cdef struct ThrottleState:
    uint64_t rate                # bytes/s; 0: no limit
    uint64_t share_min           # bytes/s for all that is not urgent, while something urgent runs
    int64_t free_ns              # from when on the next bytes may go
    int64_t share_free_ns        # the same, for what is not urgent beside what is
    int64_t urgent_ns            # when an urgent transfer last asked
    uint64_t changes             # how often the rate was changed
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


cdef int64_t throttle_push(int64_t* free_ns, uint64_t count, uint64_t rate, int64_t now) noexcept nogil:
    """Take the time that `count` bytes cost at `rate`; from when on they may go."""
    cdef int64_t found = atomic_read_i64(free_ns)
    cdef int64_t start
    while True:
        start = max(found, now - BURST_NS)
        if atomic_swap_i64(free_ns, &found, start + <int64_t>(count * 1e9 / rate)):
            return start


cdef int64_t throttle_take(ThrottleState* throttle, uint64_t count, bint urgent, int64_t now) noexcept nogil:
    """From when on `count` bytes may go, which are accounted for now. At once where there is no limit."""
    cdef uint64_t rate = atomic_read_u64(&throttle.rate)
    cdef uint64_t share = atomic_read_u64(&throttle.share_min)
    cdef int64_t start
    if rate == 0:
        return now
    start = throttle_push(&throttle.free_ns, count, rate, now)
    if urgent:
        atomic_write_i64(&throttle.urgent_ns, now)
    elif share < rate and now - atomic_read_i64(&throttle.urgent_ns) < URGENT_NS:
        # Its share is its own: it does not stand in line behind what is urgent.
        start = throttle_push(&throttle.share_free_ns, count, share, now)
    return start


cdef int throttle_wait(ThrottleState* throttle, uint64_t count, bint urgent, Pulse* pulse) noexcept nogil:
    """Wait until `count` bytes may go; 0, SIGNALLED or CANCELLED. A change of the rate counts at once."""
    cdef int64_t began = now_ns(), now = began, start
    cdef uint64_t changes = atomic_read_u64(&throttle.changes)
    cdef timespec slice
    cdef int code = 0
    start = throttle_take(throttle, count, urgent, now)
    while now < start and code == 0:
        slice.tv_sec = 0
        slice.tv_nsec = <long>min(start - now, <int64_t>SLICE_NS)
        nanosleep(&slice, NULL)
        code = pulse_check(pulse)
        now = now_ns()
        if changes != atomic_read_u64(&throttle.changes):
            changes = atomic_read_u64(&throttle.changes)
            start = throttle_take(throttle, count, urgent, now)
    if now > began:
        atomic_add_u64(&throttle.waited_ns, now - began)
    return code


cdef int pace(Pulse* pulse, uint64_t count) noexcept nogil:
    atomic_add_u64(&pulse.throttle.bytes, count)
    if atomic_read_u64(&pulse.throttle.rate) == 0:
        return 0
    return throttle_wait(pulse.throttle, count, pulse.urgent, pulse)


cdef inline int pace_out(Pulse* pulse, uint64_t count) noexcept nogil:
    """Before `count` bytes are sent."""
    return 0 if pulse.throttle == NULL or pulse.paces_in else pace(pulse, count)


cdef inline int pace_in(Pulse* pulse, uint64_t count) noexcept nogil:
    """Before `count` bytes are read for a save."""
    return pace(pulse, count) if pulse.throttle != NULL and pulse.paces_in else 0
