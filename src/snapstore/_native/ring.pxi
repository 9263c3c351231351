# The ring: a bounded number of page-aligned slots between one writer and one reader.
#
# Slots change owner, bytes stay put. Plain C under one mutex; Python's reasons for a close are kept
# by the faces. A slot is FREE, then FILLING, READY and LOANED, in this order; loans may come back in
# any order, and the writer waits for the slot that is next, so that order is kept by position alone.

cdef enum:
    HUGE_PAGE = 2 * 1024 * 1024  # on x86-64, and on arm64 with pages of 4 KiB; elsewhere an alignment like others

cdef enum:
    SLOT_FREE, SLOT_FILLING, SLOT_READY, SLOT_LOANED

cdef enum RingEnd:
    END_OPEN = 0
    END_DONE = 1                 # closed in good order
    END_FAILED = 2               # closed for a reason; what is queued is worth nothing

cdef struct RingSlot:
    int state
    size_t length
    uint64_t offset              # of its first byte in the stream

cdef struct Ring:
    pthread_mutex_t mutex
    pthread_cond_t changed
    char* memory
    char* mapping                # begins before the memory, and ends behind it
    int pid                      # whose it is: a forked child has neither its threads nor, perhaps, its memory
    RingSlot* slots
    size_t chunk_size            # what a slot can take
    size_t stride                # from slot to slot: the chunk size, rounded up to pages
    uint32_t chunks
    uint64_t next_write
    uint64_t next_read
    uint64_t bytes               # committed so far
    RingEnd writer
    RingEnd reader


cdef Ring* ring_new(size_t chunk_size, uint32_t chunks) noexcept nogil:
    """A ring with all slots free, or NULL where there is no memory for it."""
    cdef Ring* ring = <Ring*>calloc(1, sizeof(Ring))
    if ring == NULL:
        return NULL
    ring.pid = getpid()
    ring.chunk_size = chunk_size
    ring.stride = (chunk_size + PAGE - 1) & ~<size_t>(PAGE - 1)
    ring.chunks = chunks
    ring.slots = <RingSlot*>calloc(chunks, sizeof(RingSlot))
    # More than the slots need, so that they begin where a huge page may; what is not used costs nothing.
    ring.mapping = <char*>mmap(NULL, ring.stride * chunks + HUGE_PAGE, PROT_READ | PROT_WRITE,
                               MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
    ring.memory = ring.mapping + -<size_t>ring.mapping % HUGE_PAGE
    if ring.slots == NULL or ring.mapping == MAP_FAILED:
        if ring.mapping != MAP_FAILED:
            munmap(ring.mapping, ring.stride * chunks + HUGE_PAGE)
        free(ring.slots)
        free(ring)
        return NULL
    monotonic_init(&ring.mutex, &ring.changed)
    return ring


cdef void ring_ask_for_huge_pages(Ring* ring) noexcept nogil:
    """For direct I/O of many bytes: pages in a row are one request to the disk, single ones are many.

    With single pages a save reached 0.7 of what the disk does, with huge ones all of it, at two thirds
    of the CPU time. Not for small ones: the first byte has the system clear 2 MiB. Where the system has
    none to give, or is told never to, nothing else changes. No child gets them either: pages that are shared
    with one fall apart at the next write, and the rest of the save is as slow as with single ones.
    """
    madvise(ring.memory, ring.stride * ring.chunks, MADV_HUGEPAGE)
    madvise(ring.memory, ring.stride * ring.chunks, MADV_DONTFORK)


cdef void ring_free(Ring* ring) noexcept nogil:
    """Frees and never waits: nobody may be inside any more. In a forked child the threads inside are gone."""
    if ring == NULL:
        return
    if ring.pid == getpid():
        munmap(ring.mapping, ring.stride * ring.chunks + HUGE_PAGE)
        pthread_cond_destroy(&ring.changed)
        pthread_mutex_destroy(&ring.mutex)
    free(ring.slots)
    free(ring)


cdef inline char* ring_memory(Ring* ring, uint64_t number) noexcept nogil:
    return ring.memory + (number % ring.chunks) * ring.stride


cdef int ring_try_reserve(Ring* ring) noexcept nogil:
    """1 when the next slot is now FILLING, 0 when there is none yet; the mutex is held."""
    cdef RingSlot* slot = &ring.slots[ring.next_write % ring.chunks]
    if ring.reader != END_OPEN or ring.writer != END_OPEN:
        return RING_CLOSED
    if slot.state != SLOT_FREE:
        return 0
    slot.state = SLOT_FILLING
    return 1


cdef int ring_try_take(Ring* ring) noexcept nogil:
    """1 when the next chunk is now LOANED, 0 when there is none yet; the mutex is held."""
    cdef RingSlot* slot = &ring.slots[ring.next_read % ring.chunks]
    if ring.reader != END_OPEN or ring.writer == END_FAILED:
        return RING_CLOSED
    if slot.state == SLOT_READY and ring.next_read < ring.next_write:
        slot.state = SLOT_LOANED
        ring.next_read += 1
        return 1
    return 0


cdef int ring_reserve(Ring* ring, Pulse* pulse) noexcept nogil:
    """Own the next slot, `ring.next_write`; 0, RING_CLOSED, or what the pulse says."""
    cdef int64_t began = now_ns()
    cdef int outcome, code
    pthread_mutex_lock(&ring.mutex)
    outcome = ring_try_reserve(ring)
    while outcome == 0:
        code = ring_wait(ring, pulse, began)
        if code:
            pthread_mutex_unlock(&ring.mutex)
            return code
        outcome = ring_try_reserve(ring)
    pthread_mutex_unlock(&ring.mutex)
    return 0 if outcome == 1 else outcome


cdef int ring_take(Ring* ring, Pulse* pulse, uint64_t* number) noexcept nogil:
    """1 with the next chunk on loan, 0 at the end of the stream, or a negative outcome."""
    cdef int64_t began = now_ns()
    cdef int outcome, code
    pthread_mutex_lock(&ring.mutex)
    outcome = ring_try_take(ring)
    while outcome == 0 and ring.writer != END_DONE:
        code = ring_wait(ring, pulse, began)
        if code:
            pthread_mutex_unlock(&ring.mutex)
            return code
        outcome = ring_try_take(ring)
    number[0] = ring.next_read - 1
    pthread_mutex_unlock(&ring.mutex)
    return outcome


cdef int ring_wait(Ring* ring, Pulse* pulse, int64_t began) noexcept nogil:
    """One slice of waiting; 0 to look again, or what the pulse says. The mutex is held."""
    cdef int code
    wait_slice(&ring.changed, &ring.mutex)
    # A signal handler runs without the mutex: it may itself close the pipe.
    pthread_mutex_unlock(&ring.mutex)
    code = pulse_check(pulse)
    if code == 0 and pulse.idle_ns_max >= 0 and now_ns() - began >= pulse.idle_ns_max:
        code = -ETIMEDOUT
    pthread_mutex_lock(&ring.mutex)
    return code


cdef void ring_commit(Ring* ring, size_t length) noexcept nogil:
    """Hand the reserved slot to the reader; a length of 0 gives it back unused."""
    cdef RingSlot* slot
    pthread_mutex_lock(&ring.mutex)
    slot = &ring.slots[ring.next_write % ring.chunks]
    if length == 0:
        slot.state = SLOT_FREE
    else:
        slot.length = length
        slot.offset = ring.bytes
        slot.state = SLOT_READY
        ring.bytes += length
        ring.next_write += 1
    pthread_cond_broadcast(&ring.changed)
    pthread_mutex_unlock(&ring.mutex)


cdef void ring_give_back(Ring* ring, uint64_t number) noexcept nogil:
    pthread_mutex_lock(&ring.mutex)
    ring.slots[number % ring.chunks].state = SLOT_FREE
    pthread_cond_broadcast(&ring.changed)
    pthread_mutex_unlock(&ring.mutex)


cdef bint ring_close_writer(Ring* ring, RingEnd end) noexcept nogil:
    """Whether this call was the first to close this end."""
    cdef bint first
    pthread_mutex_lock(&ring.mutex)
    first = ring.writer == END_OPEN
    if first:
        ring.writer = end
    pthread_cond_broadcast(&ring.changed)
    pthread_mutex_unlock(&ring.mutex)
    return first


cdef bint ring_close_reader(Ring* ring, RingEnd end) noexcept nogil:
    """Whether this call was the first to close this end."""
    cdef bint first
    pthread_mutex_lock(&ring.mutex)
    first = ring.reader == END_OPEN
    if first:
        ring.reader = end
    pthread_cond_broadcast(&ring.changed)
    pthread_mutex_unlock(&ring.mutex)
    return first
