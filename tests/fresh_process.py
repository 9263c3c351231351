"""A test in a Python of its own, with one thread and nothing left over from tests before it.

What forks, or is traced, must not inherit other threads' locks. Its fixtures are made by the test's own
process, and are values: paths, texts, numbers.
"""

from __future__ import annotations

import functools
import importlib
import os
import pickle
import subprocess
import sys

from processes import unmeasured

#: The longest sweep takes a minute on a quiet machine.
TEST_S_MAX = 400.0

CODE = "import sys, fresh_process; fresh_process.run(*sys.argv[1:])"


def in_a_fresh_process(test=None, *, measured=True):
    """Decorate a test function (not a method): its body runs in a new interpreter, warnings as errors.

    With `measured=False` coverage.py stays out of it: whoever counts system calls must not see its own.
    """
    if test is None:
        return functools.partial(in_a_fresh_process, measured=measured)

    @functools.wraps(test)
    def decorated(**fixtures):
        path = os.pathsep.join(filter(None, [os.path.dirname(__file__), *sys.path]))
        given = pickle.dumps(fixtures).hex()
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", CODE, test.__module__, test.__name__, given],
            env={**(os.environ if measured else unmeasured()), "PYTHONPATH": path},
            capture_output=True,
            text=True,
            timeout=TEST_S_MAX,
        )
        print(done.stdout)
        assert done.returncode == 0, done.stdout + done.stderr

    return decorated


def run(module, name, fixtures):
    """Be the new interpreter."""
    getattr(importlib.import_module(module), name).__wrapped__(**pickle.loads(bytes.fromhex(fixtures)))
