# The image's face, and the faces of what a socket brings: a body, and the frames inside it.

cdef class Image:
    """Immutable bytes, readable at random: a file's bytes with patches laid over them.

    `fd` is a descriptor of the file, closed with the image unless `close_fd` is false. `size` in
    bytes. `patches` are (offset, length, bytes or None for zeros), apart from each other and inside
    the image. `page_map` clears what lies unused in the pages of an LMDB file. Any number of threads
    may read, and transfers that keep pace share each read of the file; `close` may come from any thread,
    and reads under way then end with PipeClosed.
    """

    cdef ImageState state
    cdef bint close_fd
    cdef int users               # transfers under way; the GIL guards it
    cdef object page_map
    cdef object patch_bytes
    cdef int pid

    def __cinit__(self):
        self.state.fd = -1
        self.pid = getpid()
        self.state.window = window_new()
        if self.state.window == NULL:
            raise MemoryError

    def __init__(self, int fd, size, *, patches=(), page_map=None, close_fd=True):
        cdef size_t number
        cdef uint64_t end = 0
        self.state.size = check_size(size, "size")
        ordered = sorted(patches, key=lambda patch: patch[0])
        self.state.patches = <Patch*>calloc(max(1, len(ordered)), sizeof(Patch))
        if self.state.patches == NULL:
            raise MemoryError
        self.patch_bytes = [data for _, _, data in ordered]
        for number, (offset, length, data) in enumerate(ordered):
            if length <= 0 or offset < end or offset + length > size:
                raise ValueError(f"patch of {length} bytes at {offset} overlaps another or leaves the image")
            if data is not None and len(data) != length:
                raise ValueError(f"patch at {offset} has {len(data)} bytes and a length of {length}")
            end = offset + length
            self.state.patches[number].offset = offset
            self.state.patches[number].length = length
            if data is not None:
                self.state.patches[number].data = PyBytes_AsString(data)
        self.state.patch_count = len(ordered)
        if page_map is not None:
            self.state.page_map = (<LmdbPageMap?>page_map).map
        self.page_map = page_map
        self.state.fd = fd
        self.close_fd = close_fd
        # Mostly read from start to end: cold, that is two to four times as fast with the kernel told so.
        posix_fadvise(fd, 0, 0, POSIX_FADV_SEQUENTIAL)

    @property
    def size(self):
        """Length in bytes."""
        return self.state.size

    @property
    def closed(self):
        """Whether it was closed."""
        return self.state.closed != 0

    @property
    def bytes_read(self):
        """What transfers have read of the file, in bytes: once for all those that keep pace."""
        return atomic_read_u64(&self.state.window.bytes_read)

    cdef int check(self) except -1:
        if self.pid != getpid():
            raise ForkedProcess("this image was made before the fork; its pin belongs to the parent")
        if self.state.closed:
            raise PipeClosed("the snapshot was closed")
        return 0

    cdef int leave(self) except -1:
        """The end of a transfer; the last one out closes the descriptor of a closed image."""
        self.users -= 1
        if self.state.closed and self.users == 0:
            self.give_fd_back()
        return 0

    cdef void give_fd_back(self) noexcept:
        if self.state.fd >= 0 and self.close_fd:
            # Said outright: a process forked meanwhile has the descriptor too, and would keep a lease.
            if self.pid == getpid():
                flock(self.state.fd, LOCK_UN)
            close(self.state.fd)
        self.state.fd = -1

    def readinto(self, buffer, offset):
        """Fill `buffer` from byte `offset` on; how many bytes, fewer only at the end of the image."""
        self.check()
        cdef uint64_t start = check_size(offset, "offset")
        cdef Py_buffer view
        cdef int64_t count
        PyObject_GetBuffer(buffer, &view, PyBUF_SIMPLE | PyBUF_WRITABLE)
        self.users += 1
        try:
            with nogil:
                count = image_read(&self.state, <char*>view.buf, view.len, start)
        finally:
            PyBuffer_Release(&view)
            self.leave()
        if count < 0:
            raise_outcome(count, None, start, 0)
        return count

    def write_to(self, writer):
        """Write all of it, in order, to `writer`: anything with `write(data)`; how many bytes.

        Into a PipeWriter it is one call without the GIL. A writer must not keep what it is given.
        """
        if isinstance(writer, PipeWriter):
            return writer.copy_from_image(self)
        cdef uint64_t done = 0
        block = memoryview(bytearray(min(WRITE_SIZE, self.state.size)))
        while done < self.state.size:
            count = self.readinto(block, done)
            writer.write(block[:count])
            done += count
        return done

    def close(self):
        """Let no more be read. May come twice, from any thread; never waits for reads under way."""
        atomic_write_int(&self.state.closed, 1)
        if self.users == 0:
            self.give_fd_back()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()

    def __dealloc__(self):
        self.give_fd_back()
        window_free(self.state.window)
        free(self.state.patches)


cdef class Body:
    """The body of an HTTP message on the socket `fd`, which it borrows.

    `kept` are bytes that were read along with the head. `length` is the body's in bytes, or None for
    the chunked coding. One thread at a time.
    """

    cdef BodyState state
    cdef uint64_t window_bytes   # the pulse's, from one `readinto` to the next
    cdef int64_t window_waited_ns
    cdef bytes ahead             # holds what `state.ahead` points into

    def __init__(self, int fd, bytes kept not None, length):
        if len(kept) > BODY_BUFFER_SIZE:
            raise ValueError(f"{len(kept)} bytes came along with the head; the limit is {BODY_BUFFER_SIZE}")
        if self.state.buffer == NULL:
            self.state.buffer = <char*>malloc(BODY_BUFFER_SIZE)
        if self.state.buffer == NULL:
            raise MemoryError
        self.state.fd = fd
        self.state.mode = BODY_CHUNKED if length is None else BODY_SIZED
        self.state.left = 0 if length is None else check_size(length, "length")
        memcpy(self.state.buffer, <const char*>kept, len(kept))
        self.state.buffer_end = len(kept)

    @property
    def ended(self):
        """Whether all of the body was read."""
        if self.state.ahead_left:
            return False
        return self.state.ended or (self.state.mode == BODY_SIZED and self.state.left == 0)

    @property
    def leftover(self):
        """What was read past the body: the beginning of the next message."""
        return self.state.buffer[self.state.buffer_start:self.state.buffer_end]

    def readinto(self, buffer, *, idle_timeout_s=None, rate_min=0):
        """Some bytes of the body; how many, 0 at its end. SnapshotTruncated when the peer leaves.

        `rate_min` in bytes/s is for all calls together: a peer that drips is a silent one.
        """
        cdef Py_buffer view
        cdef Pulse pulse
        cdef int64_t count
        pulse_start(&pulse, None, idle_timeout_s, rate_min)
        pulse.window_bytes = self.window_bytes
        pulse.window_waited_ns = self.window_waited_ns
        PyObject_GetBuffer(buffer, &view, PyBUF_SIMPLE | PyBUF_WRITABLE)
        try:
            with nogil:
                count = body_read(&self.state, <char*>view.buf, view.len, &pulse)
        finally:
            PyBuffer_Release(&view)
        self.window_bytes = pulse.window_bytes
        self.window_waited_ns = pulse.window_waited_ns
        if count < 0:
            raise_outcome(count, None, 0, 0)
        return count

    def put_back(self, bytes data not None):
        """Have `data`, which was read to be looked at, read again before what follows it.

        The whole of it at once: ValueError while an earlier one is not used up.
        """
        if self.state.ahead_left:
            raise ValueError(f"{self.state.ahead_left} bytes that were put back are not read yet")
        self.ahead = data
        self.state.ahead = <const char*>data
        self.state.ahead_left = len(data)

    def __dealloc__(self):
        free(self.state.buffer)


cdef class Frames:
    """The frames of the wire inside a Body: a source for `save` that verifies as it goes.

    `chunk_size` is as the sender offered it, and `save` must be given the same; `size` in bytes, or
    None where the sender did not know it.
    """

    cdef FrameState state
    cdef Body body

    def __init__(self, Body body not None, *, chunk_size, size=None):
        check_chunking(chunk_size, 1)
        self.body = body
        self.state.body = &body.state
        self.state.chunk_size = chunk_size
        self.state.size = SIZE_UNKNOWN if size is None else check_size(size, "size")
