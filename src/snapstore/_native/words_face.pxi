# The words on a line: heads and short answers, each sent or received by a single call.
#
# A socket of Python's leaves the GIL three times for them: to set its timeout, to wait, and to move the bytes.
# Beside a thread that computes, each way back takes 5 ms.

cdef enum:
    WORDS_SIZE_MAX = 16 * 1024   # received at once: most heads have less, and a longer one comes in parts


cdef int words_send(int fd, const char* data, size_t size, Pulse* pulse) noexcept nogil:
    """Send all of `data` within `pulse.idle_ns_max`, however much of it goes now and then."""
    cdef int64_t until_ns = now_ns() + pulse.idle_ns_max
    cdef ssize_t count
    cdef int code
    while size:
        count = c_send(fd, data, size, MSG_DONTWAIT | MSG_NOSIGNAL)
        if count >= 0:
            data += count
            size -= count
        elif errno == EAGAIN:
            pulse.idle_ns_max = max(until_ns - now_ns(), <int64_t>0)
            code = pulse_wait_fd(pulse, fd, POLLOUT)
            if code:
                return code
        elif errno != EINTR:
            return -errno
    return 0


cdef int words_start(Pulse* pulse, timeout_s) except -1:
    if not timeout_s > 0:
        raise ValueError(f"timeout_s must be above 0 seconds, not {timeout_s}")
    return pulse_start(pulse, None, timeout_s)


cdef int words_raise(int64_t code) except -1:
    if code == -ETIMEDOUT:
        raise TimeoutError("timed out")
    return raise_outcome(code, None, 0, 0)


def send_words(int fd, bytes words not None, *, timeout_s):
    """Send all of `words` on the socket `fd`; TimeoutError after `timeout_s` seconds, when some may have gone."""
    cdef Pulse pulse
    cdef const char* data = words
    cdef size_t size = len(words)
    cdef int code
    words_start(&pulse, timeout_s)
    with nogil:
        code = words_send(fd, data, size, &pulse)
    if code:
        words_raise(code)


def receive_words(int fd, *, timeout_s):
    """Return what comes on the socket `fd`, at most 16 KiB; b"" at its end, TimeoutError after `timeout_s` seconds."""
    cdef char words[WORDS_SIZE_MAX]
    cdef Pulse pulse
    cdef int64_t count
    words_start(&pulse, timeout_s)
    with nogil:
        count = socket_read(fd, words, WORDS_SIZE_MAX, &pulse)
    if count < 0:
        words_raise(count)
    return words[:count]
