/* The disk alone: what direct writes of large blocks bring on this file system, one after the other.
 *
 * It does the least that a durable file needs: a new file, aligned writes past the page cache, one
 * fsync. It must not do anything that a snapshot needs besides: no source, no checksum, no name of
 * its own, no preallocation. Nothing that saves a snapshot by such writes can be faster.
 *
 * A shared library, called by Python without the GIL, so that no process's start is timed.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#define BLOCK_SIZE ((size_t)4 << 20) /* Larger ones were no faster on any disk seen, smaller ones slower. */
#define ALIGNMENT ((size_t)2 << 20)   /* Huge pages: in small ones the disk gets many short requests. */

static char *noise; /* One block that nothing below can compress, made once. */

static int make_noise(void)
{
    uint64_t state = 88172645463325252u;
    if (noise)
        return 0;
    if (posix_memalign((void **)&noise, ALIGNMENT, BLOCK_SIZE))
        return ENOMEM;
    madvise(noise, BLOCK_SIZE, MADV_HUGEPAGE); /* Where there are none, it is slower, and so are others. */
    for (size_t at = 0; at < BLOCK_SIZE; at += sizeof state) {
        state ^= state << 13; /* Marsaglia's xorshift. */
        state ^= state >> 7;
        state ^= state << 17;
        *(uint64_t *)(noise + at) = state;
    }
    return 0;
}

static int write_all(int fd, uint64_t size)
{
    while (size) {
        ssize_t count = write(fd, noise, size < BLOCK_SIZE ? size : BLOCK_SIZE);
        if (count < 0 && errno == EINTR)
            continue;
        if (count <= 0)
            return count ? errno : EIO;
        size -= (uint64_t)count;
    }
    return fsync(fd) ? errno : 0;
}

/* Make the file `path` of `size` bytes, a multiple of 4096; 0, or what errno says. EINVAL, as a
 * rule, where the file system takes no direct I/O. */
int write_direct(const char *path, uint64_t size)
{
    int code = make_noise();
    if (code)
        return code;
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_DIRECT | O_CLOEXEC, 0600);
    if (fd < 0)
        return errno;
    code = write_all(fd, size);
    if (close(fd) && !code)
        code = errno;
    return code;
}
