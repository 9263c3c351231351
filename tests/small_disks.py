"""Real small file systems for tests: in memory, or in a file behind a loop device. They need root.

Where the machine cannot, a test skips with a loud line; in CI as root it fails, since CI's machine can.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import subprocess

import pytest

#: How each kind is made, and the least size in MiB that its tools take or that these tests need.
KINDS = {
    "ext4": (["mkfs.ext4", "-q", "-b", "1024"], 16),
    "xfs": (["mkfs.xfs", "-q"], 300),
    "btrfs": (["mkfs.btrfs", "-q", "--mixed"], 64),
}

#: The kernel's XFS_IOC_GOINGDOWN and EXT4_IOC_SHUTDOWN, and the way that loses what the log has not.
_SHUTDOWN, _WITHOUT_LOG = 0x8004587D, 2

#: In what steps a disk is filled, in bytes: fast at first, and to the last block in the end.
_BALLAST_STEP, _BALLAST_GRAIN = 64 * 1024 * 1024, 1024


def cannot(words):
    """Skip, loudly; fail where the machine is CI's and we are root."""
    if os.environ.get("CI") == "true" and os.geteuid() == 0:
        pytest.fail(f"CI as root must be able to: {words}")
    pytest.skip(f"NO SMALL FILE SYSTEMS: {words}")


def run(*command):
    """Run a command that only root and some package make possible."""
    if os.geteuid() != 0:
        cannot("mounting needs root")
    try:
        done = subprocess.run([*map(str, command)], capture_output=True, text=True)
    except FileNotFoundError as error:
        cannot(str(error))
    if done.returncode:
        cannot(f"{command}: {done.stderr}")


class SmallDisk:
    """One file system at `path`; `mount` and `unmount` take it in and out, what it holds stays."""

    def __init__(self, path, kind, image=None, *, more=(), size_mib=None):
        self.path, self.kind, self._image = path, kind, image
        self._mounted = False
        path.mkdir()
        if kind != "tmpfs":
            command, size_min = KINDS[kind]
            image.touch()
            os.truncate(image, (size_mib or size_min) * 1024 * 1024)
            run(*command, *more, image)

    def mount(self, options=""):
        if self.kind == "tmpfs":
            run("mount", "-t", "tmpfs", "-o", f"mode=0700,{options}", "snapstore-test", self.path)
        else:
            run("mount", "-o", ",".join(filter(None, ["loop", options])), self._image, self.path)
        self._mounted = True
        if not os.statvfs(self.path).f_flag & os.ST_RDONLY:
            self.path.chmod(0o700)
        return self

    def remount(self, options):
        """Whether the kernel agreed: what is being written it does not make read-only."""
        return (
            subprocess.run(["mount", "-o", f"remount,{options}", self.path], capture_output=True).returncode
            == 0
        )

    def unmount(self):
        if not self._mounted:
            return
        self._mounted = False
        done = subprocess.run(["umount", self.path], capture_output=True)
        if done.returncode:  # A test that failed still holds something of it.
            subprocess.run(["umount", "--lazy", self.path], check=True)

    def break_off(self):
        """Let every further call fail and lose what was not synced, as a disk does that is gone."""
        fd = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.ioctl(fd, _SHUTDOWN, struct.pack("I", _WITHOUT_LOG))
        finally:
            os.close(fd)

    @contextlib.contextmanager
    def filled(self, free=0):
        """A ballast takes all room, but for `free` bytes that it gave back; afterwards it is gone."""
        ballast = self.path / "ballast"
        with open(ballast, "wb") as file:
            size, step = 0, _BALLAST_STEP
            while step >= _BALLAST_GRAIN:
                try:
                    os.posix_fallocate(file.fileno(), size, step)
                    size += step
                except OSError:
                    step //= 2
            os.ftruncate(file.fileno(), max(0, size - free))
        os.sync()
        try:
            yield
        finally:
            ballast.unlink()
            os.sync()
