# Whole transfers on the way out: a source into a ring, or onto a descriptor, bare or in frames.
#
# Each is one call without the GIL, from the first byte to the last.

cdef struct Digests:
    uint32_t* chunks
    size_t count
    size_t capacity
    uint32_t whole
    uint64_t size
    const uint32_t* expected     # NULL, or what each chunk must be
    size_t expected_count


cdef int digests_add(Digests* digests, uint32_t digest, uint64_t size) noexcept nogil:
    cdef uint32_t* larger
    if digests.expected != NULL and (digests.count >= digests.expected_count
                                     or digests.expected[digests.count] != digest):
        return DIGEST_WRONG
    if digests.count == digests.capacity:
        digests.capacity = max(<size_t>64, 2 * digests.capacity)
        larger = <uint32_t*>realloc(digests.chunks, digests.capacity * sizeof(uint32_t))
        if larger == NULL:
            return -ENOMEM
        digests.chunks = larger
    digests.chunks[digests.count] = digest
    digests.count += 1
    digests.whole = crc32c_join(digests.whole, digest, size)
    digests.size += size
    return 0


# Source to ring.

cdef int64_t ring_feed(Ring* ring, size_t* partial, SourceState* source, Pulse* pulse) noexcept nogil:
    """Copy all of `source` into the ring; how many bytes, or a negative outcome.

    `partial` is how full the reserved slot is, kept from call to call, so that many small writes
    share a slot.
    """
    cdef int64_t done = 0, count
    cdef int code
    while source.left:
        if partial[0] == 0:
            code = ring_reserve(ring, pulse)
            if code:
                return code
        count = source_fill(source, ring_memory(ring, ring.next_write) + partial[0],
                            ring.chunk_size - partial[0], NULL, pulse)
        if count <= 0:
            if partial[0] == 0:
                ring_commit(ring, 0)
            return count if count else done
        done += count
        partial[0] += count
        if partial[0] == ring.chunk_size:
            partial[0] = 0
            ring_commit(ring, ring.chunk_size)
    return done


# Source to descriptor.

cdef struct StreamTarget:
    int fd
    bint is_socket
    bint is_pipe
    bint nowait_refused
    bint heeds_answer            # a peer that speaks while we send has said all it will
    bint more                    # follows at once: what a packet has room for may wait for it

cdef void target_look(StreamTarget* target, int fd) noexcept nogil:
    cdef struct_stat status
    memset(target, 0, sizeof(StreamTarget))
    target.fd = fd
    if fstat(fd, &status) == 0:
        target.is_socket = S_ISSOCK(status.st_mode)
        target.is_pipe = S_ISFIFO(status.st_mode)


cdef ssize_t target_write_some(StreamTarget* target, const char* data, size_t size) noexcept nogil:
    """One write that does not block where the descriptor lets us say so."""
    cdef iovec vector
    cdef ssize_t count
    if target.is_socket:
        return c_send(target.fd, data, size, MSG_DONTWAIT | MSG_NOSIGNAL | (MSG_MORE if target.more else 0))
    if not target.is_pipe:
        return write(target.fd, data, min(size, <size_t>PIECE_SIZE))
    if not target.nowait_refused:
        vector.iov_base = <void*>data
        vector.iov_len = size
        count = pwritev2(target.fd, &vector, 1, -1, RWF_NOWAIT)
        if count >= 0 or (errno != EOPNOTSUPP and errno != ENOSYS and errno != EINVAL):
            return count
        target.nowait_refused = True
    # What a pipe that polls as writable takes without blocking.
    return write(target.fd, data, min(size, <size_t>PIPE_BUF))


cdef int target_wait(StreamTarget* target, Pulse* pulse) noexcept nogil:
    """Wait for room; EPIPE when the peer answers instead, as it does when it refuses midway."""
    cdef pollfd looked
    cdef int code = pulse_wait_fd(pulse, target.fd, (POLLOUT | POLLIN) if target.heeds_answer else POLLOUT)
    if code == -ETIMEDOUT:
        return TARGET_SILENT
    if code or not target.heeds_answer:
        return code
    looked.fd = target.fd
    looked.events = POLLIN
    return -EPIPE if poll(&looked, 1, 0) > 0 else 0


cdef int target_write(StreamTarget* target, const char* data, size_t size, Pulse* pulse) noexcept nogil:
    cdef ssize_t count
    cdef size_t paced = 0        # may go now
    cdef int code
    while size:
        if paced == 0:
            paced = min(size, <size_t>PIECE_SIZE) if pulse.throttle != NULL else size
            code = pace_out(pulse, paced)
            if code:
                return code
        if target.nowait_refused:
            code = target_wait(target, pulse)
            if code:
                return code
        count = target_write_some(target, data, paced)
        if count > 0:
            pulse.window_bytes += count
            data += count
            size -= count
            paced -= count
        elif count == 0:
            return -EIO
        elif errno == EAGAIN:
            code = target_wait(target, pulse)
            if code:
                return code
        elif errno != EINTR:
            return -errno
        code = pulse_check(pulse)
        if code:
            return code
    return 0


cdef int64_t source_next(SourceState* source, char* scratch, size_t size, const char** data,
                         uint32_t* digest, Pulse* pulse) noexcept nogil:
    """The next bytes, lent where they already lie in memory, else in `scratch`; `source_used` follows."""
    cdef int64_t count
    if source.kind == SOURCE_MEMORY:
        count = min(<uint64_t>min(size, <size_t>PIECE_SIZE), source.left)
        data[0] = source.memory + source.offset
    elif source.kind == SOURCE_RING and source.left:
        count = ring_lend(source, pulse)
        data[0] = ring_lent(source)
        if count > 0:
            count = min(min(<uint64_t>count, size), source.left)
    else:
        data[0] = scratch
        return source_fill(source, scratch, size, digest, pulse)
    if count > 0:
        if digest != NULL:
            digest[0] = crc32c_of(0, data[0], count)
        pulse_moved(pulse, count)
    return count


cdef void source_used(SourceState* source, int64_t count) noexcept nogil:
    """Give back what `source_next` lent."""
    if source.kind == SOURCE_MEMORY:
        source.offset += count
    elif source.kind == SOURCE_RING:
        ring_used(source, count)
    else:
        return
    if source.left != SIZE_UNKNOWN:
        source.left -= count


cdef int64_t stream_out(SourceState* source, int fd, char* scratch, size_t scratch_size,
                        Pulse* pulse) noexcept nogil:
    """Write all of `source` to `fd`, bare; how many bytes, or a negative outcome."""
    cdef StreamTarget target
    cdef const char* data = NULL
    cdef int64_t done = 0, count
    cdef int code
    target_look(&target, fd)
    while True:
        count = source_next(source, scratch, scratch_size, &data, NULL, pulse)
        if count <= 0:
            return count if count else done
        code = target_write(&target, data, count, pulse)
        if code:
            return code
        source_used(source, count)
        done += count


cdef int64_t stream_out_proved(SourceState* source, int fd, char* scratch, uint64_t size, size_t chunk_size,
                               Digests* digests, Pulse* pulse) noexcept nogil:
    """As `stream_out`, of `size` bytes; what ends a chunk goes out only where its digest is as expected.

    So whoever waits for `size` bytes never has them all of a source that is not what it should be.
    """
    cdef StreamTarget target
    cdef const char* data = NULL
    cdef uint64_t done = 0
    cdef size_t in_chunk = 0
    cdef uint32_t digest = 0, part = 0
    cdef int64_t count
    cdef int code
    target_look(&target, fd)
    while done < size:
        count = source_next(source, scratch, min(<size_t>PIECE_SIZE, chunk_size - in_chunk), &data, &part, pulse)
        if count <= 0:
            return count if count else TRUNCATED
        digest = crc32c_join(digest, part, count)
        in_chunk += count
        if in_chunk == chunk_size or done + count == size:
            code = digests_add(digests, digest, in_chunk)
            if code:
                return code
            in_chunk = digest = 0
        code = target_write(&target, data, count, pulse)
        if code:
            return code
        source_used(source, count)
        done += count
    return done


cdef struct FrameTarget:
    StreamTarget stream
    bint http_chunked            # each frame is a chunk of the HTTP body besides
    uint64_t kept_size           # what the receiver has already: its digests will do
    char* scratch                # a chunk, or at least a piece where none is gathered
    size_t chunk_size


cdef int frame_words(FrameTarget* target, const char* words, size_t size, bint more, Pulse* pulse) noexcept nogil:
    """A head or a foot; a peer that gets a packet for each is woken for each."""
    cdef int code
    target.stream.more = more
    code = target_write(&target.stream, words, size, pulse)
    target.stream.more = False
    return code


cdef int frame_open(FrameTarget* target, uint32_t magic, size_t length, uint64_t offset,
                    Pulse* pulse) noexcept nogil:
    cdef char head[64]
    cdef size_t carried = 0 if magic == KEPT_MAGIC else length
    cdef int start = 0
    if target.http_chunked:
        start = snprintf(head, 32, b"%zx\r\n", carried + FRAME_HEAD_SIZE + FRAME_FOOT_SIZE)
    frame_pack(head + start, magic, <uint32_t>length, offset)
    return frame_words(target, head, start + FRAME_HEAD_SIZE, True, pulse)


cdef int frame_close(FrameTarget* target, uint32_t digest, bint last, bint more, Pulse* pulse) noexcept nogil:
    cdef char foot[16]
    cdef uint32_t word = htobe32(digest)
    memcpy(foot, &word, FRAME_FOOT_SIZE)
    memcpy(foot + FRAME_FOOT_SIZE, <const char*>b"\r\n0\r\n\r\n", 7)
    if not target.http_chunked:
        return frame_words(target, foot, FRAME_FOOT_SIZE, more, pulse)
    return frame_words(target, foot, FRAME_FOOT_SIZE + (7 if last else 2), more, pulse)


cdef int64_t frame_send(FrameTarget* target, SourceState* source, Digests* digests, size_t length,
                        Pulse* pulse) noexcept nogil:
    """One frame; its length, 0 at the end of the source, or a negative outcome.

    `length` is the chunk's where it is known beforehand, and then pieces go out as they come; where
    it is 0 the chunk is gathered first. So is one that the receiver has kept: its digest alone goes.
    """
    cdef bint kept = digests.size + target.chunk_size <= target.kept_size
    cdef bint gathered = length == 0 or kept
    cdef size_t done = 0
    cdef uint32_t digest = 0, part = 0
    cdef const char* data = target.scratch
    cdef int64_t count = 0
    cdef int code = 0
    if gathered:
        count = source_fill(source, target.scratch, target.chunk_size, &part, pulse)
        if count <= 0 or <size_t>count < length:
            return TRUNCATED if length and count >= 0 else count
        length = count
        kept = kept and length == target.chunk_size
    if kept:
        digest = part
        done = length
        pulse.window_bytes += length   # as good as sent
    code = frame_open(target, KEPT_MAGIC if kept else CHUNK_MAGIC, length, digests.size, pulse)
    while code == 0 and done < length:
        if count == 0:
            count = source_next(source, target.scratch, min(<size_t>PIECE_SIZE, length - done), &data, &part,
                                pulse)
            if count <= 0:
                return count if count else TRUNCATED
        code = target_write(&target.stream, data, count, pulse)
        if not gathered:
            source_used(source, count)
        digest = crc32c_join(digest, part, count)
        done += count
        count = 0
    if code == 0:
        code = frame_close(target, digest, False, source.left == 0, pulse)
    if code == 0:
        code = digests_add(digests, digest, length)
    return code if code else <int64_t>length


cdef int frames_out(FrameTarget* target, SourceState* source, uint64_t size, Digests* digests,
                    Pulse* pulse) noexcept nogil:
    """Write all of `source` as frames, the closing one included; 0 or a negative outcome."""
    cdef int64_t count = 1
    cdef size_t length = 0
    cdef int code
    while count > 0 and digests.size != size:
        if size != SIZE_UNKNOWN:
            length = min(<uint64_t>target.chunk_size, size - digests.size)
        count = frame_send(target, source, digests, length, pulse)
    if count < 0:
        return <int>count
    code = source_at_end(source, pulse) if size != SIZE_UNKNOWN else 0
    if code == 0:
        code = frame_open(target, END_MAGIC, 0, digests.size, pulse)
    return code if code else frame_close(target, digests.whole, True, False, pulse)
