# The pipe's faces: two halves over one private ring, and chunks on loan.
#
# They hold buffers, keep Python's reasons and turn codes into exceptions; the ring does the rest.

cdef class _Pipe:
    """What both halves share. Frees the ring when halves, chunks and slots are all gone."""

    cdef Ring* ring
    cdef size_t partial          # how full the writer's reserved slot is
    cdef object reason           # the first close's exception, or None
    cdef bint slot_out           # reserve() without its commit()
    cdef int pid

    def __cinit__(self, size_t chunk_size, uint32_t chunks):
        self.pid = getpid()
        self.ring = ring_new(chunk_size, chunks)
        if self.ring == NULL:
            raise MemoryError(f"no memory for {chunks} chunks of {chunk_size} bytes")

    def __dealloc__(self):
        ring_free(self.ring)

    cdef int check(self) except -1:
        if self.pid != getpid():
            raise ForkedProcess("this pipe was made before the fork; make one in this process")
        return 0

    cdef object closed_error(self):
        if self.reason is not None:
            return self.reason
        return PipeClosed("the pipe was closed")


def pipe(*, chunk_size=CHUNK_SIZE_DEFAULT, chunks=PIPE_CHUNKS_DEFAULT):
    """Return (PipeReader, PipeWriter) over a bounded ring of `chunks` slots of `chunk_size` bytes.

    Any thread may use either half, one at a time for each. `chunk_size` is a multiple of 4096
    bytes. The writer waits for the slot that is next: a chunk kept on loan holds it up after as many
    chunks as there are slots. Memory is `chunks * chunk_size` bytes, taken as it is first used.
    Raises ValueError for sizes outside the limits of this module.
    """
    check_chunking(chunk_size, chunks)
    cdef _Pipe shared = _Pipe(chunk_size, chunks)
    return PipeReader(shared), PipeWriter(shared)


@cython.no_gc_clear              # its end gives the slot back, and needs the pipe for it
cdef class Chunk:
    """A slot on loan: a read-only buffer of 1 to `chunk_size` bytes. Give it back with `release()`.

    The writer waits for slots that are out. Leaving a `with` block releases. Releasing while a view
    of it lives is a BufferError; releasing twice is nothing.
    """

    cdef _Pipe shared
    cdef uint64_t number
    cdef size_t start            # in the slot; above 0 where `readinto` took the first bytes
    cdef size_t length
    cdef readonly uint64_t offset
    cdef int views
    cdef bint given_back

    def __init__(self):
        raise TypeError("chunks come from PipeReader.read_chunk()")

    def __len__(self):
        return self.length

    def __getbuffer__(self, Py_buffer* view, int flags):
        if self.given_back:
            raise ValueError("the chunk was released; read the next one")
        PyBuffer_FillInfo(view, self, ring_memory(self.shared.ring, self.number) + self.start, self.length, 1,
                          flags)
        self.views += 1

    def __releasebuffer__(self, Py_buffer* view):
        self.views -= 1

    def release(self):
        """Give the slot back to the writer."""
        self.shared.check()
        if self.views:
            raise BufferError("release the views of this chunk first: its memory is about to be reused")
        if not self.given_back:
            self.given_back = True
            ring_give_back(self.shared.ring, self.number)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.release()

    def __dealloc__(self):
        if self.shared is not None and not self.given_back and self.shared.pid == getpid():
            ring_give_back(self.shared.ring, self.number)


cdef class Slot:
    """A free slot to fill in place: a writable buffer of `chunk_size` bytes, until `commit`."""

    cdef _Pipe shared
    cdef char* memory
    cdef size_t length
    cdef int views
    cdef bint committed

    def __init__(self):
        raise TypeError("slots come from PipeWriter.reserve()")

    def __len__(self):
        return self.length

    def __getbuffer__(self, Py_buffer* view, int flags):
        if self.committed:
            raise ValueError("the slot was committed; reserve the next one")
        PyBuffer_FillInfo(view, self, self.memory, self.length, 0, flags)
        self.views += 1

    def __releasebuffer__(self, Py_buffer* view):
        self.views -= 1


@cython.no_gc_clear              # dropped, it closes its end, and needs the pipe for it
cdef class PipeReader:
    """The end that bytes come out of. Made by `pipe()`."""

    cdef _Pipe shared
    cdef readonly bint closed
    cdef Chunk rest              # a chunk that `readinto` has not used up

    def __init__(self, _Pipe shared not None):
        self.shared = shared

    cdef int check_open(self) except -1:
        self.shared.check()
        if self.closed:
            raise self.shared.closed_error()
        return 0

    def read_chunk(self):
        """Wait for the next chunk and lend it; None at the end of the stream.

        Raises the writer's reason when it failed, PipeClosed when this end is closed.
        """
        self.check_open()
        cdef Chunk rest = self.rest
        self.rest = None
        return self.take() if rest is None else rest

    cdef Chunk take(self):
        cdef uint64_t number = 0
        cdef int code
        cdef Pulse pulse
        cdef Ring* ring = self.shared.ring
        cdef Chunk chunk
        pulse_start(&pulse, None, None)
        with nogil:
            code = ring_take(ring, &pulse, &number)
        if code == 0:
            return None
        if code < 0:
            raise_outcome(code, self.shared, ring.bytes, 0)
        chunk = Chunk.__new__(Chunk)
        chunk.shared = self.shared
        chunk.number = number
        chunk.length = ring.slots[number % ring.chunks].length
        chunk.offset = ring.slots[number % ring.chunks].offset
        return chunk

    def readinto(self, buffer):
        """Fill `buffer` with what is there, waiting for at least one byte; how many, 0 at the end."""
        self.check_open()
        cdef size_t count = 0
        with memoryview(buffer).cast("B") as target:
            if len(target) == 0:
                return 0
            if self.rest is None:
                self.rest = self.take()
                if self.rest is None:
                    return 0
            with memoryview(self.rest) as source:
                count = min(len(target), len(source))
                target[:count] = source[:count]
        self.rest.start += count
        self.rest.offset += count
        self.rest.length -= count
        if self.rest.length == 0:
            self.rest.release()
            self.rest = None
        return count

    def copy_to_fd(self, fd, progress=None):
        """Write all that is to come to the descriptor `fd`, without the GIL; how many bytes.

        Bytes go from the slots to the descriptor with no copy between.
        """
        self.check_open()
        return send(self, fd, progress=progress)

    def close(self, error=None):
        """Stop reading: the writer's next call raises `error`, or PipeClosed. May come twice."""
        self.shared.check()
        self.closed = True
        if ring_close_reader(self.shared.ring, END_FAILED if error is not None else END_DONE):
            if self.shared.reason is None:
                self.shared.reason = error

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        self.close(error)

    def __dealloc__(self):
        if self.shared is not None and self.shared.pid == getpid():
            ring_close_reader(self.shared.ring, END_DONE)


@cython.no_gc_clear              # dropped, it closes its end, and needs the pipe for it
cdef class PipeWriter:
    """The end that bytes go into. Made by `pipe()`."""

    cdef _Pipe shared
    cdef readonly bint closed
    cdef Slot slot

    def __init__(self, _Pipe shared not None):
        self.shared = shared

    cdef int check_writable(self) except -1:
        self.shared.check()
        if self.closed:
            raise self.shared.closed_error()
        if self.shared.ring.reader != END_OPEN:
            raise self.shared.closed_error()
        if self.shared.slot_out:
            raise ValueError("commit the reserved slot first")
        return 0

    cdef object feed(self, _Source source):
        cdef Pulse pulse
        cdef int64_t count
        cdef Ring* ring = self.shared.ring
        pulse_start(&pulse, None, None)
        with nogil:
            count = ring_feed(ring, &self.shared.partial, &source.state, &pulse)
        source.finish()
        if count < 0:
            raise_outcome(count, self.shared if count == RING_CLOSED else source.owner, ring.bytes, 0)
        return count

    def write(self, data):
        """Put all of `data` into the ring, waiting for room; how many bytes.

        Small writes share a slot; the reader sees them when it is full, or at `flush` or `close`.
        """
        self.check_writable()
        return self.feed(_Source(memoryview(data)))

    def copy_from_fd(self, fd, offset=None, length=None):
        """Copy from the descriptor `fd` without the GIL; how many bytes.

        `offset` reads a file from there without moving its position; None reads from where it
        stands. `length` in bytes; None reads to the end, and fewer bytes come when it is nearer.
        """
        self.check_writable()
        return self.feed(_Source(int(fd), offset, length))

    def copy_from_image(self, Image image not None):
        """Copy all of `image` without the GIL; how many bytes."""
        self.check_writable()
        return self.feed(_Source(image))

    def flush(self):
        """Let the reader see what small writes have gathered."""
        self.check_writable()
        if self.shared.partial:
            ring_commit(self.shared.ring, self.shared.partial)
            self.shared.partial = 0

    def reserve(self):
        """Wait for a free slot and lend it, to be filled in place and handed on with `commit`."""
        self.flush()
        cdef Pulse pulse
        cdef int code
        cdef Ring* ring = self.shared.ring
        cdef Slot slot
        pulse_start(&pulse, None, None)
        with nogil:
            code = ring_reserve(ring, &pulse)
        if code:
            raise_outcome(code, self.shared, ring.bytes, 0)
        slot = Slot.__new__(Slot)
        slot.shared = self.shared
        slot.memory = ring_memory(ring, ring.next_write)
        slot.length = ring.chunk_size
        self.slot = slot
        self.shared.slot_out = True
        return slot

    def commit(self, length):
        """Hand the first `length` bytes of the reserved slot to the reader; 0 gives it back unused."""
        cdef size_t count
        self.shared.check()
        if self.closed:
            raise self.shared.closed_error()
        if not self.shared.slot_out:
            raise ValueError("reserve a slot first")
        if not 0 <= length <= <Py_ssize_t>self.slot.length:
            raise ValueError(f"length must be 0 to {self.slot.length}, not {length}")
        if self.slot.views:
            raise BufferError("release the views of the slot first: its memory is handed on")
        count = length           # refused here, and not when the slot is half handed on
        self.slot.committed = True
        self.slot = None
        self.shared.slot_out = False
        ring_commit(self.shared.ring, count)

    def close(self, error=None):
        """End the stream; with `error`, fail it: the reader raises `error` at once. May come twice."""
        self.shared.check()
        if self.closed:
            return
        self.closed = True
        if error is None and self.shared.partial and not self.shared.slot_out:
            ring_commit(self.shared.ring, self.shared.partial)
        self.shared.partial = 0
        if ring_close_writer(self.shared.ring, END_FAILED if error is not None else END_DONE):
            if self.shared.reason is None:
                self.shared.reason = error

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        self.close(error)

    def __dealloc__(self):
        # A writer that vanished without a close has not finished: never an end in good order.
        if self.shared is not None and self.shared.pid == getpid():
            ring_close_writer(self.shared.ring, END_FAILED)
