/* Faults on demand: preloaded into a process, it makes one chosen system call of it fail.
 *
 * Unarmed it only counts. Armed, the n-th call of a kind (or of any kind) fails with an errno, is cut
 * short, kills the process before it is made, or is made after a function of the test's was called. Each
 * arming strikes once. It knows nothing of snapshots.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

enum { OPENAT, FLOCK, FCHMOD, FSYNC, WRITE, PWRITE, FALLOCATE, FTRUNCATE, LINKAT, RENAMEAT, RENAMEAT2,
       UNLINKAT, CLOSE, KINDS };
enum { ANY = -1, KILL = -1, SHORT = -2, CALL = -3 };

static atomic_int counts[KINDS], armed_kind, left, action;
static void (*called)(void);

void fault_arm(int kind, int nth, int what) {
    for (int each = 0; each < KINDS; each++)
        atomic_store(&counts[each], 0);
    atomic_store(&armed_kind, kind);
    atomic_store(&action, what);
    atomic_store(&left, nth);
}

void fault_call(void (*function)(void)) { called = function; }

/* What is left until it strikes: 0 or less when it did. */
int fault_left(void) { return atomic_load(&left); }

int fault_count(int kind) { return atomic_load(&counts[kind]); }

static int strike(int kind) {
    atomic_fetch_add(&counts[kind], 1);
    int armed = atomic_load(&armed_kind);
    if (atomic_load(&left) <= 0 || (armed != ANY && armed != kind) || atomic_fetch_sub(&left, 1) != 1)
        return 0;
    int what = atomic_load(&action);
    if (what == KILL) {
        kill(getpid(), SIGKILL);
        for (;;)
            pause();
    }
    if (what == CALL)
        called();
    if (what > 0)
        errno = what;
    return what;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define FAULTY(KIND, name, parameters, arguments) \
    int name parameters { return strike(KIND) > 0 ? -1 : REAL(name) arguments; }

FAULTY(FCHMOD, fchmod, (int fd, mode_t mode), (fd, mode))
FAULTY(FSYNC, fsync, (int fd), (fd))
FAULTY(FALLOCATE, fallocate64, (int fd, int mode, off64_t at, off64_t size), (fd, mode, at, size))
FAULTY(FTRUNCATE, ftruncate64, (int fd, off64_t size), (fd, size))
FAULTY(LINKAT, linkat, (int at, const char *from, int to_at, const char *to, int flags),
       (at, from, to_at, to, flags))
FAULTY(RENAMEAT, renameat, (int at, const char *from, int to_at, const char *to), (at, from, to_at, to))
FAULTY(RENAMEAT2, renameat2, (int at, const char *from, int to_at, const char *to, unsigned int flags),
       (at, from, to_at, to, flags))
FAULTY(UNLINKAT, unlinkat, (int at, const char *name, int flags), (at, name, flags))
FAULTY(CLOSE, close, (int fd), (fd))

int flock(int fd, int operation) {
    /* Giving a lock back does not fail. */
    return !(operation & LOCK_UN) && strike(FLOCK) > 0 ? -1 : REAL(flock)(fd, operation);
}

int openat64(int at, const char *name, int flags, ...) {
    va_list more;
    va_start(more, flags);
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(more, mode_t) : 0;
    va_end(more);
    return strike(OPENAT) > 0 ? -1 : REAL(openat64)(at, name, flags, mode);
}

ssize_t write(int fd, const void *data, size_t size) {
    int what = strike(WRITE);
    return what > 0 ? -1 : REAL(write)(fd, data, what == SHORT ? 1 : size);
}

ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) {
    int what = strike(PWRITE);
    /* A whole page: direct I/O refuses less. */
    return what > 0 ? -1 : REAL(pwrite64)(fd, data, what == SHORT && size > 4096 ? 4096 : size, at);
}
