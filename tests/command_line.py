"""The command line for tests: run in this process, as a process of its own, or on a terminal."""

from __future__ import annotations

import contextlib
import io
import os
import pty
import subprocess
import sys

from snapstore.cli import main

#: A command that takes so long is stuck.
END_S_MAX = 30.0


def snapstore(*arguments):
    """Run it here; its exit code, what it said on standard output, and on standard error."""
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        code = main([str(argument) for argument in arguments])
    return code, out.getvalue(), err.getvalue()


def _environment(**changes):
    path = os.pathsep.join(filter(None, sys.path))
    return {**os.environ, "PYTHONPATH": path, "PYTHONWARNINGS": "error", **changes}


def spawn(*arguments, **options):
    """Start it as a process of its own."""
    program = [sys.executable, "-m", "snapstore", *map(str, arguments)]
    return subprocess.Popen(program, env=_environment(), **options)


def on_terminal(*arguments, before="pass"):
    """Run it on a terminal, after Python's statement `before`; what appeared there, and the exit code."""
    script = f"import sys; {before}; from snapstore.cli import main; sys.exit(main(sys.argv[1:]))"
    program = [sys.executable, "-c", script, *map(str, arguments)]
    environment = _environment(TERM="xterm-256color", COLUMNS="100")
    environment.pop("NO_COLOR", None)
    ours, theirs = pty.openpty()
    streams = dict.fromkeys(("stdin", "stdout", "stderr"), theirs)
    with subprocess.Popen(program, env=environment, **streams) as child, io.FileIO(ours) as terminal:
        os.close(theirs)
        seen = b""
        while piece := _read(terminal):
            seen += piece
        return seen.decode(), child.wait(END_S_MAX)


def _read(terminal):
    try:
        return terminal.read(65536)
    except OSError:  # A terminal that nobody has open any more ends with EIO.
        return b""
