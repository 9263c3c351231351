"""`snapstore completion`: a shell's completion script, written by shtab out of the parser."""

from __future__ import annotations

from typing import TYPE_CHECKING

from snapstore.cli.exits import ExitCode
from snapstore.cli.parser import build_parser
from snapstore.errors import MissingExtra

if TYPE_CHECKING:
    import argparse

    from snapstore.cli.screen import Screen


def run(args: argparse.Namespace, screen: Screen) -> int:
    """Print the script for `args.shell`. Raises MissingExtra without shtab."""
    try:
        import shtab
    except ImportError:
        raise MissingExtra("completion needs shtab: pip install 'snapstore[cli]'") from None
    parser = build_parser()
    # By the argument's metavar, since that is what says to people, too, what belongs there.
    kinds = {"DIR": shtab.DIRECTORY, **dict.fromkeys(("SOURCE", "TARGET", "FILE"), shtab.FILE)}
    for subparser in _subparsers(parser):
        for action in subparser._actions:
            if action.metavar in kinds:
                action.complete = kinds[action.metavar]  # type: ignore[attr-defined]
    script = shtab.complete(parser, shell=args.shell)
    screen.result({"shell": args.shell, "script": script}, script)
    return ExitCode.DONE


def _subparsers(parser: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    # argparse has no public way to walk a parser; shtab walks it so, too.
    choices = (action.choices for action in parser._actions if isinstance(action.choices, dict))
    return [subparser for found in choices for subparser in found.values()]
