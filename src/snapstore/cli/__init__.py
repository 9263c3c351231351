"""The command line: `snapstore COMMAND ...`, for people at a terminal and for scripts.

Importing it costs next to nothing: what a command needs is imported when it runs. It decides nothing
about snapshots; it reads arguments, calls the package's public names and says what came of it.

Plan: the commands are tables in `commands/`, what errors mean to a shell a table in `exits.py`,
and how things are said, in colours, in plain lines or in JSON, is `screen.py`'s.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from snapstore.cli.exits import ExitCode, UsageError, exit_code_of, explain
from snapstore.cli.parser import build_parser, load
from snapstore.cli.screen import make_screen

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["ExitCode", "main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that `argv` (without the program's name) names; return its exit code.

    Call it on the main thread: some commands handle signals. What it does not expect, a fault of
    its own, is raised.
    """
    arguments = sys.argv[1:] if argv is None else list(argv)
    try:
        code = _run(arguments)
        # Flushed here and not at the interpreter's end, where nobody can answer for it any more.
        sys.stdout.flush()
        return int(code)
    except BrokenPipeError:
        # Whoever read our output has left (`snapstore ls DIR | head -1`): nothing is left to say.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return int(ExitCode.READER_LEFT)


def _run(arguments: list[str]) -> int:
    screen = make_screen(json="--json" in arguments)
    try:
        parsed = build_parser().parse_args(arguments)
        return load(parsed.command)(parsed, screen)
    except SystemExit as end:  # --help and --version have said all there is.
        return int(end.code or 0)
    except UsageError as error:
        screen.error(error, f"{error}\n{error.usage}")
        return ExitCode.USAGE
    except KeyboardInterrupt as interrupt:
        screen.error(interrupt, "interrupted")
        return ExitCode.INTERRUPTED
    except BrokenPipeError:
        raise
    except Exception as error:
        code = exit_code_of(error)
        if code is None:
            raise
        screen.error(error, explain(error))
        return int(code)
