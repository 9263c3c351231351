"""What `completion` takes."""

from __future__ import annotations

from snapstore.cli.commands.argument import argument
from snapstore.cli.commands.command import Command

SHELLS = ("bash", "zsh", "tcsh")

COMPLETION = Command(
    "completion",
    "print a script that completes commands and options in a shell",
    "completion:run",
    (argument("shell", choices=SHELLS, help="the shell"),),
    'For bash: eval "$(snapstore completion bash)"',
)
