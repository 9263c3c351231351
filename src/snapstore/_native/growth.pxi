# How far a save may grow whose size nobody knows: a Python callable is asked, once for many chunks.

cdef class _Growth:
    """A callable that says how far, and what it raised."""

    cdef object ask
    cdef object error


cdef int growth_ask(void* borrowed, uint64_t wanted, uint64_t* size_max) noexcept with gil:
    """Ask for `wanted` bytes in all; 0, and `size_max` is how many it may be now, or GROWTH_REFUSED."""
    cdef _Growth growth = <_Growth>borrowed
    try:
        size_max[0] = check_size(growth.ask(wanted), "what a save may grow to")
        return 0
    except BaseException as error:  # It crosses C and is raised again by the save's face.
        growth.error = error
        return GROWTH_REFUSED
