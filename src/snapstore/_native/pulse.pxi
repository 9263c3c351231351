# The pulse of a transfer: what it looks at between two pieces of work and in every wait.
#
# Time, Ctrl-C, the caller's wish to stop, and the peer's silence. No buffers, no files. A wait that somebody may
# want to stop is cut into slices, so that a signal handler (which only the main thread may run) is never late.
#
# Two rules say when a peer has fallen silent: one wait of `idle_ns_max` without a byte, or so much
# waiting in all with fewer bytes than the least rate asks for. Only waiting counts: how long our own
# disk or the source takes is not the peer's doing.

cdef enum:
    SLICE_MS = 50                # a wait this long, then a look around: half of what is promised
    SLICE_NS = 50 * 1000 * 1000
    SLICE_MS_UNWATCHED = 1000    # nobody may stop it, but its descriptor may have been closed

    # Outcomes that are not an errno; all below the range of errno.
    SIGNALLED = -1001            # a signal handler raised; its exception is set
    CANCELLED = -1002            # Progress.cancel()
    TRUNCATED = -1003            # the source ended early
    TOO_LARGE = -1004            # the source has more than was declared or allowed
    DIGEST_WRONG = -1005         # a chunk is not what its digest says
    FRAME_WRONG = -1006          # the framing of the wire is not as agreed
    SOURCE_RAISED = -1007        # a Python reader raised; the exception is kept beside the source
    RING_CLOSED = -1008          # the pipe's other end went away
    IMAGE_CLOSED = -1009         # the snapshot behind an image was given back
    WHOLE_WRONG = -1010          # all chunks were right, and the digest of the whole is not
    KEPT_WRONG = -1011           # a chunk kept from an earlier attempt is not what the sender has
    TARGET_SILENT = -1012        # who is written to takes nothing, or too little
    GROWTH_REFUSED = -1013       # a save must not grow any more; the exception is kept beside it

cdef struct ProgressState:
    uint64_t bytes
    int cancelled
    ProgressState* whole         # that this is a part of; NULL: of none

cdef struct ThrottleState        # throttle.pxi has it

cdef struct Pulse:
    int64_t checked_ns           # when signals were last looked at
    int64_t idle_ns_max          # silence allowed in one wait; negative: for ever
    uint64_t window_bytes_min    # what must pass for each `idle_ns_max` of waiting
    uint64_t window_bytes        # what has passed in this one
    int64_t window_waited_ns
    bint on_main                 # only the main thread runs Python's signal handlers
    ProgressState* progress      # NULL: nobody watches
    ThrottleState* throttle      # NULL: as fast as it goes
    bint paces_in                # it is for what is read, a save; else for what is sent
    bint urgent                  # among those who share it

cdef extern from * nogil:
    """
    static inline uint64_t atomic_read_u64(const uint64_t *at) { return __atomic_load_n(at, __ATOMIC_RELAXED); }
    static inline void atomic_add_u64(uint64_t *at, uint64_t by) { __atomic_fetch_add(at, by, __ATOMIC_RELAXED); }
    static inline int atomic_read_int(const int *at) { return __atomic_load_n(at, __ATOMIC_ACQUIRE); }
    static inline void atomic_write_int(int *at, int value) { __atomic_store_n(at, value, __ATOMIC_RELEASE); }
    """
    uint64_t atomic_read_u64(const uint64_t* at) noexcept
    void atomic_add_u64(uint64_t* at, uint64_t by) noexcept
    int atomic_read_int(const int* at) noexcept
    void atomic_write_int(int* at, int value) noexcept


cdef inline int64_t now_ns() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return <int64_t>now.tv_sec * 1000000000 + now.tv_nsec


cdef int run_signal_handlers() noexcept with gil:
    # The exception stays set in this thread; the face of the transfer passes it on.
    return PyErr_CheckSignals()


cdef bint progress_cancelled(const ProgressState* progress) noexcept nogil:
    while progress != NULL:
        if atomic_read_int(&progress.cancelled):
            return True
        progress = progress.whole
    return False


cdef int pulse_check(Pulse* pulse) noexcept nogil:
    """0 to go on, SIGNALLED or CANCELLED. Cheap enough for every piece of work."""
    cdef int64_t now
    if progress_cancelled(pulse.progress):
        return CANCELLED
    if not pulse.on_main:
        return 0
    now = now_ns()
    if now - pulse.checked_ns < SLICE_NS:
        return 0
    pulse.checked_ns = now
    return SIGNALLED if run_signal_handlers() else 0


cdef int pulse_waited(Pulse* pulse, int64_t waited_ns) noexcept nogil:
    """Account for some waiting; -ETIMEDOUT where a window of it is full and too little has passed."""
    pulse.window_waited_ns += waited_ns
    if pulse.idle_ns_max < 0 or pulse.window_waited_ns < pulse.idle_ns_max:
        return 0
    if pulse.window_bytes < pulse.window_bytes_min:
        return -ETIMEDOUT
    pulse.window_waited_ns = 0
    pulse.window_bytes = 0
    return 0


cdef int pulse_slice_ms(Pulse* pulse, int64_t began_ns) noexcept nogil:
    """How long poll(2) may wait before there is something to look at."""
    cdef int slice_ms = SLICE_MS if pulse.on_main or pulse.progress != NULL else SLICE_MS_UNWATCHED
    cdef int64_t left_ns
    if pulse.idle_ns_max < 0:
        return slice_ms
    left_ns = max(began_ns + pulse.idle_ns_max - now_ns(), <int64_t>0)
    return <int>min(left_ns / 1000000 + 1, <int64_t>slice_ms)


cdef int pulse_wait_fd(Pulse* pulse, int fd, short events) noexcept nogil:
    """Wait until `fd` is ready for `events`; 0, an outcome, -ETIMEDOUT, or another negative errno."""
    cdef pollfd waited
    cdef int ready, code
    cdef int64_t began = now_ns()
    while True:
        waited.fd = fd
        waited.events = events
        waited.revents = 0
        ready = poll(&waited, 1, pulse_slice_ms(pulse, began))
        if ready > 0:
            # An error or a hang-up is for the read or the write that follows to report.
            return -EBADF if waited.revents & POLLNVAL else pulse_waited(pulse, now_ns() - began)
        if ready < 0 and errno != EINTR:
            return -errno
        if ready < 0:
            pulse.checked_ns = 0
        code = pulse_check(pulse)
        if code:
            return code
        if pulse.idle_ns_max >= 0 and now_ns() - began >= pulse.idle_ns_max:
            return -ETIMEDOUT


cdef inline void pulse_moved(Pulse* pulse, uint64_t count) noexcept nogil:
    cdef ProgressState* progress = pulse.progress
    while progress != NULL:
        atomic_add_u64(&progress.bytes, count)
        progress = progress.whole


# Waits for another thread of the core: by the steady clock, and in slices too.

cdef void monotonic_init(pthread_mutex_t* mutex, pthread_cond_t* changed) noexcept nogil:
    cdef pthread_condattr_t attributes
    pthread_mutex_init(mutex, NULL)
    pthread_condattr_init(&attributes)
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC)
    pthread_cond_init(changed, &attributes)
    pthread_condattr_destroy(&attributes)


cdef void wait_slice(pthread_cond_t* changed, pthread_mutex_t* mutex) noexcept nogil:
    cdef timespec until
    clock_gettime(CLOCK_MONOTONIC, &until)
    until.tv_nsec += SLICE_NS
    if until.tv_nsec >= 1000000000:
        until.tv_nsec -= 1000000000
        until.tv_sec += 1
    pthread_cond_timedwait(changed, mutex, &until)
