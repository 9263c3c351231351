# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, embedsignature=True, auto_pickle=False, nonecheck=True
"""Moves the bytes: a ring of slots, whole transfers without the GIL, and the durable copy.

It knows no policy, no paths and no words: Python decides, once per snapshot, and this file's parts
act on all of its bytes in one call. Reading order, each knowing only those above it:

    pulse      time, signals, cancellation in every wait
    throttle   how many bytes a second all who share it may move
    ring       slots that change owner
    lmdb_*     which pages of an LMDB file hold what, and what in them is unused
    image      a file's bytes with patches, readable at random
    window     one read of an image for all who want it at about the same time
    body       HTTP bodies and the frames of the wire
    source     one way to ask any source for its next chunk
    transfer   source to ring, source to descriptor
    disk       source to a file that is to last
    publish    from the last byte to the lasting name
    *_face(s)  what Python sees

Everything above the faces is C in Cython's spelling: `noexcept nogil`, codes instead of exceptions.
"""

cimport cython
from libc.errno cimport (EAGAIN, EBADF, EBUSY, EDQUOT, EEXIST, EFBIG, EINTR, EINVAL, EIO, EISDIR, ENOENT, ENOMEM,
                         ENOSPC, ENOSYS, EOPNOTSUPP, EPERM, EPIPE, ETIMEDOUT, errno)
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.stdlib cimport calloc, free, malloc, qsort, realloc
from libc.string cimport memcpy, memset, strerror
from posix.fcntl cimport (F_DUPFD_CLOEXEC, F_GETFL, F_SETFL, O_ACCMODE, O_CLOEXEC, O_CREAT, O_DIRECTORY,
                          O_EXCL, O_NONBLOCK, O_RDONLY, O_RDWR, O_WRONLY, fcntl)
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, nanosleep, timespec
from posix.types cimport off_t
from posix.unistd cimport close, fsync, ftruncate, getpid, pread, pwrite, read, write

from cpython.buffer cimport (PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_FillInfo, PyBuffer_Release,
                             PyObject_CheckBuffer, PyObject_GetBuffer)
from cpython.bytes cimport PyBytes_AsString

cdef extern from "Python.h":
    int PyErr_CheckSignals() noexcept
    unsigned long PyThread_get_thread_ident() noexcept

cdef extern from "crc32c.h" nogil:
    const char* crc32c_implementation
    void crc32c_prepare() noexcept
    uint32_t crc32c_of(uint32_t value, const void* data, size_t size) noexcept
    uint32_t crc32c_of_portable(uint32_t value, const void* data, size_t size) noexcept
    uint32_t crc32c_join(uint32_t first, uint32_t second, uint64_t second_size) noexcept

cdef extern from * nogil:
    """
    #include <endian.h>
    #include <fcntl.h>
    #include <limits.h>
    #include <poll.h>
    #include <pthread.h>
    #include <signal.h>
    #include <stdio.h>
    #include <sys/file.h>
    #include <sys/mman.h>
    #include <sys/socket.h>
    #include <sys/stat.h>
    #include <sys/uio.h>
    """
    ctypedef struct struct_stat "struct stat":
        unsigned long st_mode
        unsigned long st_nlink
        unsigned long st_ino
        unsigned long st_dev
    int fstat(int fd, struct_stat* status) noexcept
    int fstatat(int directory, const char* name, struct_stat* status, int flags) noexcept
    bint S_ISSOCK(unsigned long mode) noexcept
    bint S_ISFIFO(unsigned long mode) noexcept
    bint S_ISDIR(unsigned long mode) noexcept
    bint S_ISREG(unsigned long mode) noexcept
    bint S_ISBLK(unsigned long mode) noexcept
    int fchmod(int fd, unsigned int mode) noexcept
    int posix_memalign(void** memory, size_t alignment, size_t size) noexcept

    cdef struct pollfd:
        int fd
        short events
        short revents
    int poll(pollfd* waited, unsigned long count, int timeout_ms) noexcept
    const short POLLIN, POLLOUT, POLLNVAL

    ssize_t recv(int fd, void* buffer, size_t size, int flags) noexcept
    ssize_t c_send "send"(int fd, const void* data, size_t size, int flags) noexcept
    const int MSG_DONTWAIT, MSG_MORE, MSG_NOSIGNAL
    cdef struct iovec:
        void* iov_base
        size_t iov_len
    ssize_t pwritev2(int fd, const iovec* vectors, int count, off_t offset, int flags) noexcept
    const int RWF_NOWAIT, PIPE_BUF

    void* mmap(void* address, size_t size, int protection, int flags, int fd, off_t offset) noexcept
    int munmap(void* address, size_t size) noexcept
    void* MAP_FAILED
    const int PROT_READ, PROT_WRITE, MAP_PRIVATE, MAP_ANONYMOUS
    int madvise(void* address, size_t size, int advice) noexcept
    const int MADV_HUGEPAGE, MADV_DONTFORK

    int openat(int directory, const char* name, int flags, ...) noexcept
    int unlinkat(int directory, const char* name, int flags) noexcept
    int linkat(int directory, const char* name, int target_directory, const char* target, int flags) noexcept
    int renameat(int directory, const char* name, int target_directory, const char* target) noexcept
    int renameat2(int directory, const char* name, int target_directory, const char* target,
                  unsigned int flags) noexcept
    int flock(int fd, int operation) noexcept
    int posix_fadvise(int fd, off_t offset, off_t length, int advice) noexcept
    const int POSIX_FADV_SEQUENTIAL
    int fallocate(int fd, int mode, off_t offset, off_t length) noexcept
    int sync_file_range(int fd, off_t offset, off_t length, unsigned int flags) noexcept
    const int O_TMPFILE, O_DIRECT, O_NOFOLLOW, AT_FDCWD, AT_EMPTY_PATH, AT_SYMLINK_FOLLOW, AT_SYMLINK_NOFOLLOW
    const int RENAME_NOREPLACE, LOCK_EX, LOCK_NB, LOCK_UN, FALLOC_FL_KEEP_SIZE, SYNC_FILE_RANGE_WRITE

    ctypedef struct pthread_mutex_t:
        pass
    ctypedef struct pthread_cond_t:
        pass
    ctypedef struct pthread_condattr_t:
        pass
    ctypedef unsigned long pthread_t
    ctypedef struct sigset_t:
        pass
    int pthread_mutex_init(pthread_mutex_t* mutex, void* attributes) noexcept
    int pthread_mutex_destroy(pthread_mutex_t* mutex) noexcept
    int pthread_mutex_lock(pthread_mutex_t* mutex) noexcept
    int pthread_mutex_unlock(pthread_mutex_t* mutex) noexcept
    int pthread_condattr_init(pthread_condattr_t* attributes) noexcept
    int pthread_condattr_setclock(pthread_condattr_t* attributes, int clock) noexcept
    int pthread_condattr_destroy(pthread_condattr_t* attributes) noexcept
    int pthread_cond_init(pthread_cond_t* condition, pthread_condattr_t* attributes) noexcept
    int pthread_cond_destroy(pthread_cond_t* condition) noexcept
    int pthread_cond_broadcast(pthread_cond_t* condition) noexcept
    int pthread_cond_timedwait(pthread_cond_t* condition, pthread_mutex_t* mutex, const timespec* until) noexcept
    int pthread_create(pthread_t* thread, void* attributes, void* (*run)(void*) noexcept nogil,
                       void* argument) noexcept
    int pthread_join(pthread_t thread, void** result) noexcept
    int pthread_sigmask(int how, const sigset_t* signals, sigset_t* before) noexcept
    int sigfillset(sigset_t* signals) noexcept
    const int SIG_SETMASK

    uint32_t htobe32(uint32_t value) noexcept
    uint32_t be32toh(uint32_t value) noexcept
    uint64_t htobe64(uint64_t value) noexcept
    uint64_t be64toh(uint64_t value) noexcept

from collections import namedtuple
from threading import main_thread as threading_main

from snapstore.errors import ForkedProcess, PipeClosed, SnapshotCorrupt
from snapstore.outcomes import outcome_error

cdef enum:
    PAGE = 4096                  # what slots are aligned to; larger pages are multiples of it

cdef uint64_t SIZE_UNKNOWN = <uint64_t>-1

#: The largest offset that the system takes.
SIZE_MAX = 2**63 - 1

#: Direct writes of this size reach the disk's own speed; smaller ones do not (1 MiB: nine tenths).
CHUNK_SIZE_DEFAULT = 4 * 1024 * 1024
#: Slots are pages.
CHUNK_SIZE_MIN = PAGE
#: Beyond this a chunk only costs memory, four slots of it for each save, and it is a peer who names it.
CHUNK_SIZE_MAX = 16 * 1024 * 1024
#: One being received, one being written, two against jitter.
CHUNKS_DEFAULT = 4
#: One being filled, one being read, one for a reader in Python, who waits milliseconds for a busy GIL. With
#: 2 an idle process is quicker by a twentieth, and a busy one by a third slower; with 4 it is the reverse.
PIPE_CHUNKS_DEFAULT = 3
#: The same reason as for the chunk size: memory is chunks times chunk size.
CHUNKS_MAX = 1024

Copied = namedtuple("Copied", ["size", "digest", "chunk_digests"])
Copied.__doc__ = "What a transfer moved: bytes, the CRC32C of the whole, the CRC32C of each chunk."
Copied.__module__ = "snapstore._fastpipe"

STAGE_NAMES = ("mode", "sync", "manifest", "lock", "name", "sync_directory", "done")


cdef uint64_t check_size(value, name) except? 0xBAD:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, not {type(value).__name__}")
    if not 0 <= value <= SIZE_MAX:
        raise ValueError(f"{name} must be 0 to 2^63-1, not {value}")
    return value


cdef int check_chunking(chunk_size, chunks) except -1:
    if not CHUNK_SIZE_MIN <= chunk_size <= CHUNK_SIZE_MAX or chunk_size % PAGE:
        raise ValueError(
            f"chunk_size must be a multiple of {PAGE} between {CHUNK_SIZE_MIN} and {CHUNK_SIZE_MAX}, not {chunk_size}")
    if not 1 <= chunks <= CHUNKS_MAX:
        raise ValueError(f"chunks must be 1 to {CHUNKS_MAX}, not {chunks}")
    return 0


include "snapstore/_native/pulse.pxi"
include "snapstore/_native/throttle.pxi"
include "snapstore/_native/ring.pxi"
include "snapstore/_native/lmdb_pages.pxi"
include "snapstore/_native/lmdb_walk.pxi"
include "snapstore/_native/image.pxi"
include "snapstore/_native/window.pxi"
include "snapstore/_native/body.pxi"
include "snapstore/_native/source.pxi"
include "snapstore/_native/transfer.pxi"
include "snapstore/_native/growth.pxi"
include "snapstore/_native/disk.pxi"
include "snapstore/_native/publish.pxi"
include "snapstore/_native/throttle_face.pxi"
include "snapstore/_native/pulse_face.pxi"
include "snapstore/_native/transfer_faces.pxi"
include "snapstore/_native/pipe_faces.pxi"
include "snapstore/_native/image_face.pxi"
include "snapstore/_native/words_face.pxi"
include "snapstore/_native/save_face.pxi"

crc32c_prepare()

#: Which of the ways in crc32c.h this processor takes: "sse4.2", "armv8" or "portable".
CRC32C_IMPLEMENTATION = crc32c_implementation.decode()


def crc32c(data, uint32_t value=0):
    """Return the CRC32C of `data`, going on from `value`, the CRC32C of what came before it."""
    cdef const uint8_t[::1] view = memoryview(data).cast("B")
    cdef size_t size = view.shape[0]
    with nogil:
        if size:
            value = crc32c_of(value, &view[0], size)
    return value


def crc32c_portable(data, uint32_t value=0):
    """Return what `crc32c` does, by the tables that every processor can use."""
    cdef const uint8_t[::1] view = memoryview(data).cast("B")
    return crc32c_of_portable(value, &view[0], view.shape[0]) if view.shape[0] else value


def crc32c_combine(uint32_t first, uint32_t second, uint64_t second_size):
    """Return the CRC32C of A then B from that of A, that of B, and the length of B in bytes."""
    return crc32c_join(first, second, second_size)
