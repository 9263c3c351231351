"""The seed's algorithm as Go runs it: sender and receiver, each a process of its own, ready before the clock.

They talk in lines over their standard streams, and end when their standard input does.
"""

from __future__ import annotations

import os
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from snapstore.bench.ways import Way

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

#: An idle process whose input ended needs a moment; one that takes so long is stuck.
END_S_MAX = 10.0


@contextmanager
def seed_way(program: Path, source: Path, directory: Path, check: Callable[[Path], None]) -> Iterator[Way]:
    """Lend the way of the file `source` over HTTP into a new `directory`; `check` verifies the copy."""
    directory.mkdir()
    target = directory / "snapshot"
    with _running(program, "receive", str(directory)) as receiver, _running(program, "send") as sender:
        url = _hear(receiver)

        def send() -> None:
            print(f"{url}/{target.name} {source}", file=sender.stdin, flush=True)
            said = _hear(sender)
            assert said == "sent", said

        def check_saved() -> None:
            check(target)
            os.unlink(target)

        yield Way("Go", send, check_saved, size=source.stat().st_size, processes=[receiver.pid, sender.pid])


@contextmanager
def _running(*command: str | Path) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.stdin.close()
            try:
                process.wait(END_S_MAX)
            finally:
                process.kill()


def _hear(process: subprocess.Popen[str]) -> str:
    line = process.stdout.readline()
    assert line, f"{process.args!r} ended with {process.wait(END_S_MAX)}"
    return line.rstrip("\n")
