"""One command: its name, what it takes, what is said of it, and where it is done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from snapstore.cli.commands.argument import Argument


@dataclass(frozen=True, slots=True)
class Command:
    """A command: `run` is `module:function` below `snapstore.cli`."""

    name: str
    summary: str
    run: str
    arguments: Sequence[Argument] = ()
    details: str = ""
