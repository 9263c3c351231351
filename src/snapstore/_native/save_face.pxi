# The face of a file on its way to a lasting name.

cdef class DirectorySync:
    """Lets one thread at a time fsync a directory, and remembers the first failure; for `with`.

    The kernel tells of a failed fsync once for all who share a descriptor. So whoever fsyncs one
    himself does it inside `with`, and says `fail(errno)` there when it fails: from then on every
    `SaveFile.publish` that was given this object fails, too.
    """

    cdef SyncTurn state

    def __cinit__(self):
        pthread_mutex_init(&self.state.mutex, NULL)

    @property
    def failed(self):
        """The errno of the first fsync that failed; 0 while none has."""
        return atomic_read_int(&self.state.failed)

    def fail(self, int code):
        """Remember an fsync that failed with this errno, unless an earlier one did."""
        if self.state.failed == 0:
            atomic_write_int(&self.state.failed, code)

    def __enter__(self):
        with nogil:
            pthread_mutex_lock(&self.state.mutex)
        return self

    def __exit__(self, *exception):
        pthread_mutex_unlock(&self.state.mutex)

    def __dealloc__(self):
        pthread_mutex_destroy(&self.state.mutex)



cdef class SaveFile:
    """A new file in a directory, nameless or under a temporary name, until `publish` names it.

    `directory_fd` is the directory's descriptor. `temp_name` is used where the file system knows no
    nameless files, or where `nameless` is false; with `resume` the file that has this name is gone on
    with, or BlockingIOError raised when another saver has it. Owns its descriptors from the first
    moment: a file that is dropped, for whatever reason, leaves nothing behind, unless it is told to
    `keep`. One thread at a time.
    """

    cdef int directory
    cdef int file
    cdef bytes temp_name         # None: nameless, or gone
    cdef bint busy
    cdef int pid

    def __cinit__(self):
        # Apart from the arguments: an object whose arguments are refused is dropped like any other.
        self.directory = self.file = -1
        self.pid = getpid()

    def __init__(self, int directory_fd, bytes temp_name not None, *, nameless=True, resume=False):
        cdef int code = -EOPNOTSUPP
        cdef const char* temp = temp_name
        cdef bint try_nameless = nameless and not resume
        cdef bint try_resume = resume
        cdef Pulse pulse
        self.drop()
        self.directory = fcntl(directory_fd, F_DUPFD_CLOEXEC, 0)
        if self.directory < 0:
            raise OSError(errno, strerror(errno).decode())
        with nogil:
            if try_nameless:
                code = nameless_create(self.directory)
        if code < 0 and (not try_nameless or nameless_unsupported(code)):
            pulse_start(&pulse, None, None)
            with nogil:
                code = temp_resume(self.directory, temp) if try_resume else temp_create(self.directory, temp, &pulse)
            if code >= 0:
                self.temp_name = temp_name
        if code < 0:
            raise_outcome(code, None, 0, 0)
        self.file = code

    @property
    def fd(self):
        """The file's descriptor, to read from; -1 when it is published or discarded."""
        return self.file

    @property
    def nameless(self):
        """Whether a kill leaves nothing to sweep."""
        return self.temp_name is None

    cdef int begin(self) except -1:
        if self.pid != getpid():
            raise ForkedProcess("this save was begun before the fork; the parent goes on with it")
        if self.file < 0:
            raise ValueError("the file was published or discarded")
        if self.busy:
            raise ValueError("another thread is using this file")
        self.busy = True
        return 0

    def fill(self, source, **options):
        """Copy `source` into the file: `save` with its options; returns Copied."""
        self.begin()
        try:
            return save(source, self.file, **options)
        finally:
            self.busy = False

    def publish(self, bytes name not None, *, bytes manifest not None, bytes manifest_name not None,
                bytes manifest_temp_name not None, DirectorySync sync not None):
        """Make the file last under `name`, with `manifest` beside it; seconds spent in fsync.

        Returns (stage, errno, seconds): stage "done", or where it stopped. One call in C from the
        first fsync to the directory's; no signal falls between. Never replaces a name. `sync` is shared
        by all who use the directory's descriptor.
        """
        self.begin()
        cdef Publication publication
        cdef Pulse pulse
        cdef int code
        pulse_start(&pulse, None, None)
        memset(&publication, 0, sizeof(Publication))
        publication.directory = self.directory
        publication.fd = self.file
        publication.turn = &sync.state
        if self.temp_name is not None:
            publication.temp_name = self.temp_name
        publication.name = name
        publication.manifest_temp_name = manifest_temp_name
        publication.manifest_name = manifest_name
        publication.manifest = manifest
        publication.manifest_size = len(manifest)
        with nogil:
            code = publish(&publication, &pulse)
        self.busy = False
        if publication.named:
            self.temp_name = None
        self.drop()
        if code == SIGNALLED:
            pass_on_exception()
        return STAGE_NAMES[<int>publication.stage], -code, publication.sync_ns / 1e9

    def keep(self, size):
        """Close the file and leave its first `size` bytes under its temporary name, for a later attempt."""
        cdef off_t length = <off_t>check_size(size, "size")
        cdef int code = 0
        self.begin()
        self.busy = False
        if self.temp_name is None:
            raise ValueError("the file has no name under which it could be kept")
        with nogil:
            if ftruncate(self.file, length) < 0:
                code = -errno
        if code == 0:
            self.temp_name = None
        self.drop()
        if code:
            raise_outcome(code, None, 0, 0)

    def discard(self):
        """Close the file and leave nothing of it, unless it was published. May come twice."""
        if self.busy:
            raise ValueError("another thread is using this file")
        self.drop()

    cdef void drop(self) noexcept:
        if self.file >= 0:
            if self.pid == getpid():
                if self.temp_name is not None:
                    unlinkat(self.directory, <const char*>self.temp_name, 0)
                # Said outright: a process forked meanwhile has the descriptor too, and would keep the lock.
                flock(self.file, LOCK_UN)
            close(self.file)
            self.file = -1
        if self.directory >= 0:
            close(self.directory)
            self.directory = -1
        self.temp_name = None

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.discard()

    def __dealloc__(self):
        self.drop()


cdef class DirectoryLock:
    """Keeps savers, in this process and others, from naming anything in a directory; for `with`.

    Waits for its turn, answering Ctrl-C; let go when the block is left, or with the object.
    """

    cdef int fd

    def __cinit__(self):
        self.fd = -1

    def __init__(self, int directory_fd):
        cdef Pulse pulse
        cdef int code
        self.drop()
        pulse_start(&pulse, None, None)
        with nogil:
            code = lock_directory(directory_fd, &pulse)
        if code < 0:
            raise_outcome(code, None, 0, 0)
        self.fd = code

    cdef void drop(self) noexcept:
        if self.fd >= 0:
            flock(self.fd, LOCK_UN)
            close(self.fd)
            self.fd = -1

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.drop()

    def __dealloc__(self):
        self.drop()
