# The transfers' faces: hold what is borrowed, leave the GIL once, name what came of it.

cdef int pass_on_exception() except -1:
    return -1


cdef int raise_outcome(int64_t code, owner, uint64_t size, size_t chunk) except -1:
    """Raise what `code` stands for; `owner` is whose reason counts, where there is one."""
    if code == SIGNALLED:
        pass_on_exception()
    if code == SOURCE_RAISED and isinstance(owner, _Reader):
        raise (<_Reader>owner).error
    if code == RING_CLOSED and isinstance(owner, _Pipe):
        raise (<_Pipe>owner).closed_error()
    raise outcome_error(code, size, chunk)


cdef class _Reader:
    """A Python reader behind a source, and what it raised."""

    cdef object read
    cdef object error
    cdef int pid


cdef int64_t reader_read(void* borrowed, char* buffer, size_t size) noexcept with gil:
    cdef _Reader reader = <_Reader>borrowed
    cdef Py_buffer view
    cdef int64_t count
    try:
        read = reader.read(size)
        if getpid() != reader.pid:
            raise ForkedProcess("this transfer was begun before the fork; the parent goes on with it")
        PyObject_GetBuffer(read, &view, PyBUF_SIMPLE)
        count = view.len
        if <size_t>count <= size:
            memcpy(buffer, view.buf, count)
        PyBuffer_Release(&view)
        if <size_t>count > size:
            raise ValueError(f"the reader returned {count} bytes where {size} were asked for")
        return count
    except BaseException as error:  # It crosses C and is raised again by the transfer's face.
        reader.error = error
        return SOURCE_RAISED


_AT_RANDOM = "offset needs a source that can be read at random: a file, memory, an image"


cdef class _Source:
    """A source, opened: it keeps alive and counted what its struct points to, until `finish`."""

    cdef SourceState state
    cdef object owner
    cdef Py_buffer view
    cdef bint has_view
    cdef bint finished

    def __init__(self, origin, offset=None, length=None, frame_size=0):
        if offset and not isinstance(origin, (Image, int)) and not PyObject_CheckBuffer(origin):
            raise ValueError(_AT_RANDOM)
        self.owner = origin
        self.state.fd = -1
        self.state.left = SIZE_UNKNOWN if length is None else check_size(length, "length")
        self.state.offset = 0 if offset is None else check_size(offset, "offset")
        if isinstance(origin, Image):
            self.open_image(origin)
        elif isinstance(origin, PipeReader):
            self.open_ring(origin)
        elif isinstance(origin, Frames):
            if (<Frames>origin).state.chunk_size != frame_size:
                raise ValueError(f"frames are read by save and digest, with their own chunk_size of "
                                 f"{(<Frames>origin).state.chunk_size} bytes")
            self.state.kind = SOURCE_FRAMES
            self.state.frame = &(<Frames>origin).state
        elif isinstance(origin, Body):
            self.state.kind = SOURCE_BODY
            self.state.body = &(<Body>origin).state
        elif isinstance(origin, int):
            self.open_fd(origin, offset is not None)
        elif PyObject_CheckBuffer(origin):
            self.open_memory(origin)
        elif hasattr(origin, "read"):
            self.open_reader(origin)
        else:
            raise TypeError(f"cannot read a snapshot from {type(origin).__name__}")

    cdef int open_image(self, Image image) except -1:
        image.check()
        image.users += 1
        self.state.kind = SOURCE_IMAGE
        self.state.image = &image.state
        self.state.left = min(self.state.left, image.state.size - min(self.state.offset, image.state.size))
        return 0

    cdef int open_ring(self, PipeReader reader) except -1:
        reader.check_open()
        self.state.kind = SOURCE_RING
        self.owner = reader.shared
        self.state.ring = reader.shared.ring
        if reader.rest is not None:
            # What `readinto` left of a chunk comes first; its loan is this source's now.
            self.state.loan = reader.rest.number
            self.state.loan_start = reader.rest.start
            self.state.loan_length = reader.rest.length
            reader.rest.given_back = True
            reader.rest = None
        return 0

    cdef int open_fd(self, int fd, bint at_offset) except -1:
        cdef struct_stat status
        self.state.fd = fd
        if fstat(fd, &status) < 0:
            raise OSError(errno, strerror(errno).decode())
        # The writing end of a pipe never polls as readable: waiting for it would be for ever.
        if fcntl(fd, F_GETFL) & O_ACCMODE == O_WRONLY:
            raise OSError(EBADF, strerror(EBADF).decode())
        if S_ISDIR(status.st_mode):
            raise IsADirectoryError(EISDIR, strerror(EISDIR).decode())
        if S_ISSOCK(status.st_mode):
            if self.state.offset:
                raise ValueError(_AT_RANDOM)
            self.state.kind = SOURCE_SOCKET
        elif at_offset:
            self.state.kind = SOURCE_FILE
        else:
            self.state.kind = SOURCE_STREAM
            self.state.polls = not S_ISREG(status.st_mode) and not S_ISBLK(status.st_mode)
        posix_fadvise(fd, 0, 0, POSIX_FADV_SEQUENTIAL)   # a hint; what is no file refuses it unharmed
        return 0

    cdef int open_memory(self, origin) except -1:
        PyObject_GetBuffer(origin, &self.view, PyBUF_SIMPLE)
        self.has_view = True
        self.state.kind = SOURCE_MEMORY
        self.state.memory = <const char*>self.view.buf
        self.state.memory_size = self.view.len
        self.state.left = min(self.state.left, <uint64_t>self.view.len - min(self.state.offset,
                                                                         <uint64_t>self.view.len))
        return 0

    cdef int open_reader(self, origin) except -1:
        cdef _Reader reader = _Reader()
        reader.read = origin.read
        reader.pid = getpid()
        self.owner = reader
        self.state.kind = SOURCE_READER
        self.state.reader = <void*>reader
        return 0

    cdef int finish(self) except -1:
        """Give back what was borrowed. Comes once, after the transfer."""
        if self.finished:
            return 0
        self.finished = True
        with nogil:
            source_finish(&self.state)
        if self.state.kind == SOURCE_IMAGE:
            (<Image>self.owner).leave()
        if self.has_view:
            PyBuffer_Release(&self.view)
        return 0

    def __dealloc__(self):
        if self.has_view and not self.finished:
            PyBuffer_Release(&self.view)


cdef class _Scratch:
    """Page-aligned memory for one transfer."""

    cdef char* memory

    def __cinit__(self, size_t size):
        cdef void* memory = NULL
        if posix_memalign(&memory, PAGE, size):
            raise MemoryError(f"no memory for a buffer of {size} bytes")
        self.memory = <char*>memory

    def __dealloc__(self):
        free(self.memory)


cdef class _Digests:
    """The digests that a transfer gathers, and those it must find."""

    cdef Digests state
    cdef uint32_t* expected

    def __init__(self, expected=None):
        cdef size_t number
        if expected is not None:
            self.expected = <uint32_t*>malloc(max(1, len(expected)) * sizeof(uint32_t))
            if self.expected == NULL:
                raise MemoryError
            for number, digest in enumerate(expected):
                self.expected[number] = digest
            self.state.expected = self.expected
            self.state.expected_count = len(expected)

    cdef object copied(self):
        return Copied(self.state.size, self.state.whole,
                      tuple([self.state.chunks[number] for number in range(self.state.count)]))

    def __dealloc__(self):
        free(self.state.chunks)
        free(self.expected)


cdef uint64_t check_kept(kept, chunk_size, size) except? 0xBAD:
    if check_size(kept, "kept") % chunk_size or (size is not None and kept > size):
        raise ValueError(f"kept must be whole chunks of {chunk_size} bytes and no more than the size, not {kept}")
    return kept


def send(source, fd, *, offset=None, length=None, expected=None, chunk_size=CHUNK_SIZE_DEFAULT,
         progress=None, idle_timeout_s=None, rate_min=0, throttle=None, urgent=True):
    """Write `source` to the descriptor `fd`, bare, in one call without the GIL; how many bytes.

    `source` is an Image, a PipeReader, a descriptor, a bytes-like object, or has `read(size)`.
    `offset` and `length` in bytes choose a part of an image, of memory, or of a file given by its
    descriptor. `expected` is the digest of each chunk of `chunk_size` bytes of what is sent: a chunk
    that has another is not sent to its end, nor is one that is missing, and SnapshotCorrupt raised.
    Waits of more than `idle_timeout_s` seconds without a byte raise TimeoutError, and so does so much
    waiting in all with fewer than `rate_min` bytes for each second of it; what the system refuses
    raises OSError. `throttle` says how fast it may go at most, beside others, and `urgent` before whom.
    """
    check_chunking(chunk_size, 1)
    cdef int target = fd
    cdef size_t unit = chunk_size
    cdef _Scratch scratch = _Scratch(PIECE_SIZE)
    cdef _Digests digests = _Digests(expected)
    cdef _Source opened
    cdef Pulse pulse
    cdef int64_t count
    cdef uint64_t size
    if length is not None and isinstance(source, PipeReader):
        raise ValueError("a pipe is sent to its end; length is for sources that can be read again")
    opened = _Source(source, offset, length)
    try:
        size = opened.state.left
        if expected is not None and (size == SIZE_UNKNOWN or (size + unit - 1) // unit != <uint64_t>len(expected)):
            raise ValueError(f"{len(expected)} digests are not those of the chunks of {unit} bytes of this source")
        pulse_start(&pulse, progress, idle_timeout_s, rate_min, throttle, urgent)
        with nogil:
            if digests.expected == NULL:
                count = stream_out(&opened.state, target, scratch.memory, PIECE_SIZE, &pulse)
            else:
                count = stream_out_proved(&opened.state, target, scratch.memory, size, unit, &digests.state,
                                          &pulse)
        if count < 0:
            raise_outcome(count, opened.owner,
                          opened.state.offset if expected is None else digests.state.size, digests.state.count)
        return count
    finally:
        opened.finish()


def send_frames(source, fd, *, size, chunk_size, kept=0, http_chunked=False, progress=None,
                idle_timeout_s=None, rate_min=0, throttle=None, urgent=True):
    """Write `source` to `fd` as the frames of the wire, the closing one included; returns Copied.

    `size` is the snapshot's in bytes, or None where only its end tells; a source that has less
    raises SnapshotTruncated, one that has more SnapshotTooLarge, and the peer, which misses the
    closing frame, keeps nothing. Of the first `kept` bytes, in whole chunks, the peer has a copy: they
    are read here and only their digests sent. With `http_chunked` each frame is a chunk of the HTTP
    body. Silence and `throttle` are as in `send`.
    """
    check_chunking(chunk_size, 1)
    cdef uint64_t total = SIZE_UNKNOWN if size is None else check_size(size, "size")
    cdef int code, target_fd = fd
    # A chunk whose length is told beforehand goes out piece by piece; another is gathered first.
    cdef bint gathers = size is None or kept
    cdef _Scratch scratch = _Scratch(chunk_size if gathers else max(1, min(PIECE_SIZE, chunk_size, size)))
    cdef _Digests digests = _Digests()
    cdef _Source opened = _Source(source, None, size)
    cdef FrameTarget target
    cdef Pulse pulse
    try:
        pulse_start(&pulse, progress, idle_timeout_s, rate_min, throttle, urgent)
        target_look(&target.stream, target_fd)
        target.stream.heeds_answer = target.stream.is_socket
        target.http_chunked = http_chunked
        target.scratch = scratch.memory
        target.chunk_size = chunk_size
        target.kept_size = check_kept(kept, chunk_size, size)
        with nogil:
            code = frames_out(&target, &opened.state, total, &digests.state, &pulse)
        if code:
            raise_outcome(code, opened.owner, digests.state.size, digests.state.count)
        return digests.copied()
    finally:
        opened.finish()


def save(source, target_fd, *, size=None, size_max=SIZE_MAX, grow=None, chunk_size=CHUNK_SIZE_DEFAULT,
         chunks=CHUNKS_DEFAULT, direct=True, expected=None, kept=0, resumable=False, progress=None,
         idle_timeout_s=None, rate_min=0, throttle=None, urgent=True):
    """Copy `source` into the file `target_fd`, from its start, in one call without the GIL.

    Returns Copied: size in bytes, CRC32C of the whole, CRC32C of each chunk of `chunk_size` bytes.
    Receiving and digesting overlap with writing: direct I/O where the file system takes it, else
    buffered with write-out begun at once. `size` in bytes where it is known: room is taken first,
    and a source with less or more is refused (SnapshotTruncated, SnapshotTooLarge); `size_max`
    bounds it in any case, unless `grow` is given: that is asked before it has `wanted` bytes, more than
    `size_max`, and returns the next bound, or raises. `expected` is each chunk's digest; the first other one raises
    SnapshotCorrupt. The first `kept` bytes of the target, in whole chunks, are there from an earlier
    attempt: with Frames each is compared with the sender's digest (KeptPrefixWrong); any other source
    begins behind them, and they count as `expected` says. With `resumable` what was verified before
    a source failed is written all the same. Silence and `throttle` are as in `send`. Not durable until an
    fsync; `SaveFile` does the rest. `target_fd` -1 writes nowhere and only digests.
    """
    check_chunking(chunk_size, chunks)
    cdef int code, target = target_fd
    cdef uint64_t total = SIZE_UNKNOWN if size is None else check_size(size, "size")
    cdef uint64_t before = check_kept(kept, chunk_size, size)
    cdef _Digests digests = _Digests(expected)
    cdef _Source opened = _Source(source, None, None if size is None else total - before, chunk_size)
    cdef SaveLimits limits
    cdef _Growth growth = _Growth()
    cdef Pulse pulse
    growth.ask = grow
    try:
        limits.size = total
        limits.size_max = check_size(size_max, "size_max")
        limits.growth = NULL if grow is None else <void*>growth
        limits.chunk_size = chunk_size
        limits.chunks = chunks
        limits.direct = direct
        limits.kept = before
        limits.resumable = resumable
        pulse_start(&pulse, progress, idle_timeout_s, rate_min, throttle, urgent, paces_in=True)
        with nogil:
            code = save_all(&opened.state, target, &limits, &digests.state, &pulse)
        if code == 0 and expected is not None and digests.state.count != digests.state.expected_count:
            code = TRUNCATED
        if code == GROWTH_REFUSED:
            raise growth.error
        if code:
            raise_outcome(code, opened.owner, digests.state.size, digests.state.count)
        return digests.copied()
    finally:
        opened.finish()


def digest(source, **options):
    """Digest `source` and write it nowhere: `save` with its options, without a target."""
    return save(source, -1, **options)
