"""Power cuts on real file systems: our savers lose nothing, and the harness catches those that would.

Root, FUSE and loop devices. Skips loudly on a machine that has them not; fails where `CI=true` and
they are there, and something else is missing.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from broken_savers import BROKEN, GOOD
from processes import Process
from snapstore.directory import SnapshotDir
from snapstore.testing.power_cut import PowerCut, PowerCutUnavailable, WorkloadFailed, own_saver
from snapstore.testing.power_cut.__main__ import main
from snapstore.testing.power_cut.filesystems import FILE_SYSTEMS
from snapstore.testing.power_cut.own_saver import check_directory, save_and_purge
from snapstore.testing.power_cut.saved_files import content_of, problems_of_files

pytestmark = [pytest.mark.root, pytest.mark.slow]

#: Distinct crash states of our savers on each file system.
STATES = 2000

#: Enough for savers that are right and are here to show that the harness does not cry wolf.
STATES_GOOD = 250

#: A broken saver is caught long before; most of them within the first dozens.
STATES_BROKEN = 3000

#: More than the kernel takes to clean up after a process that was killed.
GONE_S_MAX = 30.0

#: So many saves one workload of a saver in plain Python does, by two threads.
SAVES = 40

#: btrfs names a file and fills it in one transaction, unless that ends just between the two.
UNCATCHABLE = {("btrfs", "in_place")}


@contextlib.contextmanager
def power_is_there_to_cut():
    """Skip where the machine cannot, unless it is the one that must."""
    try:
        yield
    except PowerCutUnavailable as error:
        could = os.geteuid() == 0 and Path("/dev/fuse").exists() and Path("/dev/loop-control").exists()
        if os.environ.get("CI") == "true" and could:
            raise
        pytest.skip(f"NO POWER WAS CUT, NOTHING IS PROVEN HERE: {error}")


def run(filesystem, workload, check, **options):
    keep = options.pop("keep", None)
    with power_is_there_to_cut():
        report = PowerCut(filesystem, keep=keep, **options.pop("cut", {})).run(workload, check, **options)
    print(report)
    return report


def saves(save, path, mark):
    """A workload: `save` from two threads at once."""
    directory = path / "snapshots"
    directory.mkdir()
    root = os.open(path, os.O_RDONLY)
    os.fsync(root)
    os.close(root)

    def one(index):
        mark.begin(index)
        save(directory, index, content_of(index))
        mark.ok(index)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(one, range(SAVES)))


def look(save, path, begun, reported, symptom=""):
    """Its check: right, all there, and a new save works. Says only what has `symptom`."""
    directory = path / "snapshots"
    problems = problems_of_files(directory, begun, reported)
    directory.mkdir(exist_ok=True)
    save(directory, SAVES, content_of(SAVES))
    if (directory / f"{SAVES:016x}.db").read_bytes() != content_of(SAVES):
        problems.append("what was saved afterwards is not what was given")
    return [problem for problem in problems if symptom in problem]


def run_saver(filesystem, save, *, symptom="", **options):
    check = functools.partial(look, save, symptom=symptom)
    return run(filesystem, functools.partial(saves, save), check, **options)


@pytest.fixture(autouse=True)
def nothing_stays(tmp_path, monkeypatch):
    """No mount, no loop device and no directory of images is left. Others may cut power meanwhile."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    yield scratch
    deadline = time.monotonic() + GONE_S_MAX
    # The kernel takes mounts, and then loop devices, away a moment after the last process is gone.
    while residue(scratch) and time.monotonic() < deadline:
        os.sched_yield()
    assert residue(scratch) == []


def residue(scratch):
    """Mounts, loop devices, and directories of images that are below `scratch`."""
    mounts = [line for line in Path("/proc/mounts").read_text().splitlines() if str(scratch) in line]
    loops = []
    for path in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):  # It is going at this moment.
            # Once FUSE is gone, the disk on it has no other name.
            below = path.read_text().strip()
            loops += [path] if str(scratch) in below or below == "/disk" else []
    return mounts + loops + list(scratch.iterdir())


@pytest.mark.parametrize("filesystem", FILE_SYSTEMS)
def test_our_savers_lose_nothing(filesystem, tmp_path):
    report = run(filesystem, save_and_purge, check_directory, states=STATES, keep=tmp_path / "found")
    assert report.violations == ()
    assert report.distinct >= STATES
    assert report.unmountable <= report.distinct // 100


def test_what_a_power_cut_takes_of_a_kept_prefix_is_met_and_found():
    """The check of our savers would say nothing, because the transfer goes on: so another tells of it."""

    def check(path, begun, reported):
        with SnapshotDir(path / own_saver.DIRECTORY_NAME) as directory:
            found = []
            for index in own_saver.partial_indexes(directory):
                own_saver.lose_page(directory, index)
                found.append(own_saver.complete(directory, index))
                assert directory.verify(index).path.read_bytes() == content_of(index)
        return [f"chunk {chunk} was wrong" for chunk in found if chunk is not None]

    report = run("ext4", own_saver.save_and_purge, check, states=250, violations_max=1)
    assert "was wrong" in report.violations[0].problems[0]


@pytest.mark.parametrize("filesystem", FILE_SYSTEMS)
@pytest.mark.parametrize("saver", GOOD)
def test_right_savers_pass(filesystem, saver):
    report = run_saver(filesystem, GOOD[saver], states=STATES_GOOD)
    assert report.violations == ()
    assert report.distinct >= STATES_GOOD


@pytest.mark.parametrize(
    ("filesystem", "saver"),
    [(kind, saver) for kind in FILE_SYSTEMS for saver in BROKEN if (kind, saver) not in UNCATCHABLE],
)
def test_savers_broken_on_purpose_are_caught(filesystem, saver):
    symptom = "is lost" if saver == "no_directory_fsync" else "not the right ones"
    report = run_saver(filesystem, BROKEN[saver], symptom=symptom, states=STATES_BROKEN, violations_max=1)
    assert len(report.violations) >= 1


def test_half_a_page_may_arrive():
    report = run("ext4", save_and_purge, check_directory, states=250, cut={"atom_size": 512})
    assert report.violations == ()


def test_a_violation_is_seen_again_from_what_was_kept(tmp_path):
    report = run_saver("ext4", BROKEN["no_fsync"], states=250, violations_max=1, keep=tmp_path / "found")
    violation = report.violations[0]
    again = PowerCut("ext4").replay(
        violation.recording, str(violation.state), functools.partial(look, BROKEN["no_fsync"])
    )
    assert tuple(again) == violation.problems


#: Takes the fsyncs of one kind away from snapstore's own saver, and lets it believe they were done.
DEAF_FSYNC = """
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <stdio.h>
#include <unistd.h>

int fsync(int fd) {
    char link[64], path[4096] = "";
    struct stat status;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    if (fstat(fd, &status) == 0 && S_ISDIR(status.st_mode) == DIRECTORIES
        && readlink(link, path, sizeof path - 1) > 0 && strstr(path, "/follower/snapshots"))
        return 0;
    return syscall(SYS_fsync, fd);
}
"""


def command(*arguments, preload=""):
    """`python -m snapstore.testing.power_cut`: its status, and what it said."""
    done = subprocess.run(
        [sys.executable, "-m", "snapstore.testing.power_cut", *map(str, arguments)],
        env={**os.environ, "LD_PRELOAD": str(preload), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stdout=subprocess.PIPE,
        text=True,
    )
    return done.returncode, done.stdout


@pytest.mark.parametrize(("directories", "symptom"), [(1, "is lost"), (0, "does not verify")])
def test_our_own_saver_is_caught_by_the_command_when_its_fsync_is_deaf(directories, symptom, tmp_path):
    run("ext4", save_and_purge, check_directory, states=1)  # Skips where the rest would not work either.
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("NO FAULT INJECTION: it needs a C compiler")
    (tmp_path / "deaf.c").write_text(DEAF_FSYNC)
    deaf = tmp_path / "deaf.so"
    subprocess.run(
        [compiler, "-shared", "-fPIC", f"-DDIRECTORIES={directories}", "-o", deaf, tmp_path / "deaf.c"],
        check=True,
    )
    found = tmp_path / "found"
    status, said = command("--states", 500, "--keep", found, preload=deaf)
    assert status == 1, said
    assert symptom in said
    recording, state = next(
        re.search(r"state (\S+) \(recording (\S+)\)", line).group(2, 1)
        for line in said.splitlines()
        if symptom in line
    )
    status, said = command("--replay", recording, state)
    assert (status, symptom in said) == (1, True)


def test_the_command_tells_the_seed_and_that_nothing_is_wrong(tmp_path, monkeypatch, capfd):
    run_saver("ext4", GOOD["named"], states=1)
    monkeypatch.chdir(tmp_path)
    assert main(["--states", "30", "--seed", "5"]) == 0
    assert re.search(r"^ext4: 30 distinct states .* seed 5,", capfd.readouterr().out, re.MULTILINE)
    assert [path.name for path in tmp_path.iterdir()] == ["scratch"]


def no_marks(path, mark):
    (path / "file").write_bytes(b"content")


def failing(path, mark):
    raise RuntimeError("the workload's own reason")


@pytest.mark.parametrize(("workload", "reason"), [(no_marks, "marked nothing"), (failing, "own reason")])
def test_a_workload_that_proves_nothing_is_told_so(workload, reason):
    with pytest.raises(WorkloadFailed, match=reason):
        run("ext4", workload, check_directory, states=10)


def test_a_check_that_raises_has_found_something():
    def check(path, begun, reported):
        raise ValueError("what it cannot stand")

    report = run("ext4", save_and_purge, check, states=10, violations_max=1)
    assert "what it cannot stand" in report.violations[0].problems[0]


ENDLESS = """
    from snapstore.testing.power_cut import PowerCut
    from snapstore.testing.power_cut.own_saver import save_and_purge

    filesystem, stage = sys.argv[1:]

    def stop_at(here):
        if here == stage:
            os.write(1, f"{stage}\\n".encode())  # In one piece: two processes say it.
            sys.stdin.readline()

    def workload(path, mark):
        save_and_purge(path, mark)
        stop_at("recording")

    def check(path, begun, reported):
        stop_at("checking")

    try:
        PowerCut(filesystem, jobs=2).run(workload, check, states=1000)
    except KeyboardInterrupt:
        say("interrupted")
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize("stage", ["recording", "checking"])
@pytest.mark.parametrize("filesystem", FILE_SYSTEMS)
def test_whatever_ends_it_nothing_stays(filesystem, stage, number, nothing_stays):
    run(filesystem, save_and_purge, check_directory, states=1)  # Skips where the rest would not work.
    with Process(ENDLESS, filesystem, stage) as process:
        assert process.hear() == stage
        assert any("/sys/block" in str(found) for found in residue(nothing_stays))
        children = children_of(process.pid)
        assert children
        process.send_signal(number)
        for child in children:
            wait_for_end(child)
        process.wait()
    # What a kill leaves is an empty directory.
    if number == signal.SIGKILL:
        (directory,) = nothing_stays.iterdir()
        directory.rmdir()


def children_of(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def wait_for_end(pid):
    with contextlib.suppress(ProcessLookupError):
        fd = os.pidfd_open(pid)
        try:
            assert select.select([fd], [], [], GONE_S_MAX)[0]
        finally:
            os.close(fd)


def test_a_user_is_told_that_root_is_needed():
    """In a process of its own, whose user the rest would not survive."""
    command = """
        from snapstore.testing.power_cut.__main__ import main
        os.setuid(65534)
        say(main(["--states", "1"]))
    """
    with Process(command) as process:
        assert process.finish() == ["3"]
