# Whole transfers: a source into a ring, onto a descriptor, or into a file that is to last.
#
# Each is one call without the GIL, from the first byte to the last. The durable copy overlaps: this
# thread receives and digests into a ring of slots while a second, in C alone, writes them out.

cdef enum:
    DIRECT_ALIGNMENT = 4096      # what direct I/O asks of memory, offset and length, at most
    SINGLE_WRITE_SIZE_MAX = 1024 * 1024  # up to here a second thread costs more than it gains

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
    cdef uint32_t digest
    cdef int code
    while source.left:
        if partial[0] == 0:
            code = ring_reserve(ring, pulse)
            if code:
                return code
        count = source_fill(source, ring_memory(ring, ring.next_write) + partial[0],
                            ring.chunk_size - partial[0], &digest, pulse)
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
        return c_send(target.fd, data, size, MSG_DONTWAIT | MSG_NOSIGNAL)
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
    if code or not target.heeds_answer:
        return code
    looked.fd = target.fd
    looked.events = POLLIN
    return -EPIPE if poll(&looked, 1, 0) > 0 else 0


cdef int target_write(StreamTarget* target, const char* data, size_t size, Pulse* pulse) noexcept nogil:
    cdef ssize_t count
    cdef int code
    while size:
        if target.nowait_refused:
            code = target_wait(target, pulse)
            if code:
                return code
        count = target_write_some(target, data, size)
        if count > 0:
            data += count
            size -= count
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
    cdef uint32_t digest
    cdef int code
    target_look(&target, fd)
    while True:
        count = source_next(source, scratch, scratch_size, &data, &digest, pulse)
        if count <= 0:
            return count if count else done
        code = target_write(&target, data, count, pulse)
        if code:
            return code
        source_used(source, count)
        done += count


cdef struct FrameTarget:
    StreamTarget stream
    bint http_chunked            # each frame is a chunk of the HTTP body besides
    char* scratch                # as large as a chunk
    size_t chunk_size


cdef int frame_open(FrameTarget* target, uint32_t magic, size_t length, uint64_t offset,
                    Pulse* pulse) noexcept nogil:
    cdef char head[64]
    cdef int start = 0
    if target.http_chunked:
        start = snprintf(head, 32, b"%zx\r\n", length + FRAME_HEAD_SIZE + FRAME_FOOT_SIZE)
    frame_pack(head + start, magic, <uint32_t>length, offset)
    return target_write(&target.stream, head, start + FRAME_HEAD_SIZE, pulse)


cdef int frame_close(FrameTarget* target, uint32_t digest, bint last, Pulse* pulse) noexcept nogil:
    cdef char foot[16]
    cdef uint32_t word = htobe32(digest)
    memcpy(foot, &word, FRAME_FOOT_SIZE)
    memcpy(foot + FRAME_FOOT_SIZE, <const char*>b"\r\n0\r\n\r\n", 7)
    if not target.http_chunked:
        return target_write(&target.stream, foot, FRAME_FOOT_SIZE, pulse)
    return target_write(&target.stream, foot, FRAME_FOOT_SIZE + (7 if last else 2), pulse)


cdef int64_t frame_send(FrameTarget* target, SourceState* source, Digests* digests, size_t length,
                        Pulse* pulse) noexcept nogil:
    """One frame; its length, 0 at the end of the source, or a negative outcome.

    `length` is the chunk's where it is known beforehand, and then pieces go out as they come; where
    it is 0 the chunk is gathered first.
    """
    cdef bint gathered = length == 0
    cdef size_t done = 0
    cdef uint32_t digest = 0, part = 0
    cdef const char* data = target.scratch
    cdef int64_t count = 0
    cdef int code = 0
    if gathered:
        count = source_fill(source, target.scratch, target.chunk_size, &part, pulse)
        if count <= 0:
            return count
        length = count
    code = frame_open(target, CHUNK_MAGIC, length, digests.size, pulse)
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
        code = frame_close(target, digest, False, pulse)
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
    return code if code else frame_close(target, digests.whole, True, pulse)


# Source to a file that is to last.

cdef struct DiskTarget:
    int fd
    bint direct                  # O_DIRECT is on
    bint padded                  # the file is longer than the snapshot by some zeros
    uint64_t written
    Ring* ring
    pthread_t thread
    bint threaded
    int outcome                  # of the writing thread: 0 or a negative errno


cdef void disk_set_direct(DiskTarget* target, bint on) noexcept nogil:
    cdef int flags = fcntl(target.fd, F_GETFL)
    if flags < 0 or fcntl(target.fd, F_SETFL, (flags | O_DIRECT) if on else (flags & ~O_DIRECT)) < 0:
        on = False
    target.direct = on


cdef int disk_write(DiskTarget* target, char* data, size_t size) noexcept nogil:
    """Append `size` bytes; the slot behind `data` has room to round them up to whole pages."""
    cdef size_t padded = (size + DIRECT_ALIGNMENT - 1) & ~<size_t>(DIRECT_ALIGNMENT - 1)
    cdef size_t left = size
    cdef uint64_t offset = target.written
    cdef ssize_t count
    if target.direct and padded != size:
        memset(data + size, 0, padded - size)
        target.padded = True
        left = padded
    while left:
        count = pwrite(target.fd, data, left, <off_t>offset)
        if count > 0:
            data += count
            offset += count
            left -= count
            if target.direct and count % DIRECT_ALIGNMENT:
                disk_set_direct(target, False)
        elif count < 0 and errno == EINVAL and target.direct:
            # The file system took the flag and refuses the write, or asks for more alignment.
            disk_set_direct(target, False)
        elif count == 0 or errno != EINTR:
            return -errno if count < 0 else -EIO
    if not target.direct:
        # Write-out begins now, so that the last fsync is short. It promises nothing by itself.
        sync_file_range(target.fd, <off_t>target.written, <off_t>size, SYNC_FILE_RANGE_WRITE)
    target.written += size
    return 0


cdef void* disk_thread(void* argument) noexcept nogil:
    """Write chunks out until the ring ends. It must not see the GIL, nor any signal."""
    cdef DiskTarget* target = <DiskTarget*>argument
    cdef uint64_t number = 0
    cdef Pulse pulse
    cdef int code
    memset(&pulse, 0, sizeof(Pulse))
    pulse.idle_ns_max = -1
    while True:
        code = ring_take(target.ring, &pulse, &number)
        if code <= 0:
            break
        code = disk_write(target, ring_memory(target.ring, number),
                          target.ring.slots[number % target.ring.chunks].length)
        ring_give_back(target.ring, number)
        if code:
            target.outcome = code
            break
    ring_close_reader(target.ring, END_DONE, 0)
    return NULL


cdef int disk_start(DiskTarget* target) noexcept nogil:
    """Start the writing thread, with every signal left to the threads that know what to do."""
    cdef sigset_t every, before
    cdef int code
    sigfillset(&every)
    pthread_sigmask(SIG_SETMASK, &every, &before)
    code = pthread_create(&target.thread, NULL, disk_thread, target)
    pthread_sigmask(SIG_SETMASK, &before, NULL)
    target.threaded = code == 0
    return -code


cdef int disk_finish(DiskTarget* target, int code) noexcept nogil:
    """Let the writing thread end, in good order or not; the first outcome that went wrong."""
    ring_close_writer(target.ring, END_FAILED if code else END_DONE, 0)
    if target.threaded:
        pthread_join(target.thread, NULL)
        target.threaded = False
        # Where the writer failed, the receiver saw no more than a closed ring.
        if target.outcome and (code == 0 or code == RING_CLOSED):
            code = target.outcome
    if target.direct:
        disk_set_direct(target, False)   # whoever reads the file next has buffers of his own alignment
    if code == 0 and target.padded and ftruncate(target.fd, <off_t>target.written) < 0:
        code = -errno
    return code


cdef struct SaveLimits:
    uint64_t size                # SIZE_UNKNOWN where only the end of the source tells
    uint64_t size_max
    size_t chunk_size
    uint32_t chunks
    bint direct


cdef int disk_put(DiskTarget* target, char* slot, size_t count, SaveLimits* limits) noexcept nogil:
    """Have the reserved slot written: by the other thread, or at once where that is all there is."""
    cdef Ring* ring = target.ring
    cdef int code = 0
    if target.fd < 0:
        ring_commit(ring, 0)     # only the digests were wanted
    elif not target.threaded and count <= SINGLE_WRITE_SIZE_MAX and count < ring.chunk_size:
        code = disk_write(target, slot, count)
        ring_commit(ring, 0)
    else:
        if not target.threaded:
            if limits.direct:
                disk_set_direct(target, True)
            code = disk_start(target)
        ring_commit(ring, count)
    return code


cdef int save_chunks(SourceState* source, DiskTarget* target, SaveLimits* limits, Digests* digests,
                     Pulse* pulse) noexcept nogil:
    """Receive chunk by chunk, and have each written: at once, or by the other thread."""
    cdef Ring* ring = target.ring
    cdef int64_t count
    cdef uint32_t digest = 0
    cdef uint64_t wanted
    cdef char* slot
    cdef int code
    while limits.size == SIZE_UNKNOWN or digests.size < limits.size:
        code = ring_reserve(ring, pulse)
        if code:
            return code
        slot = ring_memory(ring, ring.next_write)
        wanted = ring.chunk_size
        if limits.size != SIZE_UNKNOWN:
            wanted = min(wanted, limits.size - digests.size)
        count = source_fill(source, slot, wanted, &digest, pulse)
        if count < 0:
            return <int>count
        if count > <int64_t>wanted or digests.size + count > limits.size_max:
            return TOO_LARGE
        if count:
            code = digests_add(digests, digest, count)
            if code:
                return code
        code = disk_put(target, slot, count, limits)
        if code:
            return code
        if count < <int64_t>wanted and limits.size != SIZE_UNKNOWN:
            return TRUNCATED
        # Behind a short chunk of frames stands the closing one, which verifies the whole.
        if count == 0 or (count < <int64_t>wanted and source.kind != SOURCE_FRAMES):
            return 0
    return source_at_end(source, pulse)


cdef int save_all(SourceState* source, int fd, SaveLimits* limits, Digests* digests,
                  Pulse* pulse) noexcept nogil:
    """The durable copy but for its fsync: all of `source` into `fd`, or nowhere when it is negative."""
    cdef DiskTarget target
    cdef int code = 0
    memset(&target, 0, sizeof(DiskTarget))
    target.fd = fd
    if limits.size != SIZE_UNKNOWN and limits.size > limits.size_max:
        return TOO_LARGE
    if fd >= 0 and limits.size != SIZE_UNKNOWN and limits.size > SINGLE_WRITE_SIZE_MAX:
        # Room is taken now, so that a full disk is known before the bytes have travelled.
        if fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, <off_t>limits.size) < 0:
            if errno == ENOSPC or errno == EDQUOT or errno == EFBIG:
                return -errno
    target.ring = ring_new(limits.chunk_size, limits.chunks if fd >= 0 else 1)
    if target.ring == NULL:
        return -ENOMEM
    code = disk_finish(&target, save_chunks(source, &target, limits, digests, pulse))
    ring_free(target.ring)
    return code
