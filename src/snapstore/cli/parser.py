"""The parser of the command line, made from the table of the commands.

Arguments only; nothing runs here but the import of the command that was asked for.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from snapstore.cli.commands import COMMANDS
from snapstore.cli.exits import UsageError, exit_code_table

if TYPE_CHECKING:
    from snapstore.cli.commands.command import Command
    from snapstore.cli.screen import Screen


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line; it raises UsageError."""
    epilog = f"exit codes:\n{exit_code_table()}"
    parser = _Parser(
        prog="snapstore",
        description="Point-in-time snapshots of a raft node's key-value store.",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_Version, help="print the version and exit")
    commands = parser.add_subparsers(
        dest="command", metavar="COMMAND", required=True, parser_class=_CommandParser
    )
    for command in COMMANDS:
        subparser = commands.add_parser(
            command.name, help=command.summary, description=_sentence(command), add_help=True
        )
        for argument in command.arguments:
            subparser.add_argument(*argument.names, **argument.options)
        subparser.add_argument("--json", action="store_true", help="say everything in JSON, for machines")
    return parser


def load(name: str) -> Callable[[argparse.Namespace, Screen], int]:
    """Import and return what runs the command `name`."""
    module, _, function = next(command.run for command in COMMANDS if command.name == name).partition(":")
    run: Callable[[argparse.Namespace, Screen], int] = getattr(
        importlib.import_module(f"snapstore.cli.{module}"), function
    )
    return run


def _sentence(command: Command) -> str:
    first = f"{command.summary[0].upper()}{command.summary[1:]}."
    return f"{first} {command.details}".rstrip()


class _Parser(argparse.ArgumentParser):
    """An ArgumentParser that raises: whether to answer in JSON is not its to know."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, self.format_usage().strip())


class _CommandParser(_Parser):
    """One command's: options may stand anywhere, also before an argument that may be left out.

    Left alone argparse takes that one for absent at the first option, and then complains of it.
    """

    _intermixed = False

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse the options first, then what is left; argparse does it by two calls of this method."""
        if self._intermixed:
            return super().parse_known_args(args, namespace)
        self._intermixed = True
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self._intermixed = False


class _Version(argparse.Action):
    """Looks the version up only when it is asked for: that reads the installed metadata."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str | None = None) -> None:  # noqa: A002
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, default=argparse.SUPPRESS, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_rest: object) -> None:
        try:
            version = importlib.metadata.version("snapstore")
        except importlib.metadata.PackageNotFoundError:
            version = "(not installed)"
        print(f"snapstore {version}")
        parser.exit()
