"""Baselines that are no Python: built once for a run. What cannot be built skips, and says so.

What each of them does stands at its own head, in `baselines/`.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

SOURCES = Path(__file__).parent / "baselines"


def require(program: str, package: str) -> str:
    """Return where `program` is; skip the test where it is nowhere, which CI takes for a failure."""
    found = shutil.which(program)
    if found is None:
        reason = f"NOT MEASURED: there is no {program} (apt-get install {package})"
        assert not os.environ.get("CI"), reason
        pytest.skip(reason)
    return found


def build_disk_writer(directory: Path) -> Callable[[Path, int], None]:
    """Return `write(path, size)`: the disk alone, by baselines/disk_writer.c. It raises OSError."""
    library = directory / "disk_writer.so"
    compiler, flags = require("cc", "gcc libc6-dev"), ["-O2", "-Wall", "-Werror", "-shared", "-fPIC"]
    subprocess.run([compiler, *flags, "-o", library, SOURCES / "disk_writer.c"], check=True)
    write_direct = ctypes.CDLL(str(library)).write_direct
    write_direct.argtypes = ctypes.c_char_p, ctypes.c_uint64

    def write(path: Path, size: int) -> None:
        code = write_direct(os.fsencode(path), size)
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
