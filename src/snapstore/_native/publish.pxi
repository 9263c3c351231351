# The save of one file: a temporary one without a name, then its name, for good.
#
# From the open on, the descriptor belongs to a struct here, and from the last fsync to the
# directory's there is one call in C, so that no signal and no exception can fall between. The order:
# write the manifest, fsync both files, lock the directory, name the manifest, name the file without
# replacing, fsync the directory. An fsync that failed is never repeated: the kernel forgets the error
# and answers 0 while the pages are lost.
#
# The manifest is on its way out before the first fsync, so that one commit of the file system's journal
# takes both files: the second fsync has only the disk's cache to flush.

cdef enum:
    TEMP_ATTEMPTS_MAX = 8        # a cleaner may take a temporary file between its open and its lock
    LOCK_POLL_MS = 1             # a lock is held for one fsync of a directory; nobody can be woken by it

cdef enum PublishStage:
    STAGE_MODE, STAGE_SYNC, STAGE_MANIFEST, STAGE_LOCK, STAGE_NAME, STAGE_SYNC_DIRECTORY, STAGE_DONE

cdef struct SyncTurn:            # of all who use one directory's descriptor
    pthread_mutex_t mutex        # held over an fsync of the directory, and what is made of its outcome
    int failed                   # the errno of the first that failed; 0

cdef struct Publication:
    int directory                # a descriptor; borrowed
    SyncTurn* turn
    int fd                       # the snapshot's bytes; -1 when closed
    const char* temp_name        # NULL: the file is nameless, and its manifest, too
    const char* name
    const char* manifest_temp_name
    const char* manifest_name
    const char* manifest
    size_t manifest_size
    PublishStage stage           # where it stopped
    bint named                   # the file has its lasting name
    int64_t sync_ns              # how long the fsyncs took, the directory's included


cdef int lock_wait(int fd, Pulse* pulse) noexcept nogil:
    """Wait for the lock of `fd`; 0, what the pulse says, or a negative errno."""
    cdef int code
    while flock(fd, LOCK_EX | LOCK_NB) < 0:
        if errno != EAGAIN and errno != EINTR:
            return -errno
        poll(NULL, 0, LOCK_POLL_MS)
        code = pulse_check(pulse)
        if code:
            return code
    return 0


cdef int check_named(int directory, const char* name, int fd, struct_stat* status) noexcept nogil:
    """0 where `name` still stands for the open file, whose status comes back; -ENOENT, or another errno."""
    cdef struct_stat named
    if fstat(fd, status) < 0 or fstatat(directory, name, &named, AT_SYMLINK_NOFOLLOW) < 0:
        return -errno
    return 0 if status.st_ino == named.st_ino and status.st_dev == named.st_dev else -ENOENT


cdef int temp_create(int directory, const char* name, Pulse* pulse) noexcept nogil:
    """A new locked file, or a negative outcome. The lock tells a cleaner that its saver lives."""
    cdef struct_stat status
    cdef int fd, code, attempt
    for attempt in range(TEMP_ATTEMPTS_MAX):
        fd = openat(directory, name, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0o600)
        if fd < 0:
            return -errno
        # A cleaner that was quicker holds the lock for as long as its unlink takes; then the name is free.
        code = lock_wait(fd, pulse)
        if code == 0:
            code = check_named(directory, name, fd, &status)
        if code == 0:
            return fd
        close(fd)
        if code != -ENOENT:
            unlinkat(directory, name, 0)
            return code
    return -EBUSY


cdef int temp_resume(int directory, const char* name) noexcept nogil:
    """The file that an earlier attempt kept under this name, or a new one, locked; or a negative errno.

    -EAGAIN when somebody else is at it. Never waits, never follows a link.
    """
    cdef struct_stat status
    cdef int fd, code, attempt
    cdef bint created
    for attempt in range(TEMP_ATTEMPTS_MAX):
        fd = openat(directory, name, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0o600)
        created = fd >= 0
        if fd < 0 and errno == EEXIST:
            fd = openat(directory, name, O_RDWR | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC)
        if fd < 0 and errno == ENOENT:
            continue             # whoever had it has come to an end just now
        if fd < 0:
            return -errno
        code = -errno if flock(fd, LOCK_EX | LOCK_NB) < 0 else check_named(directory, name, fd, &status)
        if code == 0 and (not S_ISREG(status.st_mode) or status.st_nlink > 1):
            code = -EEXIST       # somebody put it there who is not us
        if code == 0:
            return fd
        close(fd)
        if code != -ENOENT and code != -EINTR:
            if created and code != -EAGAIN:
                unlinkat(directory, name, 0)
            return code
    return -EBUSY


cdef int nameless_create(int directory) noexcept nogil:
    """A new file without a name, or a negative errno where the file system has none."""
    # Without O_EXCL, which would forbid to name it later; readable, to be verified before it is named.
    cdef struct_stat status
    cdef int fd = openat(directory, b".", O_RDWR | O_TMPFILE | O_CLOEXEC, 0o600)
    cdef int code = fd if fd >= 0 else -errno
    # ext4 says "not permitted" where the directory was removed.
    if code == -EPERM and fstat(directory, &status) == 0 and status.st_nlink == 0:
        code = -ENOENT
    return code


cdef inline bint nameless_unsupported(int code) noexcept nogil:
    return code == -EOPNOTSUPP or code == -EISDIR or code == -EINVAL or code == -ENOENT


cdef int sync_timed(Publication* publication, int fd) noexcept nogil:
    cdef int64_t began = now_ns()
    cdef int code = 0
    if fsync(fd) < 0:
        code = -errno
    publication.sync_ns += now_ns() - began
    return code


cdef int write_whole(int fd, const char* data, size_t size) noexcept nogil:
    cdef ssize_t count
    while size:
        count = write(fd, data, size)
        if count == 0 or (count < 0 and errno != EINTR):
            return -errno if count < 0 else -EIO
        if count > 0:
            data += count
            size -= count
    return 0


cdef int manifest_create(Publication* publication, Pulse* pulse) noexcept nogil:
    """A new file for the manifest, as the snapshot's is, or a negative outcome."""
    if publication.temp_name == NULL:
        return nameless_create(publication.directory)
    return temp_create(publication.directory, publication.manifest_temp_name, pulse)


cdef int manifest_write(Publication* publication, int fd) noexcept nogil:
    cdef int code = write_whole(fd, publication.manifest, publication.manifest_size)
    if code == 0:                # promises nothing: where it cannot begin now, the fsync does all of it
        sync_file_range(fd, 0, 0, SYNC_FILE_RANGE_WRITE)
    return code


cdef int lock_directory(int directory, Pulse* pulse) noexcept nogil:
    """A descriptor that holds the directory's lock; of its own, so that threads exclude each other."""
    cdef int fd = openat(directory, b".", O_RDONLY | O_DIRECTORY | O_CLOEXEC)
    cdef int code
    if fd < 0:
        return -errno
    code = lock_wait(fd, pulse)
    if code:
        close(fd)
    return code if code else fd


cdef int name_nameless(int directory, int fd, const char* name) noexcept nogil:
    cdef char path[64]
    if linkat(fd, b"", directory, name, AT_EMPTY_PATH) == 0:
        return 0
    if errno == EEXIST:
        return -EEXIST
    snprintf(path, 64, b"/proc/self/fd/%d", fd)   # older kernels ask for a capability otherwise
    return -errno if linkat(AT_FDCWD, path, directory, name, AT_SYMLINK_FOLLOW) < 0 else 0


cdef int name_temp(int directory, const char* temp_name, const char* name) noexcept nogil:
    if renameat2(directory, temp_name, directory, name, RENAME_NOREPLACE) == 0:
        return 0
    if errno != EINVAL and errno != ENOSYS:
        return -errno
    if linkat(directory, temp_name, directory, name, 0) < 0:
        return -errno
    unlinkat(directory, temp_name, 0)
    return 0


cdef int name_manifest(Publication* publication, int fd) noexcept nogil:
    """In the place of what a dead saver left: without a snapshot beside it, a manifest is nobody's."""
    cdef int code = 0
    if publication.temp_name != NULL:
        if renameat(publication.directory, publication.manifest_temp_name, publication.directory,
                    publication.manifest_name) < 0:
            code = -errno
        return code
    code = name_nameless(publication.directory, fd, publication.manifest_name)
    if code == -EEXIST:
        if unlinkat(publication.directory, publication.manifest_name, 0) < 0:
            return -errno
        code = name_nameless(publication.directory, fd, publication.manifest_name)
    return code


cdef int publish_names(Publication* publication, int manifest_fd) noexcept nogil:
    """Give the manifest and the file their names; the directory is locked."""
    cdef struct_stat status
    cdef int code
    publication.stage = STAGE_NAME
    if fstatat(publication.directory, publication.name, &status, AT_SYMLINK_NOFOLLOW) == 0:
        return -EEXIST
    if errno != ENOENT:
        return -errno
    code = name_manifest(publication, manifest_fd)
    if code:
        return code
    if publication.temp_name != NULL:
        code = name_temp(publication.directory, publication.temp_name, publication.name)
    else:
        code = name_nameless(publication.directory, publication.fd, publication.name)
    publication.named = code == 0
    if code:
        unlinkat(publication.directory, publication.manifest_name, 0)
    return code


cdef int sync_in_turn(Publication* publication) noexcept nogil:
    """fsync the directory. The kernel tells of a failure once, so one that anybody heard of is all's."""
    cdef SyncTurn* turn = publication.turn
    cdef int code
    pthread_mutex_lock(&turn.mutex)
    if turn.failed == 0:
        code = sync_timed(publication, publication.directory)
        if code and code != -EINVAL:   # network file systems that need none say so
            atomic_write_int(&turn.failed, -code)
    code = -turn.failed
    pthread_mutex_unlock(&turn.mutex)
    return code


cdef int publish_locked(Publication* publication, int manifest_fd) noexcept nogil:
    cdef int code = publish_names(publication, manifest_fd)
    cdef int sync_code
    if code and code != -EEXIST:
        return code
    # "Exists" must be as lasting as "saved": whoever named it may have died before its own fsync.
    sync_code = sync_in_turn(publication)
    if sync_code:
        publication.stage = STAGE_SYNC_DIRECTORY
        return sync_code
    if code == 0:
        publication.stage = STAGE_DONE
    return code


cdef int publish_synced(Publication* publication, int manifest_fd, Pulse* pulse) noexcept nogil:
    """Both files are on the disk: their names."""
    cdef int lock_fd, code
    publication.stage = STAGE_LOCK
    lock_fd = lock_directory(publication.directory, pulse)
    if lock_fd < 0:
        return lock_fd
    code = publish_locked(publication, manifest_fd)
    # Said outright: a process forked meanwhile has the descriptor too, and would keep the lock.
    flock(lock_fd, LOCK_UN)
    close(lock_fd)
    return code


cdef int publish(Publication* publication, Pulse* pulse) noexcept nogil:
    """From the last byte to the lasting name; 0, or a negative outcome with the stage it stands at.

    Waiting for the directory's lock answers signals. From there on nothing does.
    """
    cdef int manifest_fd, code
    publication.stage = STAGE_MODE
    if fchmod(publication.fd, 0o600) < 0:
        return -errno
    publication.stage = STAGE_MANIFEST
    manifest_fd = manifest_create(publication, pulse)
    if manifest_fd < 0:
        return manifest_fd
    code = manifest_write(publication, manifest_fd)
    if code == 0:
        publication.stage = STAGE_SYNC
        code = sync_timed(publication, publication.fd)
    if code == 0:
        publication.stage = STAGE_MANIFEST
        code = sync_timed(publication, manifest_fd)
    if code == 0:
        code = publish_synced(publication, manifest_fd, pulse)
    if publication.temp_name != NULL and not publication.named:
        unlinkat(publication.directory, publication.manifest_temp_name, 0)
    close(manifest_fd)
    return code
