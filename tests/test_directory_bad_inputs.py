"""A directory in bad times: wrong indexes, wrong directories, and strangers in the directory."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
import textwrap

import pytest

from processes import Process
from residue import names, nothing_left
from snapstore import _fastpipe, disk
from snapstore.directory import SnapshotDir
from snapstore.errors import SnapshotExists, SnapshotNotFound

CONTENT = b"key and value" * 1000

#: An index whose name is taken by something strange in these tests.
TAKEN = 0xABC


class UnreadSource:
    """A source that must not be touched."""

    def read(self, size):
        pytest.fail("the source was read")


@pytest.fixture
def directory(tmp_path):
    with SnapshotDir(tmp_path / "snap") as directory:
        yield directory


def as_nobody(script, *arguments):
    """Run `script` as a user who is not root, for whom permissions count; what it said."""
    drop = "if os.getuid() == 0: os.setgid(65534); os.setuid(65534)\n"
    with Process(drop + textwrap.dedent(script), *arguments) as process:
        return process.finish()


@pytest.mark.parametrize("index", [-1, 2**64, 10**30])
def test_an_index_out_of_range_touches_nothing(index, directory):
    with nothing_left(directory.path):
        for call in (lambda: directory.save_from(CONTENT, index), lambda: directory.open(index)):
            with pytest.raises(ValueError, match=r"between 0 and 2\^64-1"):
                call()
        with pytest.raises(ValueError, match=r"between 0 and 2\^64-1"):
            directory.get_snap_file_path(index)


@pytest.mark.parametrize("index", [True, 1.0, "1", "../x", b"1", None])
def test_an_index_of_another_type_touches_nothing(index, directory):
    with nothing_left(directory.path):
        for call in (directory.open, directory.verify, directory.get_snap_file_path):
            with pytest.raises(TypeError, match="must be an integer"):
                call(index)
        with pytest.raises(TypeError, match="must be an integer"):
            directory.save_from(CONTENT, index)


@pytest.mark.parametrize("index", [0, 1, 2**63 - 1, 2**63, 2**64 - 1])
def test_every_index_of_64_bits_has_a_name_of_16_digits(index, directory):
    assert directory.save_from(CONTENT, index).path.name == f"{index:016x}.db"
    assert directory.verify(index).index == index


def test_a_file_in_the_place_of_the_directory_is_refused(tmp_path):
    (tmp_path / "file").write_bytes(b"precious")
    with nothing_left(tmp_path):
        for path in ("file", "file/below"):
            with pytest.raises(NotADirectoryError, match="file"):
                SnapshotDir(tmp_path / path)
    assert (tmp_path / "file").read_bytes() == b"precious"


def test_a_link_to_a_directory_is_followed_and_a_dangling_one_refused(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "dangling").symlink_to("nowhere")
    with SnapshotDir(tmp_path / "link") as directory:
        directory.save_from(CONTENT, 1)
    assert len(names(tmp_path / "real")) == 2
    with nothing_left(tmp_path):
        for path in ("dangling", "dangling/below"):
            with pytest.raises(FileNotFoundError, match="dangling"):
                SnapshotDir(tmp_path / path)


@pytest.mark.parametrize("name", ["new\nline", " ", "~", "\u20ac", os.fsdecode(b"\xff\xfe"), "x" * 255])
def test_any_name_of_a_directory_will_do(name, tmp_path):
    with SnapshotDir(tmp_path / name) as directory:
        assert directory.save_from(CONTENT, 1).path.read_bytes() == CONTENT


@pytest.mark.parametrize("path", ["with\0nul", "x" * 256])
def test_impossible_names_are_refused_as_the_system_does(path, tmp_path):
    with nothing_left(tmp_path), pytest.raises((ValueError, OSError)):
        SnapshotDir(tmp_path / path)


@pytest.mark.parametrize("mode", [0o777, 0o702, 0o777 | stat.S_ISVTX])
def test_a_directory_that_everybody_writes_to_is_refused(mode, tmp_path):
    """Sticky ones too: others cannot remove what is ours there, but leave us a snapshot of their own."""
    path = tmp_path / "snap"
    path.mkdir()
    path.chmod(mode)
    with nothing_left(tmp_path), pytest.raises(PermissionError, match="chmod o-w") as raised:
        SnapshotDir(path)
    assert raised.value.filename == str(path)


def test_a_directory_without_permission_is_refused_with_its_path(tmp_path):
    script = """
    for mode in (0o000, 0o300, 0o500):
        path = sys.argv[1] + f"/{mode:o}"
        os.mkdir(path)
        os.chmod(path, mode)
        try:
            with SnapshotDir(path) as directory:
                say("opened", directory.list(), directory.remove_orphans())
                directory.save_from(b"bytes", 1)
        except PermissionError as error:
            say(f"{mode:o}", error.filename.startswith(path))
        os.chmod(path, 0o700)
        assert not os.listdir(path)
    """
    tmp_path.chmod(0o777)
    parents = [parent for parent in tmp_path.parents if not parent.stat().st_mode & stat.S_IXOTH]
    for parent in parents:  # pytest makes them for their owner only.
        parent.chmod(parent.stat().st_mode | stat.S_IXOTH)
    said = as_nobody(script, tmp_path)
    assert said == ["0 True", "300 True", "opened [] []", "500 True"]


def test_a_directory_deleted_under_us_says_so_with_the_path(directory):
    directory.path.rmdir()
    with pytest.raises(FileNotFoundError, match="directory was removed"):
        directory.save_from(UnreadSource(), 1)
    assert directory.list() == []
    with pytest.raises(SnapshotNotFound):
        directory.open(1)


def test_a_directory_renamed_under_us_is_still_the_one(directory, tmp_path):
    directory.save_from(CONTENT, 1)
    directory.path.rename(tmp_path / "moved")
    directory.save_from(CONTENT, 2)
    assert [saved.index for saved in directory.list()] == [1, 2]
    assert directory.verify(2).size == len(CONTENT)
    assert len(names(tmp_path / "moved")) == 4
    assert names(tmp_path) == ["moved"]


@pytest.mark.parametrize("strangers", [1_000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_many_strangers_are_in_nobodys_way(strangers, directory):
    for number in range(strangers):
        os.mknod(f"{directory.path}/stranger-{number}", stat.S_IFREG)
    with SnapshotDir(directory.path) as directory:
        directory.save_from(CONTENT, 1)
        assert [saved.index for saved in directory.list()] == [1]
        assert directory.purge(keep=1) == []
    assert len(names(directory.path)) == strangers + 2


def make_socket(path):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


def make_hard_link(path):
    (path.parent.parent / "outside").write_bytes(b"outside")
    os.link(path.parent.parent / "outside", path)


#: What may stand under a snapshot's name without being one.
STRANGERS = {
    "a directory": lambda path: path.mkdir(),
    "a FIFO": os.mkfifo,
    "a socket": make_socket,
    "a dangling link": lambda path: path.symlink_to("nowhere"),
    "a link outside": lambda path: path.symlink_to("/etc/passwd"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a hard link": make_hard_link,
}

#: Files that are none of ours inside, but may be looked at.
FILES = {
    "an empty file": lambda path: path.touch(),
    "an unreadable file": lambda path: path.touch(mode=0o000),
}


@pytest.mark.parametrize("make", [pytest.param(make, id=kind) for kind, make in STRANGERS.items()])
def test_a_stranger_under_a_snapshots_name_is_never_replaced_nor_read(make, directory):
    path = directory.path / f"{TAKEN:016x}.db"
    make(path)
    before = path.lstat()
    with nothing_left(directory.path):
        with pytest.raises(SnapshotExists, match="was kept"):
            directory.save_from(CONTENT, TAKEN)
        with pytest.raises(SnapshotNotFound):
            directory.get_snap_file_path(TAKEN)
        with pytest.raises(OSError, match=path.name) as raised:
            directory.open(TAKEN)
        assert raised.value.filename == str(path)
        assert directory.list() == []
        assert directory.remove_orphans() == []
    directory.save_from(CONTENT, TAKEN + 1)
    directory.save_from(CONTENT, TAKEN + 2)
    assert directory.purge(keep=1) == [TAKEN + 1]
    assert (path.lstat().st_ino, path.lstat().st_mode) == (before.st_ino, before.st_mode)


@pytest.mark.parametrize("make", [pytest.param(make, id=kind) for kind, make in FILES.items()])
def test_a_foreign_file_under_a_snapshots_name_is_kept_and_listed_with_its_problem(make, directory):
    path = directory.path / f"{TAKEN:016x}.db"
    make(path)
    with nothing_left(directory.path):
        with pytest.raises(SnapshotExists):
            directory.save_from(CONTENT, TAKEN)
        (found,) = directory.list()
        assert "no manifest" in found.problem
        assert directory.get_snap_file_path(TAKEN) == path


@pytest.mark.parametrize("make", [pytest.param(make, id=kind) for kind, make in STRANGERS.items()])
def test_a_stranger_under_a_manifests_name_costs_no_snapshot(make, directory):
    for index in (1, 2):
        directory.save_from(CONTENT, index)
    manifest = directory.path / f"{1:016x}.json"
    manifest.unlink()
    make(manifest)
    with nothing_left(directory.path):
        assert [saved.problem is None for saved in directory.list()] == [False, True]
        SnapshotDir(directory.path).close()
    assert directory.purge(keep=1) == [1]
    assert directory.verify(2).size == len(CONTENT)


def test_a_temporary_name_that_is_taken_is_not_touched(tmp_path):
    (tmp_path / ".tmp-taken").write_bytes(b"precious")
    fd = disk.open_directory(tmp_path)
    try:
        with nothing_left(tmp_path), pytest.raises(FileExistsError):
            _fastpipe.SaveFile(fd, b".tmp-taken", nameless=False)
    finally:
        os.close(fd)
    assert (tmp_path / ".tmp-taken").read_bytes() == b"precious"


def test_stale_temporary_files_go_at_opening_and_live_ones_stay(tmp_path):
    stale, live = (tmp_path / disk.temp_name(1) for _ in range(2))
    stale.write_bytes(b"half")
    with open(live, "wb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with SnapshotDir(tmp_path) as directory:
            assert names(tmp_path) == [live.name]
            assert directory.remove_orphans() == []
    with SnapshotDir(tmp_path) as directory:
        assert names(tmp_path) == []
        stale.touch()
        assert directory.remove_orphans() == [stale.name]


def test_a_manifest_without_a_snapshot_goes_at_opening(directory):
    directory.save_from(CONTENT, 1).path.unlink()
    directory.save_from(CONTENT, 2)
    SnapshotDir(directory.path).close()
    assert names(directory.path) == [f"{2:016x}.db", f"{2:016x}.json"]


@pytest.mark.parametrize(
    "name",
    [
        "000000000000000A.db",
        "000000000000001.db",
        "00000000000000001.db",
        "0000000000000001.db (1)",
        "0000000000000001 (1).db",
        "0000000000000001.DB",
        "0000000000000001.db\n",
        "-000000000000001.db",
        "0000000000000001.jsonx",
        ".tmp-1",
        ".tmp-0000000000000001-00000000000000001",
        "tmp123",
        "db.tmp",
    ],
)
def test_names_that_are_almost_ours_are_somebody_elses(name, directory):
    (directory.path / name).write_bytes(b"foreign")
    with nothing_left(directory.path):
        SnapshotDir(directory.path).close()
        assert directory.list() == []
        assert directory.remove_orphans() == []
        assert directory.purge(keep=1) == []


@pytest.mark.parametrize(
    "options",
    [{"chunk_size": 1}, {"chunk_size": 5000}, {"chunk_size": 2**40}, {"size": -1}, {"idle_timeout_s": 0}],
    ids=str,
)
def test_options_that_make_no_sense_leave_nothing(options, directory):
    with nothing_left(directory.path), pytest.raises((ValueError, OverflowError)):
        directory.save_from(CONTENT, 1, **options)


def test_files_beyond_the_limit_of_the_process_are_an_error_with_the_path(directory):
    script = """
    import resource
    directory = SnapshotDir(sys.argv[1])
    before = os.listdir("/proc/self/fd")
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
    for size in (100_001, 3_000_000):
        for declared in (None, size):
            try:
                directory.save_from(bytes(size), 1, size=declared)
            except OSError as error:
                say(error.errno, error.filename, os.listdir("/proc/self/fd") == before)
    directory.save_from(bytes(99_000), 1)
    # What measures this process writes more, at its end.
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    """
    with Process(script, directory.path) as process:
        assert process.finish() == [f"{errno.EFBIG} {directory.path}/{1:016x}.db True"] * 4
    assert directory.verify(1).size == 99_000
    assert len(names(directory.path)) == 2


def test_running_out_of_descriptors_at_any_moment_leaves_nothing(directory):
    script = """
    import resource
    directory = SnapshotDir(sys.argv[1])
    for limit in range(directory._fd + 1, 64):
        before = os.listdir(sys.argv[1])
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, 1024))
        try:
            saved = directory.save_from(bytes(2_000_000), 1)
        except OSError as error:
            resource.setrlimit(resource.RLIMIT_NOFILE, (64, 1024))
            assert os.listdir(sys.argv[1]) == before == [], before
            say(error.errno, error.filename)
        else:
            break
    say("saved")
    """
    with Process(script, directory.path) as process:
        *failures, last = process.finish()
    assert last == "saved"
    assert set(failures) == {f"{errno.EMFILE} {directory.path}/{1:016x}.db"}
    assert directory.verify(1).size == 2_000_000
