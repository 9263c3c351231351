"""What stands in the place of a snapshot or a manifest and is none: never followed, replaced or waited for.

And whose files and directories are trusted at all, and which modes ours have, whatever the umask.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import socket
import stat
import tempfile
from pathlib import Path

import pytest

from nodes import CONTENT, META, RawPeer, frames, push, put_head, written
from processes import Process
from residue import nothing_left
from snapstore.directory import SnapshotDir
from snapstore.errors import PeerRejected, SnapshotExists, SnapshotNotFound
from snapstore.transport.http import SnapshotClient, SnapshotServer

#: Where the intruder stands; older and newer ones are beside it.
TAKEN = META.index

IMAGE, MANIFEST = f"{TAKEN:016x}.db", f"{TAKEN:016x}.json"

PRECIOUS = b"precious"


def make_socket(path, outside):
    with socket.socket(socket.AF_UNIX) as listener:
        os.chdir(path.parent)  # A socket's path has 107 bytes at most.
        listener.bind(path.name)


#: How to make one at a path; the second path is a file outside.
INTRUDERS = {
    "link outside": lambda path, outside: path.symlink_to(outside),
    "link inside": lambda path, outside: path.symlink_to(f"{1:016x}{path.suffix}"),
    "dangling link": lambda path, outside: path.symlink_to(outside.with_name("nowhere")),
    "link to itself": lambda path, outside: path.symlink_to(path.name),
    "link to a FIFO": lambda path, outside: (
        os.mkfifo(outside.with_name("fifo")),
        path.symlink_to(outside.with_name("fifo")),
    ),
    "hard link": lambda path, outside: os.link(outside, path),
    "FIFO": lambda path, outside: os.mkfifo(path),
    "socket": make_socket,
    "directory": lambda path, outside: path.mkdir(),
    "device": lambda path, outside: os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 5)),
}

KINDS = [
    pytest.param(kind, marks=[pytest.mark.root] if kind == "device" else [], id=kind) for kind in INTRUDERS
]


@pytest.fixture
def outside(tmp_path):
    path = tmp_path / "outside"
    path.write_bytes(PRECIOUS)
    return path


@pytest.fixture
def directory(tmp_path):
    """A directory with older snapshots."""
    with SnapshotDir(tmp_path / "follower") as directory:
        for index in (1, 2):
            directory.save_from(CONTENT, index)
        yield directory


@pytest.fixture(autouse=True)
def here():
    before = Path.cwd()
    yield
    os.chdir(before)


@contextlib.contextmanager
def untouched(path, outside):
    """Whatever happens inside: what stands at `path`, and the file outside, are as they were."""

    def look():
        found, far = path.lstat(), outside.lstat()
        return found.st_ino, found.st_mode, found.st_nlink, far.st_ino, far.st_mode, far.st_mtime_ns

    before = look()
    with nothing_left(path.parent):
        yield
    assert look() == before
    assert outside.read_bytes() == PRECIOUS


@pytest.mark.parametrize("kind", KINDS)
def test_in_the_place_of_a_snapshot(kind, directory, outside):
    path = directory.path / IMAGE
    INTRUDERS[kind](path, outside)
    with untouched(path, outside):
        with pytest.raises(SnapshotExists, match="was kept") as raised:
            directory.save_from(CONTENT, TAKEN)
        assert raised.value.path == path
        for read in (directory.open, directory.verify, lambda index: directory.open(index, verify=False)):
            with pytest.raises(OSError, match=IMAGE) as refused:
                read(TAKEN)
            assert refused.value.errno in (errno.EINVAL, errno.ELOOP, errno.EMLINK)
        for find in (directory.get_snap_file_path, directory.stat, directory.confirm):
            with pytest.raises(SnapshotNotFound):
                find(TAKEN)
        assert [saved.index for saved in directory.list()] == [1, 2]
        assert directory.newest().index == 2
        assert directory.remove_orphans() == []
        SnapshotDir(directory.path).close()
    directory.save_from(CONTENT, TAKEN + 1)
    before = path.lstat().st_ino
    assert directory.purge(keep=1) == [1, 2]
    assert path.lstat().st_ino == before


@pytest.mark.parametrize("kind", KINDS)
def test_in_the_place_of_a_manifest_nobody_has_a_snapshot_for(kind, directory, outside):
    path = directory.path / MANIFEST
    INTRUDERS[kind](path, outside)
    with untouched(path, outside):
        with pytest.raises(SnapshotExists, match="no manifest of ours") as raised:
            directory.save_from(CONTENT, TAKEN)
        assert raised.value.path == path
        for find in (directory.open, directory.stat, directory.verify):
            with pytest.raises(SnapshotNotFound):
                find(TAKEN)
        assert directory.remove_orphans() == []
        SnapshotDir(directory.path).close()
    assert directory.save_from(CONTENT, TAKEN + 1).index == TAKEN + 1


@pytest.mark.parametrize("kind", KINDS)
def test_in_the_place_of_the_manifest_of_a_snapshot(kind, directory, outside):
    directory.save_from(CONTENT, TAKEN)
    path = directory.path / MANIFEST
    path.unlink()
    INTRUDERS[kind](path, outside)
    with untouched(path, outside):
        found = directory.stat(TAKEN)
        assert found.manifest is None
        assert found.problem
        assert directory.newest().index == 2
        with pytest.raises(SnapshotExists):
            directory.save_from(CONTENT, TAKEN)
        with directory.open(TAKEN, verify=False) as stored:
            assert stored.saved.problem
    directory.save_from(CONTENT, TAKEN + 1)
    directory.purge(keep=1)
    assert os.path.lexists(path)
    assert outside.read_bytes() == PRECIOUS


@pytest.mark.parametrize("name", [IMAGE, MANIFEST])
@pytest.mark.parametrize("kind", KINDS)
def test_an_offer_and_a_fetch_find_the_place_taken(kind, name, follower, outside):
    path = follower.directory.path / name
    INTRUDERS[kind](path, outside)
    with untouched(path, outside):
        with pytest.raises(PeerRejected) as raised:
            push(follower, written())
        assert raised.value.status == 409
        with pytest.raises(PeerRejected) as raised, SnapshotDir(outside.parent / "fetched") as fetched:
            SnapshotClient().fetch(follower.url, TAKEN, fetched)
        assert raised.value.status in (404, 500)
        with RawPeer(follower.url) as peer:
            peer.say(f"GET /v1/snapshots/{TAKEN} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            status, _, words = peer.hear("GET")
            assert status in (404, 500)
            assert PRECIOUS not in words
    with RawPeer(follower.url) as peer:
        peer.say(put_head(index=TAKEN + 1, expect=False), frames())
        assert peer.hear()[0] == 201


def test_a_second_name_given_later_is_seen_too(directory, outside):
    """A snapshot that has another name can be written to through it by whoever may open that one."""
    os.link(directory.path / f"{1:016x}.db", outside.with_name("second"))
    with pytest.raises(OSError, match="second name") as raised:
        directory.verify(1)
    assert raised.value.errno == errno.EMLINK
    outside.with_name("second").unlink()
    assert directory.verify(1).size == len(CONTENT)


def test_what_a_killed_saver_left_under_two_names_is_one_snapshot_again_after_opening(directory):
    """Where a file system has no rename without replacing, naming is a link, and then an unlink."""
    temp = directory.path / f".tmp-{2:016x}-{'0' * 16}"
    os.link(directory.path / f"{2:016x}.db", temp)
    with SnapshotDir(directory.path) as opened:
        assert not temp.exists()
        assert opened.verify(2).size == len(CONTENT)


# Modes and owners.


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
@pytest.mark.parametrize("nameless", [True, False])
def test_files_and_directories_are_for_their_owner_whatever_the_umask(tmp_path, umask, nameless):
    before = os.umask(umask)
    try:
        with SnapshotDir(tmp_path / "a" / "b", nameless=nameless) as directory:
            directory.save_from(CONTENT, 1)
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "a").rglob("*")}
    assert modes == {"b": 0o700, f"{1:016x}.db": 0o600, f"{1:016x}.json": 0o600}
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o700


@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_a_unix_socket_is_for_its_owner_whatever_the_umask(follower, tmp_path, umask):
    before = os.umask(umask)
    try:
        with SnapshotServer(follower.directory, f"unix:{tmp_path}/s"):
            assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == 0o600
    finally:
        os.umask(before)


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o702])
def test_a_directory_that_others_can_write_is_refused(tmp_path, mode):
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(mode)
    with pytest.raises(PermissionError, match="chmod o-w") as raised:
        SnapshotDir(tmp_path / "open")
    assert raised.value.filename == str(tmp_path / "open")


@pytest.fixture
def common():
    """A place that every user reaches; pytest's own is for root alone."""
    path = Path(tempfile.mkdtemp(prefix="snapstore-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


#: Nobody, and somebody else.
NOBODY, OTHER = 65534, 12345

LOOK = """
os.seteuid(int(sys.argv[2]))
try:
    with SnapshotDir(sys.argv[1]) as directory:
        say(*(saved.index for saved in directory.list()))
        directory.verify(1)
        say("whole")
except Exception as error:
    say(type(error).__name__, error.errno, error.filename, error.strerror)
"""


def seen_by(user, path):
    with Process(LOOK, path, user) as process:
        return process.finish()


@pytest.mark.root
@pytest.mark.parametrize(("owner", "trusted"), [(0, True), (NOBODY, True), (OTHER, False)])
def test_a_directory_of_somebody_else_is_refused(common, owner, trusted):
    path = common / "stored"
    with SnapshotDir(path) as directory:
        directory.save_from(CONTENT, 1)
    for found in (path, *path.iterdir()):
        os.chown(found, owner, owner)
        found.chmod(0o755 if found == path else 0o644)
    refused = [f"PermissionError {errno.EPERM} {path} it belongs to user {OTHER}"]
    assert seen_by(NOBODY, path) == (["1", "whole"] if trusted else refused)
    assert seen_by(0, path) == ["1", "whole"]  # Root may read everything, and answers for it.


@pytest.mark.root
def test_a_file_of_somebody_else_is_no_snapshot(common):
    path = common / "stored"
    with SnapshotDir(path) as directory:
        directory.save_from(CONTENT, 1)
    for found in (path, *path.iterdir()):
        os.chown(found, NOBODY, NOBODY)
    image = path / f"{1:016x}.db"
    os.chown(image, OTHER, OTHER)
    image.chmod(0o644)
    assert seen_by(NOBODY, path) == [
        "",
        f"PermissionError {errno.EPERM} {image} it belongs to user {OTHER}",
    ]
    assert seen_by(0, path) == ["1", "whole"]
