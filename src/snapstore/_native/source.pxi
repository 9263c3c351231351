# Where bytes come from: one struct for every kind of source, and one way to ask for the next chunk.
#
# A source fills a buffer and digests the bytes piece by piece while they are in the cache. Sources
# that hold their bytes in memory can lend them instead. No targets here.

cdef enum:
    PIECE_SIZE = 256 * 1024      # read, digested, sent before the next: fits the cache of one core

cdef enum SourceKind:
    SOURCE_FILE                  # a regular file or a block device, by position
    SOURCE_STREAM                # a regular file from where it stands, a pipe, a terminal
    SOURCE_SOCKET
    SOURCE_MEMORY
    SOURCE_RING
    SOURCE_IMAGE
    SOURCE_BODY
    SOURCE_FRAMES
    SOURCE_READER                # a Python object: the only kind that takes the GIL, once a chunk

cdef struct SourceState:
    SourceKind kind
    int fd
    bint polls                   # a stream that may keep us waiting
    uint64_t offset              # of the next byte: in the file, the memory or the image
    uint64_t left                # bytes still wanted; SIZE_UNKNOWN: all there are
    const char* memory
    uint64_t memory_size
    Ring* ring
    uint64_t loan                # the ring's chunk that is being used up
    size_t loan_start
    size_t loan_length           # 0: none on loan
    ImageState* image
    Seat seat                    # among those who read the image
    BodyState* body
    FrameState* frame
    void* reader                 # a borrowed reference to a _ReaderSource


cdef int64_t stream_read(SourceState* source, char* buffer, size_t size, Pulse* pulse) noexcept nogil:
    cdef ssize_t count
    cdef int code
    while True:
        if source.polls:
            code = pulse_wait_fd(pulse, source.fd, POLLIN)
            if code:
                return code
        count = read(source.fd, buffer, size)
        if count >= 0:
            pulse.window_bytes += count
            return count
        if errno == EAGAIN:
            source.polls = True
        elif errno != EINTR:
            return -errno
        code = pulse_check(pulse)
        if code:
            return code


cdef int64_t ring_lend(SourceState* source, Pulse* pulse) noexcept nogil:
    """Make sure that a chunk of the ring is on loan; how much of it is left, 0 at the end."""
    cdef RingSlot* slot
    cdef int outcome
    if source.loan_length == 0:
        outcome = ring_take(source.ring, pulse, &source.loan)
        if outcome <= 0:
            return outcome
        slot = &source.ring.slots[source.loan % source.ring.chunks]
        source.loan_start = 0
        source.loan_length = slot.length
    return source.loan_length


cdef inline const char* ring_lent(SourceState* source) noexcept nogil:
    return ring_memory(source.ring, source.loan) + source.loan_start


cdef void ring_used(SourceState* source, size_t count) noexcept nogil:
    source.loan_start += count
    source.loan_length -= count
    if source.loan_length == 0:
        ring_give_back(source.ring, source.loan)


cdef int64_t source_read(SourceState* source, char* buffer, size_t size, Pulse* pulse) noexcept nogil:
    """Some bytes, 0 at the end, or a negative outcome."""
    cdef int64_t count
    if source.kind == SOURCE_FILE:
        count = pread(source.fd, buffer, size, <off_t>source.offset)
        if count < 0:
            count = -errno
    elif source.kind == SOURCE_STREAM:
        count = stream_read(source, buffer, size, pulse)
    elif source.kind == SOURCE_SOCKET:
        count = socket_read(source.fd, buffer, size, pulse)
    elif source.kind == SOURCE_MEMORY:
        memcpy(buffer, source.memory + source.offset, size)
        count = size
    elif source.kind == SOURCE_RING:
        count = ring_lend(source, pulse)
        if count > 0:
            count = min(<uint64_t>count, size)
            memcpy(buffer, ring_lent(source), count)
            ring_used(source, count)
    elif source.kind == SOURCE_IMAGE:
        count = window_read(source.image, &source.seat, buffer, size, source.offset, pulse)
    elif source.kind == SOURCE_BODY:
        count = body_read(source.body, buffer, size, pulse)
    else:
        count = reader_read(source.reader, buffer, size)
    if count > 0:
        source.offset += count
        if source.left != SIZE_UNKNOWN:
            source.left -= count
        if source.kind == SOURCE_IMAGE and source.left == 0:
            window_leave(&source.seat)   # what comes now, to send it or to write it, keeps nobody waiting
    return count


cdef int64_t source_fill(SourceState* source, char* buffer, size_t size, uint32_t* digest,
                         Pulse* pulse) noexcept nogil:
    """Fill `buffer`, digesting unless `digest` is NULL; fewer bytes than `size` only at the end. A count, or an outcome."""
    cdef size_t done = 0, piece
    cdef int64_t count
    cdef int code
    if source.kind == SOURCE_FRAMES:
        count = frame_read(source.frame, buffer, digest, pulse)
        if count > 0:
            pulse_moved(pulse, count)
        return count
    if digest != NULL:
        digest[0] = 0
    while done < size and source.left:
        piece = min(min(size - done, <size_t>PIECE_SIZE), source.left)
        code = pace_in(pulse, piece)
        if code:
            return code
        count = source_read(source, buffer + done, piece, pulse)
        if count == -EINTR:
            count = 0
        elif count <= 0:
            return count if count else <int64_t>done
        if digest != NULL:
            digest[0] = crc32c_of(digest[0], buffer + done, count)
        pulse_moved(pulse, count)
        done += count
        code = pulse_check(pulse)
        if code:
            return code
    return done


cdef int source_at_end(SourceState* source, Pulse* pulse) noexcept nogil:
    """After all wanted bytes came: 0 when there are no more, TOO_LARGE, or another outcome.

    A socket is not asked: what follows on it may belong to somebody else, or never come.
    """
    cdef char byte
    cdef int64_t count
    if source.kind == SOURCE_SOCKET:
        return 0
    if source.kind == SOURCE_MEMORY:
        return TOO_LARGE if source.offset < source.memory_size else 0
    if source.kind == SOURCE_IMAGE:
        return TOO_LARGE if source.offset < source.image.size else 0
    if source.kind == SOURCE_FRAMES:
        # Its end verifies the whole, and that nothing follows: one more chunk is refused by its head.
        source.frame.size = source.frame.offset
        count = frame_read(source.frame, &byte, <uint32_t*>&source.loan, pulse)
    else:
        source.left = 1
        count = source_read(source, &byte, 1, pulse)
    return <int>count if count <= 0 else TOO_LARGE


cdef inline bint source_kept(SourceState* source) noexcept nogil:
    """Whether what came last is a chunk that the receiver kept from an earlier attempt."""
    return source.kind == SOURCE_FRAMES and source.frame.kept


cdef void source_finish(SourceState* source) noexcept nogil:
    """Give back what is on loan."""
    if source.kind == SOURCE_RING and source.loan_length:
        source.loan_length = 0
        ring_give_back(source.ring, source.loan)
    if source.kind == SOURCE_IMAGE:
        window_leave(&source.seat)
