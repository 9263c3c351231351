# The words on a line: heads and short answers, each sent or received by a single call.
#
# A socket of Python's leaves the GIL three times for them: to set its timeout, to wait, and to move the bytes.
# Beside a thread that computes, each way back takes 5 ms.

cdef enum:
    WORDS_SIZE_MAX = 16 * 1024   # received at once: most heads have less, and a longer one comes in parts


def send_words(int fd, bytes words not None, *, timeout_s):
    """Send all of `words` on the socket `fd`; TimeoutError where that takes `timeout_s` seconds of waiting."""
    cdef StreamTarget target
    cdef Pulse pulse
    cdef const char* data = words
    cdef size_t size = len(words)
    cdef int code
    pulse_start(&pulse, None, timeout_s)
    pulse.window_bytes_min = SIZE_UNKNOWN    # however much has gone: the limit is for all of it
    with nogil:
        target_look(&target, fd)
        code = target_write(&target, data, size, &pulse)
    if code == TARGET_SILENT:
        raise TimeoutError("timed out")
    if code:
        raise_outcome(code, None, 0, 0)


def receive_words(int fd, *, timeout_s):
    """Return what there is on the socket `fd`, at most 16 KiB; b"" at its end, TimeoutError after `timeout_s`."""
    cdef char words[WORDS_SIZE_MAX]
    cdef Pulse pulse
    cdef int64_t count
    pulse_start(&pulse, None, timeout_s)
    with nogil:
        count = socket_read(fd, words, WORDS_SIZE_MAX, &pulse)
    if count == -ETIMEDOUT:
        raise TimeoutError("timed out")
    if count < 0:
        raise_outcome(count, None, 0, 0)
    return words[:count]
