# The body of an HTTP message, read off a socket: its length or its chunks, and our frames inside.
#
# Strict where leniency lets a second message be smuggled in: a chunk's size is hexadecimal digits,
# lines end in CRLF, and nothing is read past the end of the body but what one read brought along,
# which is kept for the next message on the connection.

cdef enum:
    LINE_SIZE_MAX = 256          # a chunk's size and its extensions; 15 digits are the longest size
    TRAILER_LINES_MAX = 64       # nothing in a trailer is used, so few are borne
    BODY_BUFFER_SIZE = 64 * 1024

cdef enum BodyMode:
    BODY_SIZED, BODY_CHUNKED

cdef struct BodyState:
    int fd
    BodyMode mode
    uint64_t left                # of the body, or of the chunk under way
    bint in_chunk                # a chunk's CRLF is still to come
    bint ended
    char* buffer                 # read, not yet used
    size_t buffer_start
    size_t buffer_end
    const char* ahead            # put back by the one who looked at it: comes before all else
    size_t ahead_left


cdef int64_t socket_read(int fd, char* buffer, size_t size, Pulse* pulse) noexcept nogil:
    """Some bytes of a socket; 0 at its end, or a negative outcome."""
    cdef ssize_t count
    cdef int code
    while True:
        count = recv(fd, buffer, size, MSG_DONTWAIT)
        if count >= 0:
            pulse.window_bytes += count
            return count
        if errno != EAGAIN and errno != EINTR:
            return -errno
        code = pulse_wait_fd(pulse, fd, POLLIN)
        if code:
            return code


cdef int64_t body_read_raw(BodyState* body, char* buffer, size_t size, Pulse* pulse) noexcept nogil:
    """Some bytes of the connection: first those that came along with the head."""
    cdef size_t kept = body.buffer_end - body.buffer_start
    if kept == 0:
        return socket_read(body.fd, buffer, size, pulse)
    size = min(size, kept)
    memcpy(buffer, body.buffer + body.buffer_start, size)
    body.buffer_start += size
    return size


cdef int body_read_line(BodyState* body, char* line, Pulse* pulse) noexcept nogil:
    """A line without its CRLF, closed by a NUL; its length, or a negative outcome."""
    cdef int64_t count
    cdef size_t length = 0
    while length < LINE_SIZE_MAX:
        if body.buffer_start == body.buffer_end:
            count = socket_read(body.fd, body.buffer, BODY_BUFFER_SIZE, pulse)
            if count <= 0:
                return <int>count if count else TRUNCATED
            body.buffer_start = 0
            body.buffer_end = count
        line[length] = body.buffer[body.buffer_start]
        body.buffer_start += 1
        if line[length] == c'\n':
            if length == 0 or line[length - 1] != c'\r':
                return FRAME_WRONG
            line[length - 1] = 0
            return <int>(length - 1)
        if length and line[length - 1] == c'\r':
            return FRAME_WRONG
        length += 1
    return FRAME_WRONG


cdef int chunk_size_of(const char* line, int length, uint64_t* size) noexcept nogil:
    """The number that a chunk opens with; extensions behind a semicolon are passed over."""
    cdef int digits = 0, digit
    size[0] = 0
    while digits < length:
        if c'0' <= line[digits] <= c'9':
            digit = line[digits] - c'0'
        elif c'a' <= line[digits] <= c'f':
            digit = line[digits] - c'a' + 10
        elif c'A' <= line[digits] <= c'F':
            digit = line[digits] - c'A' + 10
        else:
            break
        size[0] = size[0] << 4 | <uint64_t>digit
        digits += 1
        if digits > 15:          # beyond 2^60 there is no snapshot, only an overflow
            return FRAME_WRONG
    return 0 if digits and (digits == length or line[digits] == c';') else FRAME_WRONG


cdef int body_next_chunk(BodyState* body, Pulse* pulse) noexcept nogil:
    cdef char line[LINE_SIZE_MAX + 1]
    cdef int length, lines
    if body.in_chunk:
        length = body_read_line(body, line, pulse)
        if length:
            return length if length < 0 else FRAME_WRONG
    length = body_read_line(body, line, pulse)
    if length < 0:
        return length
    body.in_chunk = True
    if chunk_size_of(line, length, &body.left):
        body.left = 0
        return FRAME_WRONG
    if body.left:
        return 0
    for lines in range(TRAILER_LINES_MAX):
        length = body_read_line(body, line, pulse)
        if length <= 0:
            body.ended = length == 0
            return length
    return FRAME_WRONG


cdef int64_t body_read(BodyState* body, char* buffer, size_t size, Pulse* pulse) noexcept nogil:
    """Some bytes of the body; 0 at its end, TRUNCATED when the connection ends first."""
    cdef int64_t count
    cdef int code
    if size == 0:
        return 0
    if body.ahead_left:
        size = min(size, body.ahead_left)
        memcpy(buffer, body.ahead, size)
        body.ahead += size
        body.ahead_left -= size
        return size
    if body.left == 0 and body.mode == BODY_CHUNKED and not body.ended:
        code = body_next_chunk(body, pulse)
        if code:
            return code
    if body.left == 0:
        body.ended = True
        return 0
    count = body_read_raw(body, buffer, min(<uint64_t>size, body.left), pulse)
    if count == 0:
        return TRUNCATED
    if count > 0:
        body.left -= count
    return count


cdef int body_read_all(BodyState* body, char* buffer, size_t size, Pulse* pulse) noexcept nogil:
    """Exactly `size` bytes; 0, or a negative outcome, TRUNCATED when the body ends first."""
    cdef int64_t count
    while size:
        count = body_read(body, buffer, size, pulse)
        if count <= 0:
            return <int>count if count else TRUNCATED
        buffer += count
        size -= count
    return 0


# Frames. A chunk travels as a head of 16 bytes, its bytes, and a foot of 4; all numbers big-endian:
#   magic u32 | length u32 | offset u64 | bytes ... | CRC32C u32
# A chunk that the receiver said it has kept travels without its bytes, under a magic of its own: the
# receiver compares the digest with its copy's. Such frames come first or not at all. The last frame
# has another magic, no bytes, the snapshot's size as its offset, and the digest of the whole.
# The digest follows the bytes, so that they are read, digested and sent while they are
# in the cache; every field of a head is known beforehand, so a wrong one is seen without a digest.

cdef enum:
    FRAME_HEAD_SIZE = 16
    FRAME_FOOT_SIZE = 4

cdef uint32_t CHUNK_MAGIC = 0x534E5043   # "SNPC"
cdef uint32_t KEPT_MAGIC = 0x534E504B    # "SNPK"
cdef uint32_t END_MAGIC = 0x534E5045     # "SNPE"

cdef struct FrameState:
    BodyState* body
    uint64_t offset              # of the next chunk
    uint64_t chunk_size
    uint64_t size                # of the snapshot; SIZE_UNKNOWN
    uint64_t kept_size           # what the receiver has of an earlier attempt, in whole chunks
    bint kept                    # the frame just read stands for one of those
    bint bytes_seen              # a frame with bytes came: no kept ones may follow
    uint32_t digest              # of what came so far
    bint short_seen              # a chunk shorter than the chunk size is the last
    bint ended


cdef void frame_pack(char* head, uint32_t magic, uint32_t length, uint64_t offset) noexcept nogil:
    cdef uint32_t words[2]
    cdef uint64_t wide = htobe64(offset)
    words[0] = htobe32(magic)
    words[1] = htobe32(length)
    memcpy(head, words, 8)
    memcpy(head + 8, &wide, 8)


cdef int frame_end(FrameState* frame, uint64_t size, Pulse* pulse) noexcept nogil:
    cdef uint32_t digest
    cdef char byte
    cdef int64_t code
    if size != frame.offset or (frame.size != SIZE_UNKNOWN and size != frame.size):
        return TRUNCATED
    code = body_read_all(frame.body, <char*>&digest, FRAME_FOOT_SIZE, pulse)
    if code:
        return <int>code
    if be32toh(digest) != frame.digest:
        return WHOLE_WRONG
    code = body_read(frame.body, &byte, 1, pulse)
    if code:
        return <int>code if code < 0 else FRAME_WRONG
    frame.ended = True
    return 0


cdef int frame_head(FrameState* frame, uint32_t* magic, uint64_t* length, uint64_t* offset,
                    Pulse* pulse) noexcept nogil:
    cdef char head[FRAME_HEAD_SIZE]
    cdef uint32_t words[2]
    cdef uint64_t wide
    cdef int code = body_read_all(frame.body, head, FRAME_HEAD_SIZE, pulse)
    if code:
        return code
    memcpy(words, head, 8)
    memcpy(&wide, head + 8, 8)
    magic[0] = be32toh(words[0])
    length[0] = be32toh(words[1])
    offset[0] = be64toh(wide)
    return 0


cdef int frame_check(FrameState* frame, uint32_t magic, uint64_t length, uint64_t offset) noexcept nogil:
    """Whether this head may come now: each of its fields is known beforehand."""
    if offset != frame.offset or frame.short_seen or length == 0 or length > frame.chunk_size:
        return FRAME_WRONG
    if magic == KEPT_MAGIC:
        if frame.bytes_seen or length != frame.chunk_size or offset + length > frame.kept_size:
            return FRAME_WRONG
    elif magic != CHUNK_MAGIC:
        return FRAME_WRONG
    if frame.size != SIZE_UNKNOWN and length != min(frame.chunk_size, frame.size - offset):
        return TOO_LARGE if offset + length > frame.size else FRAME_WRONG
    return 0


cdef int frame_bytes(FrameState* frame, char* buffer, uint64_t length, uint32_t* digest,
                     Pulse* pulse) noexcept nogil:
    """A frame's bytes into `buffer`, digested while they are in the cache."""
    cdef uint64_t done = 0, piece
    cdef int code
    frame.bytes_seen = True
    digest[0] = 0
    while done < length:
        piece = min(length - done, <uint64_t>PIECE_SIZE)
        code = pace_in(pulse, piece)
        if code == 0:
            code = body_read_all(frame.body, buffer + done, piece, pulse)
        if code:
            return code
        digest[0] = crc32c_of(digest[0], buffer + done, piece)
        done += piece
    return 0


cdef int64_t frame_read(FrameState* frame, char* buffer, uint32_t* digest, Pulse* pulse) noexcept nogil:
    """One chunk into `buffer`, verified; its length, 0 at the end, or a negative outcome.

    Where `frame.kept` is set afterwards nothing came but `digest`: the caller has the bytes.
    """
    cdef uint64_t offset, length
    cdef uint32_t magic, claimed
    cdef int code
    if frame.ended:
        return 0
    code = frame_head(frame, &magic, &length, &offset, pulse)
    if code:
        return code
    if magic == END_MAGIC and length == 0:
        return frame_end(frame, offset, pulse)
    code = frame_check(frame, magic, length, offset)
    frame.kept = magic == KEPT_MAGIC
    if code == 0 and not frame.kept:
        code = frame_bytes(frame, buffer, length, digest, pulse)
    if code == 0:
        code = body_read_all(frame.body, <char*>&claimed, FRAME_FOOT_SIZE, pulse)
    if code:
        return code
    if frame.kept:
        digest[0] = be32toh(claimed)
        pulse.window_bytes += length   # the sender has read them, though it need not send them
    elif be32toh(claimed) != digest[0]:
        return DIGEST_WRONG
    frame.short_seen = length < frame.chunk_size
    frame.offset += length
    frame.digest = crc32c_join(frame.digest, digest[0], length)
    return length
