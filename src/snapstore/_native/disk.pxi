# The durable copy, but for its fsync: a source into a file that is to last.
#
# One call without the GIL. It overlaps: this thread receives and digests into a ring of slots while a
# second, in C alone, writes them out, past the page cache where the file system allows.

cdef enum:
    DIRECT_ALIGNMENT = 4096      # what direct I/O asks of memory, offset and length, at most
    SINGLE_WRITE_SIZE_MAX = 1024 * 1024  # up to here a second thread costs more than it gains

cdef struct DiskTarget:
    int fd
    bint direct                  # O_DIRECT is on
    bint padded                  # the file is longer than the snapshot by some zeros
    bint overlong                # the file may be longer from an earlier attempt
    bint keeps                   # what was verified is worth writing, even when the source fails
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
    ring_close_reader(target.ring, END_DONE)
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
    if target.ring.pid != getpid():
        return code              # a reader has forked: the thread is the parent's, and so is the file
    ring_close_writer(target.ring, END_FAILED if code and not target.keeps else END_DONE)
    if target.threaded:
        pthread_join(target.thread, NULL)
        target.threaded = False
        # Where the writer failed, the receiver saw no more than a closed ring.
        if target.outcome and (code == 0 or code == RING_CLOSED or (target.keeps and code != SIGNALLED)):
            code = target.outcome
    if target.direct:
        disk_set_direct(target, False)   # whoever reads the file next has buffers of his own alignment
    if target.padded or (target.overlong and code == 0):
        if ftruncate(target.fd, <off_t>target.written) < 0 and code == 0:
            code = -errno
    return code


cdef struct SaveLimits:
    uint64_t size                # SIZE_UNKNOWN where only the end of the source tells
    uint64_t size_max
    void* growth                 # a borrowed reference to a _Growth, asked beyond `size_max`; NULL: TOO_LARGE
    size_t chunk_size
    uint32_t chunks
    bint direct
    uint64_t kept                # bytes of the file that an earlier attempt wrote, in whole chunks
    bint resumable               # what was verified stays in the file when the source fails


cdef int disk_put(DiskTarget* target, char* slot, size_t count, bint kept, SaveLimits* limits) noexcept nogil:
    """Have the reserved slot written: by the other thread, or at once where that is all there is."""
    cdef Ring* ring = target.ring
    cdef int code = 0
    if target.fd < 0 or kept:
        ring_commit(ring, 0)     # only the digests were wanted, or it is in the file already
        target.written += count if kept else 0
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


cdef int disk_compare(DiskTarget* target, char* scratch, size_t size, uint32_t digest) noexcept nogil:
    """Whether the file's next `size` bytes, kept from an earlier attempt, have this digest."""
    cdef size_t done = 0
    cdef ssize_t count
    while done < size:
        count = pread(target.fd, scratch + done, size - done, <off_t>(target.written + done))
        if count < 0 and errno != EINTR:
            return -errno
        if count == 0:
            return KEPT_WRONG
        done += max(count, <ssize_t>0)
    return 0 if crc32c_of(0, scratch, size) == digest else KEPT_WRONG


cdef int save_kept(DiskTarget* target, SaveLimits* limits, Digests* digests) noexcept nogil:
    """Count in what the caller found to be right already: the first chunks, with the digests expected."""
    cdef int code = 0
    while code == 0 and target.written < limits.kept:
        if digests.count >= digests.expected_count:
            return TOO_LARGE
        code = digests_add(digests, digests.expected[digests.count], limits.chunk_size)
        target.written += limits.chunk_size
    return code


cdef int64_t save_receive(SourceState* source, DiskTarget* target, SaveLimits* limits, Digests* digests,
                          Pulse* pulse) noexcept nogil:
    """Fill the next slot and account for its bytes; how many, 0 at the end, or a negative outcome."""
    cdef Ring* ring = target.ring
    cdef uint64_t wanted = ring.chunk_size
    cdef uint32_t digest = 0
    cdef int64_t count
    cdef Pulse patient = pulse[0]
    cdef int code
    patient.idle_ns_max = -1     # a slow disk is no silent source
    code = ring_reserve(ring, &patient)
    if code:
        return code
    if limits.size != SIZE_UNKNOWN:
        wanted = min(wanted, limits.size - digests.size)
    count = source_fill(source, ring_memory(ring, ring.next_write), wanted, &digest, pulse)
    if count <= 0:
        return TRUNCATED if count == 0 and limits.size != SIZE_UNKNOWN else count
    if digests.size + count > limits.size_max and limits.growth != NULL:
        code = growth_ask(limits.growth, digests.size + count, &limits.size_max)
        if code:
            return code
    if count > <int64_t>wanted or digests.size + count > limits.size_max:
        return TOO_LARGE
    if count < <int64_t>wanted and limits.size != SIZE_UNKNOWN:
        return TRUNCATED
    if source_kept(source):
        code = disk_compare(target, ring_memory(ring, ring.next_write), count, digest)
        if code == 0:
            code = pulse_check(pulse)    # thousands of these may lie in the socket's buffer
        if code:
            return code
    code = digests_add(digests, digest, count)
    return code if code else count


cdef int save_chunks(SourceState* source, DiskTarget* target, SaveLimits* limits, Digests* digests,
                     Pulse* pulse) noexcept nogil:
    """Receive chunk by chunk, and have each written: at once, or by the other thread."""
    cdef Ring* ring = target.ring
    cdef int64_t count
    cdef int code
    while limits.size == SIZE_UNKNOWN or digests.size < limits.size:
        count = save_receive(source, target, limits, digests, pulse)
        if count < 0:
            return <int>count
        code = disk_put(target, ring_memory(ring, ring.next_write), count, source_kept(source), limits)
        if code:
            return code
        # Behind a short chunk of frames stands the closing one, which verifies the whole.
        if count == 0 or (limits.size == SIZE_UNKNOWN and count < <int64_t>ring.chunk_size
                          and source.kind != SOURCE_FRAMES):
            return 0
    return source_at_end(source, pulse)


cdef int save_all(SourceState* source, int fd, SaveLimits* limits, Digests* digests,
                  Pulse* pulse) noexcept nogil:
    """The durable copy but for its fsync: all of `source` into `fd`, or nowhere when it is negative."""
    cdef DiskTarget target
    cdef int code = 0
    memset(&target, 0, sizeof(DiskTarget))
    target.fd = fd
    target.overlong = target.keeps = limits.resumable
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
    if fd >= 0 and limits.direct and limits.size > SINGLE_WRITE_SIZE_MAX:   # as an unknown size may be
        ring_ask_for_huge_pages(target.ring)
    if source.kind == SOURCE_FRAMES:
        source.frame.kept_size = limits.kept     # the sender's digests will tell whether they are right
    else:
        code = save_kept(&target, limits, digests)
    if code == 0:
        code = save_chunks(source, &target, limits, digests, pulse)
    code = disk_finish(&target, code)
    ring_free(target.ring)
    return code
