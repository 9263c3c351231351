"""The commands by name: what each takes, and where it is done.

Tables; nothing runs here, and `parser.py` makes a parser of them. A command's module is imported when
it is called, so that `snapstore --help` needs no store and no network.

Plan: `X.py` here says what the commands take that `cli/X.py` runs; a new command is one more table there
and one more row below. `command.py` and `argument.py` are the shapes of a row.
"""

from __future__ import annotations

from snapstore.cli.commands.archive import LS, PULL, PUSH
from snapstore.cli.commands.bench import BENCH
from snapstore.cli.commands.command import Command
from snapstore.cli.commands.completion import COMPLETION
from snapstore.cli.commands.demo import DEMO
from snapstore.cli.commands.doctor import DOCTOR, EXPLAIN
from snapstore.cli.commands.peers import FETCH, SEND, SERVE
from snapstore.cli.commands.stored import PATH, PURGE, RESTORE, SAVE, VERIFY
from snapstore.cli.commands.top import TOP

__all__ = ["COMMANDS"]

#: In the order in which the help shows them.
COMMANDS: tuple[Command, ...] = (
    DEMO,
    SAVE,
    LS,
    VERIFY,
    PATH,
    RESTORE,
    PURGE,
    DOCTOR,
    EXPLAIN,
    BENCH,
    SERVE,
    SEND,
    FETCH,
    TOP,
    PUSH,
    PULL,
    COMPLETION,
)
