"""What must hold of a directory of snapshots after a save that was killed, or met a fault."""

from __future__ import annotations

import errno

from ready_lines import CONTENT, KEPT, UNIT, receive_honestly
from residue import names
from snapstore import disk, reception
from snapstore.directory import SnapshotDir
from snapstore.errors import SnapshotNotDurable

#: The snapshot that is saved, and another that a save after it makes.
INDEX, NEXT = 1, 2

#: Errors that are a disk's, and carry the snapshot's path wherever they come from.
DISK_ERRORS = {errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS}

#: Calls that a save can do without, or for which it has another way.
DISPENSABLE = {
    "close", "fallocate", "fcntl", "futex", "getrandom", "linkat", "mmap", "mprotect", "sync_file_range",
    "unlinkat",
}  # fmt: skip

#: Calls with which a receive reads its note and cuts off what it does not keep; it can do without either.
DISPENSABLE_TO_RECEIVE = DISPENSABLE | {
    "fstat", "ftruncate", "ioctl", "lseek", "mremap", "newfstatat", "openat", "read",
}  # fmt: skip

#: What a receive leaves: a snapshot, or what it kept of one.
STORED = [disk.snapshot_name(INDEX), disk.manifest_name(INDEX)]
PARTIAL = [reception.partial_name(INDEX), reception.note_name(INDEX)]

#: Being interrupted, or served in part, is no failure for these.
GONE_ON_WITH = {"write", "pread64", "pwrite64", "flock", "futex", "poll"}


def check_directory(path, content, *, promised):
    """Open it: `INDEX` is there as a whole, or, where it was not `promised`, not at all; saves work."""
    with SnapshotDir(path) as directory:
        stored = {saved.index for saved in directory.list()}
        assert stored <= {INDEX}
        assert stored or not promised, "it was reported as saved and is gone"
        assert len(names(path)) == 2 * len(stored), names(path)
        for index in (INDEX, NEXT):
            if index not in stored:
                directory.save_from(content, index)
            assert directory.verify(index).path.read_bytes() == content


def check_error(run, *, dispensable=DISPENSABLE):
    """An error that says why; or none, where the save has another way."""
    call, fault, raised = run.point.call, run.point.fault, run.raised
    code = getattr(errno, fault, None)
    if code is None or (code == errno.EINTR and call in GONE_ON_WITH):
        assert run.returned, raised
        return
    if raised is None:
        assert call in dispensable, "it failed, and the save did not say so"
    elif raised.is_a(SnapshotNotDurable):
        assert raised.cause.errno == code, raised.cause
    elif raised.is_a(OSError):
        # What pthread_create makes of a lack of memory is EAGAIN.
        assert raised.errno == code or (raised.errno, fault) == (errno.EAGAIN, "ENOMEM"), raised
        assert code not in DISK_ERRORS or raised.filename, raised
    else:
        assert (raised.is_a(MemoryError), fault) == (True, "ENOMEM"), raised


def check_calm(run):
    """However it went: nothing stays open, and no failed fsync is tried again."""
    assert not run.synced_again, "an fsync that had failed was called again"
    assert not run.descriptors_left, run.descriptors_left


def check_run(path, run, content, *, lasting=False):
    """All promises at once, for a run of a sweep.

    With faults that are `lasting` removing fails as well: then the next opening has to do it.
    """
    check_calm(run)
    if run.point is None:
        assert run.returned, run.raised
    elif not run.killed:
        check_error(run)
        if run.raised and not lasting and not run.raised.is_a(SnapshotNotDurable):
            assert names(path) == []
    check_directory(path, content, promised=run.returned)


def check_received(path, run, *, saves=True, before=(), size=None, rotten=None, lasting=False):
    """All promises at once, for a receive in a directory that had the names `before`.

    It is one that `saves`, or whose line breaks, which is no error here. `rotten` is the number of a kept
    chunk that has lost a bit: this one may be found wrong, and no other.
    """
    check_calm(run)
    if run.point is None:
        assert run.returned, run.raised
    elif not run.killed:
        check_error(run, dispensable=DISPENSABLE_TO_RECEIVE)
        if run.raised and not lasting and not run.raised.is_a(SnapshotNotDurable):
            assert names(path) in ([], list(before)), names(path)
    with SnapshotDir(path) as directory:
        stored = bool(directory.list())
        assert stored or not (saves and run.returned), "it was reported as saved and is gone"
        assert names(path) in ([STORED] if stored else [[], PARTIAL]), names(path)
        if not stored:
            kept, wrong = receive_honestly(directory, INDEX, size=size)
            assert wrong in (None, rotten), f"chunk {wrong} is wrong"
            assert run.point or saves or (kept, wrong) == (KEPT if rotten is None else rotten * UNIT, None)
        assert names(path) == STORED
        assert directory.verify(INDEX).path.read_bytes() == CONTENT
