"""The sweep itself: bad savers are found out, and what was found is found again."""

from __future__ import annotations

import errno
import os
import signal

from fresh_process import in_a_fresh_process
from snapstore.testing import syscall_sweep
from snapstore.testing.sweep import Point


@in_a_fresh_process
def test_a_sweep_tells_what_it_found_and_finds_it_again(tmp_path):
    """A save that looks at nothing: what a sweep is for."""

    def save(path):
        fd = os.open(path / "file", os.O_CREAT | os.O_WRONLY, 0o600)
        os.write(fd, b"content")
        for _ in range(2):
            try:
                os.fsync(fd)
                break
            except OSError:
                pass

    def check(path, run):
        assert not run.synced_again, "synced again"
        assert not run.killed or not run.returned or (path / "file").exists()
        if run.returned:
            assert (path / "file").read_bytes() == b"content", "short"
        if run.point is not None:
            assert run.descriptors_left == [] or run.returned or run.raised

    sweep = syscall_sweep(save, check, scratch=tmp_path)
    violations = {(violation.point.call, violation.point.fault) for violation in sweep.violations}
    assert {("fsync", "EIO"), ("fsync", "ENOSPC"), ("write", "one byte"), ("write", "half")} <= violations
    assert sweep.by_fault()["SIGKILL"] == len({*sweep.by_call()}) == 4  # openat, write, fsync, mark
    assert sweep.by_call()["fsync"] == 6
    assert str(sweep).startswith(f"{sweep.points.total()} points (")
    again = syscall_sweep(save, check, scratch=tmp_path, only=[Point("fsync", 1, "EIO")])
    (violation,) = again.violations
    assert "EIO at fsync 1: AssertionError: synced again" in str(violation)
    assert again.points.total() == 1
    missed = syscall_sweep(save, check, scratch=tmp_path, only=[Point("fsync", 7, "EIO")])
    assert (missed.missed, missed.points.total()) == ([Point("fsync", 7, "EIO")], 0)


@in_a_fresh_process(measured=False)
def test_how_full_the_tester_is_makes_no_call_of_a_run(tmp_path):
    """A save of 400 KB of objects, after more and more of them: somewhere there is no room for them."""
    around = []

    def save(path):
        os.mkdir(path / "new")
        return [bytes(400) for _ in range(1000)]

    for _ in range(10):
        around.append([bytes(400) for _ in range(300)])
        sweep = syscall_sweep(save, lambda _path, _run: None, scratch=tmp_path)
        assert set(sweep.by_call()) == {"mkdir", "mark"}


@in_a_fresh_process
def test_a_save_that_hangs_or_dies_is_a_violation(tmp_path):
    def save(path):
        try:
            os.mkdir(path / "new")
        except OSError as error:
            if error.errno == errno.EIO:
                signal.pause()
            os.kill(os.getpid(), signal.SIGKILL)

    points = [Point("mkdir", 1, fault) for fault in ("EIO", "ENOSPC")]
    if os.uname().machine == "aarch64":
        points = [Point("mkdirat", 1, point.fault) for point in points]
    sweep = syscall_sweep(save, lambda path, run: None, scratch=tmp_path, only=points, timeout_s=0.05)
    assert [violation.text for violation in sweep.violations] == [
        "the save did not end within 0.05 s",
        "the save's process died of itself",
    ]


@in_a_fresh_process
def test_a_fault_that_lasts_meets_the_cleaning_too(tmp_path):
    def save(path):
        (path / "temp").touch()
        try:
            (path / "temp").rename(path / "file")
        finally:
            (path / "temp").unlink(missing_ok=True)

    def check(path, run):
        if run.point is not None and run.point.call.startswith("rename"):
            assert os.listdir(path) == []

    lasting = syscall_sweep(save, check, scratch=tmp_path, lasting=True)
    assert lasting.by_fault()["SIGKILL"] == 0
    assert {violation.point.fault for violation in lasting.violations} == {
        "EIO", "ENOSPC", "EDQUOT", "EROFS", "ENOMEM",
    }  # fmt: skip
    once = syscall_sweep(save, check, scratch=tmp_path)
    assert {violation.point.fault for violation in once.violations} == {"SIGKILL"}
