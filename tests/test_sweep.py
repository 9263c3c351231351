"""Every system call of a save: killed before it, and failed in every way it can. Every way to save."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import tempfile
from pathlib import Path

import pytest

from fresh_process import in_a_fresh_process
from ready_lines import BROKEN_AFTER, KEPT, SIZE, UNIT, ready_line, receive
from residue import names
from rotten import rot
from snapstore import disk, reception
from snapstore.directory import SnapshotDir
from snapstore.errors import KeptPrefixWrong, SnapshotExists, SnapshotTruncated
from snapstore.testing import syscall_sweep
from sound_directory import INDEX, PARTIAL, check_calm, check_directory, check_received, check_run

AT_EMPTY_PATH = 0x1000

#: One that a single thread writes, and one that takes two, in several chunks, with the room taken first.
SMALL, LARGE = b"small" * 1000, os.urandom(1024) * 1100
CONTENTS = {"small": SMALL, "large": LARGE}
CHUNK_SIZE = 256 * 1024

#: What threads do when they wait for each other: how often depends on who is quicker.
WAITING = {"futex", "poll", "sched_yield"}


def flags_of(call, position=0):
    return call.descriptor_state(position)[1]


def no_nameless(call):
    nameless = call.name == "openat" and call.int_argument(2) & os.O_TMPFILE == os.O_TMPFILE
    return errno.EOPNOTSUPP if nameless else 0


def no_empty_path(call):
    return errno.ENOENT if call.name == "linkat" and call.int_argument(4) & AT_EMPTY_PATH else 0


def no_renameat2(call):
    return errno.EINVAL if call.name == "renameat2" else 0


def no_direct(call):
    asked = call.name == "fcntl" and call.int_argument(1) == fcntl.F_SETFL
    return errno.EINVAL if asked and call.int_argument(2) & os.O_DIRECT else 0


def no_direct_writes(call):
    return errno.EINVAL if call.name == "pwrite64" and flags_of(call) & os.O_DIRECT else 0


def no_fallocate(call):
    return errno.EOPNOTSUPP if call.name == "fallocate" else 0


#: Ways to save: named or nameless, and what the file system refuses.
WAYS = {
    "nameless": (True, None),
    "named": (False, None),
    "no nameless files": (True, no_nameless),
    "no empty path": (True, no_empty_path),
    "no renameat2": (False, no_renameat2),
    "no direct I/O": (True, no_direct),
    "no direct writes": (False, no_direct_writes),
    "no fallocate": (True, no_fallocate),
}

VARIANTS = [(way, size) for way in WAYS for size in CONTENTS if size == "large" or "direct" not in way + size]


def sweep(way, size, *, lasting=False):
    """Sweep a save by `way` of the content of this `size`; no point may be missed, or be wrong."""
    nameless, refused = WAYS[way]
    content = CONTENTS[size]
    sweep_story(
        f"{way}, {size}, {'lasting' if lasting else 'once'}",
        lambda directory: directory.save_from(content, INDEX),
        lambda path, run: check_run(path, run, content, lasting=lasting),
        prepare=lambda path: SnapshotDir(path, nameless=nameless, chunk_size=CHUNK_SIZE),
        refused=refused,
        lasting=lasting,
    )


def sweep_story(title, story, check, **options):
    with in_memory() as scratch:
        result = syscall_sweep(story, check, scratch=scratch, **options)
    print(f"{title}: {result}")
    assert not result.violations, "\n".join(map(str, result.violations))
    assert {point.call for point in result.missed} <= WAITING, result.missed
    assert result.points.total() > 10


def sweep_receive(title, lines, *, ends=(), left=False, rotten=None, size=SIZE, refused=None, lasting=False):
    """Sweep a receive from one of `lines`: options of `ready_line`, by what the node says it has kept.

    It `ends` with this error, or saves. With `left` there is a partial of an earlier attempt, whose chunk
    `rotten` lost a bit.
    """

    def broken_line(kept):
        return ready_line(size=size, broken_after=BROKEN_AFTER)

    def prepare(path):
        directory = SnapshotDir(path)
        if left:
            with pytest.raises(SnapshotTruncated):
                receive(directory, INDEX, broken_line, size=size)
        if rotten is not None:
            rot(path / reception.partial_name(INDEX), bit=8 * rotten * UNIT)
        return directory, {kept: ready_line(kept=kept, size=size, **line) for kept, line in lines.items()}

    def story(prepared):
        directory, ready = prepared
        with contextlib.suppress(ends):
            receive(directory, INDEX, ready.__getitem__, size=size)

    def check(path, run):
        before = PARTIAL if left else ()
        check_received(path, run, saves=not ends, before=before, size=size, rotten=rotten, lasting=lasting)

    sweep_story(
        f"receive, {title}, {'lasting' if lasting else 'once'}", story, check,
        prepare=prepare, refused=refused, lasting=lasting,
    )  # fmt: skip


def in_memory():
    """A scratch directory where fsync costs nothing; no point of a sweep loses what was not synced."""
    fast = Path("/dev/shm")
    return Scratch(fast if os.access(fast, os.W_OK) else None)


class Scratch:
    def __init__(self, base):
        self._path = Path(tempfile.mkdtemp(dir=base))

    def __enter__(self):
        return self._path

    def __exit__(self, *exception):
        shutil.rmtree(self._path)


@pytest.mark.slow
@in_a_fresh_process(measured=False)
def test_a_nameless_save_is_whole_or_nothing_whatever_fails():
    sweep("nameless", "small")


@pytest.mark.slow
@in_a_fresh_process(measured=False)
def test_a_named_save_of_two_threads_is_whole_or_nothing_whatever_fails():
    sweep("named", "large")


@pytest.mark.slow
@in_a_fresh_process(measured=False)
def test_an_opening_that_fails_or_is_killed_costs_nothing():
    """It makes the directory, and removes what dead savers left."""

    def prepare(path):
        (path / "old").mkdir(mode=0o700)
        for number in range(2):
            (path / "old" / f"{disk.temp_name(number)}").write_bytes(b"half")
            (path / "old" / disk.manifest_name(number)).write_bytes(b"of nothing")
        return path

    def story(path):
        SnapshotDir(path / "old").close()
        SnapshotDir(path / "new").close()

    def check(path, run):
        check_calm(run)
        for name in ("old", "new"):
            check_directory(path / name, SMALL, promised=False)

    sweep_story("opening", story, check, prepare=prepare)


@pytest.mark.slow
@in_a_fresh_process(measured=False)
def test_a_save_of_what_exists_costs_the_stored_one_nothing_whatever_fails():
    def prepare(path):
        directory = SnapshotDir(path)
        directory.save_from(SMALL, INDEX)
        return directory

    def story(directory):
        with pytest.raises(SnapshotExists):
            directory.save_from(LARGE, INDEX)

    def check(path, run):
        check_calm(run)
        check_directory(path, SMALL, promised=True)

    sweep_story("exists", story, check, prepare=prepare)


@pytest.mark.slow
@in_a_fresh_process(measured=False)
def test_a_purge_costs_the_kept_ones_nothing_whatever_fails():
    def prepare(path):
        directory = SnapshotDir(path)
        for index in (1, 2, 3):
            directory.save_from(SMALL, index)
        return directory

    def check(path, run):
        check_calm(run)
        with SnapshotDir(path) as directory:
            stored = [saved.index for saved in directory.list()]
            assert 3 in stored  # An older one that cannot be looked at stays for the next purge.
            assert run.point is not None or stored == [3]
            for index in stored:
                assert directory.verify(index).path.read_bytes() == SMALL
            directory.purge(keep=1)
            assert len(names(path)) == 2

    sweep_story("purge", lambda directory: directory.purge(keep=1), check, prepare=prepare)


#: A receive whose line breaks, one that goes on with what that left, and one that finds it to be wrong.
BROKEN = {"lines": {0: {"broken_after": BROKEN_AFTER}}, "ends": SnapshotTruncated}
RESUMED = {"lines": {0: {}, KEPT: {}}, "left": True}
RECEIVES = {
    "broken": BROKEN,
    "broken, its size unknown": {**BROKEN, "size": None},
    "resumed": RESUMED,
    "resumed, its size unknown": {**RESUMED, "size": None},
    "resumed, no renameat2": {**RESUMED, "refused": no_renameat2},
    "rotten": {**RESUMED, "rotten": 1, "ends": KeptPrefixWrong},
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", RECEIVES)
@in_a_fresh_process(measured=False)
def test_a_receive_is_whole_or_goes_on_whatever_fails(kind):
    sweep_receive(kind, **RECEIVES[kind])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["broken", "resumed", "rotten"])
@in_a_fresh_process(measured=False)
def test_a_receive_is_whole_or_goes_on_where_a_disk_stays_broken(kind):
    sweep_receive(kind, **RECEIVES[kind], lasting=True)


@pytest.mark.slow
@pytest.mark.parametrize("lasting", [False, True], ids=["once", "lasting"])
@pytest.mark.parametrize(("way", "size"), VARIANTS)
@in_a_fresh_process(measured=False)
def test_a_save_is_whole_or_nothing_whatever_fails(way, size, lasting):
    sweep(way, size, lasting=lasting)
