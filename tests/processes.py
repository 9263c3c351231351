"""Other processes for tests: a piece of Python that talks in lines over its standard streams."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

from snapstore.errors import ForkedProcess

#: A process that says nothing for so long is stuck.
ANSWER_S_MAX = 60.0

PREAMBLE = """
import os, sys
from snapstore.directory import SnapshotDir
from snapstore.errors import *

def say(*words):
    print(*words, flush=True)
"""


def is_refused(call):
    try:
        call()
    except ForkedProcess:
        return True
    return False


def unmeasured():
    """The environment without what makes coverage.py measure, and import, in each process."""
    return {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}


class Process(subprocess.Popen):
    """`script` run by this Python with `arguments`; `say` and `hear` pass lines. Ends with `with`."""

    def __init__(self, script, *arguments, environment=(), pass_fds=()):
        super().__init__(
            [sys.executable, "-c", PREAMBLE + textwrap.dedent(script), *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **dict(environment)},
            pass_fds=pass_fds,
        )

    def say(self, line=""):
        print(line, file=self.stdin, flush=True)

    def hear(self):
        return self.stdout.readline().rstrip("\n")

    def finish(self):
        """Close its input, wait for its end; what it still said."""
        said, _ = self.communicate(timeout=ANSWER_S_MAX)
        assert self.returncode == 0, said
        return said.splitlines()

    def __exit__(self, *exception):
        self.kill()
        super().__exit__(*exception)
