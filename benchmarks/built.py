"""Baselines that are no Python: built once for a run. What cannot be built skips, and says so.

What each of them does stands at its own head, in `baselines/`.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import pytest

from snapstore.bench.hardware import refuses_direct

if TYPE_CHECKING:
    from collections.abc import Callable

SOURCES = Path(__file__).parent / "baselines"


#: What direct I/O is aligned to, on any disk.
_ALIGNMENT = 4096


def leave_out(reason: str) -> NoReturn:
    """Skip the test, and say why; CI takes that for a failure."""
    assert not os.environ.get("CI"), f"NOT MEASURED: {reason}"
    pytest.skip(f"NOT MEASURED: {reason}")


def require(program: str, package: str) -> str:
    """Return where `program` is; leave the test out where it is nowhere."""
    found = shutil.which(program)
    if found is None:
        leave_out(f"there is no {program} (apt-get install {package})")
    return found


def build_disk_writer(directory: Path) -> Callable[[Path, int], None]:
    """Return `write(path, size)`: the disk alone, by baselines/disk_writer.c. It raises OSError.

    Direct writes are of whole blocks, so it writes as many as have room for `size` bytes.
    """
    if refuses_direct(directory):
        leave_out(f"the file system of {directory} refuses direct I/O; give --basetemp on another one")
    library = directory / "disk_writer.so"
    compiler, flags = require("cc", "gcc libc6-dev"), ["-O2", "-Wall", "-Werror", "-shared", "-fPIC"]
    subprocess.run([compiler, *flags, "-o", library, SOURCES / "disk_writer.c"], check=True)
    write_direct = ctypes.CDLL(str(library)).write_direct
    write_direct.argtypes = ctypes.c_char_p, ctypes.c_uint64

    def write(path: Path, size: int) -> None:
        code = write_direct(os.fsencode(path), -(-size // _ALIGNMENT) * _ALIGNMENT)
        if code:
            raise OSError(code, os.strerror(code), str(path))

    return write


def build_seed(directory: Path) -> Path:
    """Return the program of baselines/go. The build needs no network, and leaves nothing in a home."""
    program = directory / "seed"
    # What is built in a checkout would be stamped with its commit, by a git that may not trust it.
    subprocess.run(
        [require("go", "golang-go"), "build", "-buildvcs=false", "-o", program],
        cwd=SOURCES / "go",
        env={**os.environ, "GOCACHE": str(directory / "go"), "GOTOOLCHAIN": "local", "GOFLAGS": ""},
        check=True,
    )
    return program
