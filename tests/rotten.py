"""Disks that forget: a bit that flips in a file, and a system call that fails."""

from __future__ import annotations

import os


def rot(path, bit=0):
    """Flip one bit of a file, as a disk does: in place."""
    with open(path, "r+b") as file:
        file.seek(bit // 8)
        byte = file.read(1)[0]
        file.seek(bit // 8)
        file.write(bytes([byte ^ 1 << bit % 8]))


def fail(code):
    """Raise what the system would."""
    raise OSError(code, os.strerror(code))
