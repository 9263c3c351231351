# The face of a pulse: the progress that is watched, and how a transfer's options become a pulse.

cdef class Progress:
    """How far a transfer is, to be looked at from any thread while it runs.

    A part of `whole`, where that is given: what passes counts there, too, and to cancel that cancels this.
    """

    cdef ProgressState state
    cdef Progress whole

    def __cinit__(self, Progress whole=None):
        self.whole = whole       # once and for all: a chain that changed could end in nothing, or in itself
        if whole is not None:
            self.state.whole = &whole.state

    @property
    def bytes(self):
        """How many bytes of the snapshot have passed."""
        return atomic_read_u64(&self.state.bytes)

    @property
    def cancelled(self):
        """Whether `cancel` was called."""
        return progress_cancelled(&self.state)

    def cancel(self):
        """Make the transfer end within 100 ms, with PipeClosed. Any thread.

        A resumable save writes out first what it has verified, a few chunks at most.
        """
        atomic_write_int(&self.state.cancelled, 1)


cdef int pulse_start(Pulse* pulse, Progress progress, idle_timeout_s, rate_min=0, Throttle throttle=None,
                     bint urgent=True, bint paces_in=False) except -1:
    cdef double idle_s, rate
    memset(pulse, 0, sizeof(Pulse))
    pulse.idle_ns_max = -1
    if idle_timeout_s is not None:
        idle_s = idle_timeout_s
        if not idle_s > 0:
            raise ValueError(f"idle_timeout_s must be above 0, or None for no limit, not {idle_timeout_s}")
        pulse.idle_ns_max = <int64_t>(min(idle_s, 1e9) * 1e9)
        rate = rate_min
        if not 0 <= rate <= 1e15:
            raise ValueError(f"rate_min must be 0 or more bytes/s, not {rate_min}")
        pulse.window_bytes_min = <uint64_t>(rate * pulse.idle_ns_max / 1e9)
    elif rate_min:
        raise ValueError("rate_min needs an idle_timeout_s: it is measured over that time")
    pulse.on_main = threading_main().ident == PyThread_get_thread_ident()
    if progress is not None:
        pulse.progress = &progress.state
    if throttle is not None:
        pulse.throttle = &throttle.state
        pulse.urgent = urgent
        pulse.paces_in = paces_in
    return 0
