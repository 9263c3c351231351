"""System calls that fail, one at a time, and a saver that is killed before each of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from faulty_process import CASES

HERE = Path(__file__).parent

#: A sweep forks some hundred times.
SWEEP_S_MAX = 120.0


@pytest.fixture(scope="module")
def shim(tmp_path_factory):
    """The shim, compiled for this machine."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("NO FAULT INJECTION: it needs a C compiler on Linux")
    library = tmp_path_factory.mktemp("shim") / "fault_shim.so"
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-O1", "-o", library, HERE / "fault_shim.c", "-ldl"], check=True
    )
    return library


def run_case(case, mode, shim, path):
    environment = {**os.environ, "LD_PRELOAD": str(shim)}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(HERE), *sys.path]))
    return subprocess.run(
        [sys.executable, HERE / "faulty_process.py", case, path, mode],
        env=environment,
        capture_output=True,
        text=True,
        timeout=SWEEP_S_MAX,
    )


@pytest.mark.parametrize("mode", ["nameless", "named"])
@pytest.mark.parametrize("case", [case for case in CASES if case != "slow cleaner"])
def test_a_save_is_whole_or_nothing_whatever_fails(case, mode, shim, tmp_path):
    run = run_case(case, mode, shim, tmp_path)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("mode", ["nameless", "named"])
def test_a_cleaner_that_holds_the_lock_costs_the_saver_nothing(mode, shim, tmp_path):
    run = run_case("slow cleaner", mode, shim, tmp_path)
    assert run.returncode == 0, run.stderr
