"""A disk that loses what was not synced: good savers lose nothing, and each broken one is caught."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os

import pytest

from broken_savers import BROKEN, GOOD
from fresh_process import in_a_fresh_process
from residue import names
from snapstore.directory import SnapshotDir
from snapstore.testing import FaultyDisk
from test_sweep import CHUNK_SIZE, WAYS, in_memory

#: Random states depend on it; printed with each result.
SEED = 20260822

#: So many states a cut can leave, at least, by whether the save is nameless: then its manifest has no name to
#: lose either.
STATES_MIN = {True: 20, False: 25}

INDEXES = (1, 2, 3)

#: Several writes each, so that some may be lost and others not.
CONTENTS = {index: bytes([index]) * 150_000 for index in (*INDEXES, 4)}


def check_files(path, begun, reported):
    """Every `.db` is right to the byte, and every reported one is there."""
    found = {int(file.stem, 16): file for file in path.glob("*.db")}
    wrong = [f"{index} has other bytes" for index in found if found[index].read_bytes() != CONTENTS[index]]
    lost = [f"{index} was reported and is gone" for index in sorted(reported - set(found))]
    unasked = [f"{index} was never begun" for index in sorted(set(found) - begun)]
    return wrong + lost + unasked


def lose_with(save, scratch):
    """Record three saves in plain Python, and check every crash state; a save afterwards works."""

    def workload(path, mark):
        for index in INDEXES:
            mark.begin(index)
            save(path, index, CONTENTS[index])
            mark.ok(index)

    def check(path, begun, reported):
        found = check_files(path, begun, reported)
        save(path, 4, CONTENTS[4])
        return found or check_files(path, begun | {4}, {4})

    return FaultyDisk(workload, scratch=scratch).lose(check, seed=SEED)


@in_a_fresh_process
def test_good_savers_lose_nothing_and_each_broken_one_is_caught():
    with in_memory() as scratch:
        for name, save in GOOD.items():
            losses = lose_with(save, scratch)
            print(f"{name}: {losses}")
            assert not losses.violations
            assert losses.states.total() >= 10
        for name, save in BROKEN.items():
            losses = lose_with(save, scratch)
            print(f"{name}: {len(losses.violations)} violations, the first of them {losses.violations[0][0]}")
            assert losses.violations, f"{name} was not caught"


def lose_of_directory(nameless, content, scratch, chunk_size):
    """Three saves in a directory that was not there, and a purge of two of them; every crash state."""

    def workload(path, mark):
        with SnapshotDir(path / "new" / "snapshots", nameless=nameless, chunk_size=chunk_size) as directory:
            for index in INDEXES:
                mark.begin(index)
                directory.save_from(content, index)
                mark.ok(index)
            for index in INDEXES[:-1]:
                mark.gone(index)
            directory.purge(keep=1)

    def check(path, begun, reported):
        own = path / "new" / "snapshots"
        with SnapshotDir(own) as directory:
            stored = {saved.index for saved in directory.list()}
            assert reported <= stored <= begun, (stored, reported, begun)
            assert len(names(own)) == 2 * len(stored), names(own)
            for index in stored:
                assert directory.verify(index).path.read_bytes() == content
            assert directory.save_from(content, 4).index == 4
        return []

    return FaultyDisk(workload, scratch=scratch).lose(check, seed=SEED)


@in_a_fresh_process
def test_a_directory_loses_nothing_that_it_reported():
    with in_memory() as scratch:
        for nameless in (True, False):
            for content in (b"small" * 1000, CONTENTS[1]):
                losses = lose_of_directory(nameless, content, scratch, chunk_size=64 * 1024)
                print(f"{'nameless' if nameless else 'named'}, {len(content)} bytes: {losses}")
                assert not losses.violations
                assert losses.states.total() >= STATES_MIN[nameless]


@in_a_fresh_process
def test_each_state_comes_again_from_its_numbers():
    with in_memory() as scratch:

        def workload(path, mark):
            mark.begin(1)
            BROKEN["no_fsync"](path, 1, CONTENTS[1])
            mark.ok(1)

        disk = FaultyDisk(workload, scratch=scratch)
        states = list(disk.states(seed=SEED))
        assert len({state.fingerprint() for state in states}) == len(states) > 10
        for state in states:
            again = disk.state(state.operation, state.policy, state.seed)
            assert again.fingerprint() == state.fingerprint()
            assert (again.begun, again.reported) == (state.begun, state.reported)
        assert list(disk.states(seed=SEED + 1)) != states
        target = scratch / "replayed"
        target.mkdir()
        states[-1].write_to(target)
        assert set(states[-1].contents.tree()) == set(names(target))
        for wrong in (("strict", -1), ("strict", len(disk.operations) + 1), ("kind", 0)):
            with pytest.raises(ValueError, match="no state"):
                disk.state(wrong[1], wrong[0])


@in_a_fresh_process
def test_a_check_that_raises_is_a_violation_that_names_its_state(tmp_path):
    def workload(path, mark):
        mark.begin(1)

    def check(path, begun, reported):
        raise AssertionError("never content")

    losses = FaultyDisk(workload, scratch=tmp_path).lose(check, random_states=0)
    assert len(losses.violations) == losses.states.total() == 2
    assert "operation 1, policy strict, seed 0: AssertionError: never content" in str(losses)


@in_a_fresh_process
def test_a_workload_that_fails_or_cannot_be_seen_is_refused_by_name(tmp_path):
    def failing(path, mark):
        raise OSError(errno.EIO, "no luck")

    def mapping(path, mark):
        with open(path / "file", "w+b") as file:
            file.truncate(4096)
            with mmap.mmap(file.fileno(), 4096) as view:
                view[0] = 1

    def linking(path, mark):
        os.symlink("x", path / "link")

    def exchanging(path, mark):
        os.rename(path, path.with_name("elsewhere"))
        os.rename(path.with_name("elsewhere"), path)
        (path / "file").touch()
        os.rename(path / "file", path.with_name("file"))

    def vectored(path, mark):
        with open(path / "file", "wb") as file:
            os.writev(file.fileno(), [b"a", b"b"])

    with pytest.raises(RuntimeError, match="the workload failed: OSError"):
        FaultyDisk(failing, scratch=tmp_path)
    for workload, reason in (
        (mapping, "mmap of a recorded file"),
        (linking, "symbolic link"),
        (exchanging, "from or to elsewhere"),
        (vectored, "writev of a recorded file"),
    ):
        with pytest.raises(NotImplementedError, match=reason):
            FaultyDisk(workload, scratch=tmp_path)


@in_a_fresh_process
def test_every_kind_of_change_is_recorded(tmp_path):
    """What `all` has is what the workload left; what `strict` has is what it synced."""
    left = {}

    def workload(path, mark):
        (path / "new").mkdir()
        fd = os.open(path / "new" / "file", os.O_RDWR | os.O_CREAT, 0o600)
        os.write(fd, b"0123456789")
        os.pwrite(fd, b"ab", 2)
        os.fsync(fd)
        os.ftruncate(fd, 5)
        os.posix_fallocate(fd, 0, 8)
        appending = os.open(path / "new" / "file", os.O_WRONLY | os.O_APPEND)
        os.write(appending, b"end")
        os.link(path / "new" / "file", path / "new" / "second")
        os.rename(path / "new" / "second", path / "other")
        direct = os.open(path / "through", os.O_WRONLY | os.O_CREAT | os.O_DSYNC, 0o600)
        os.write(direct, b"lasts")
        (path / "gone").touch()
        (path / "gone").unlink()
        (path / "empty").mkdir()
        (path / "empty").rmdir()
        os.truncate(path / "through", 4)
        with open(path / "through", "r+b", buffering=0) as again:
            again.write(b"L")
        os.fsync(os.open(path, os.O_RDONLY))

    disk = FaultyDisk(workload, scratch=tmp_path)
    for policy in ("all", "strict", "names", "bytes"):
        target = tmp_path / policy
        target.mkdir()
        disk.state(len(disk.operations), policy).write_to(target)
        left[policy] = {
            str(file.relative_to(target)): file.read_bytes() for file in target.rglob("*") if file.is_file()
        }
    whole = b"01ab4\0\0\0end"
    assert left["all"] == {"new/file": whole, "other": whole, "through": b"Last"}
    assert left["names"] == {"new/file": b"01ab456789", "other": b"01ab456789", "through": b"lasts"}
    # Nobody synced the new directory.
    assert left["strict"] == {"other": b"01ab456789", "through": b"lasts"}
    assert left["bytes"] == {"other": whole, "through": b"Last"}
    assert os.stat(tmp_path / "all" / "other").st_ino == os.stat(tmp_path / "all" / "new" / "file").st_ino


@in_a_fresh_process
def test_a_sync_of_the_file_system_makes_everything_last():
    def workload(path, mark):
        (path / "file").write_bytes(b"content")
        # Of this one alone, which is in memory where it can be: sync(2) would wait for every disk.
        assert ctypes.CDLL(None).syncfs(os.open(path, os.O_RDONLY)) == 0
        (path / "later").write_bytes(b"content")

    with in_memory() as scratch:
        disk = FaultyDisk(workload, scratch=scratch)
    assert set(disk.state(len(disk.operations), "strict").contents.tree()) == {"file"}


@pytest.mark.slow
@pytest.mark.parametrize("way", ["nameless", "named"])
@in_a_fresh_process
def test_a_large_save_loses_nothing_that_it_reported(way):
    with in_memory() as scratch:
        losses = lose_of_directory(WAYS[way][0], os.urandom(1024) * 1100, scratch, CHUNK_SIZE)
    print(f"{way}: {losses}")
    assert not losses.violations
    assert losses.states.total() >= STATES_MIN[WAYS[way][0]]
