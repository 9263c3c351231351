"""How things are said: plain lines here, JSON for machines, colours and bars in `rich_screen.py`.

It must not know commands. Results go to standard output, all that happens on the way to standard
error; so a pipe gets results only, and a bar can be watched beside it.
"""

from __future__ import annotations

import json as json_format
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from snapstore._fastpipe import Progress

#: Between two looks at a transfer's progress: smooth for the eye, nothing for a processor.
POLL_INTERVAL_S = 0.1

Advance = Callable[[int], None]
Rows = Sequence[Sequence[str]]
Show = Callable[[Rows], None]


class Screen(Protocol):
    """What a command says things with. One thread, but for what `bar` yields."""

    def result(self, fields: Mapping[str, Any], text: str) -> None:
        """Say what came of it: `fields` to machines, `text` to people."""

    def table(self, fields: Mapping[str, Any], columns: Sequence[str], rows: Rows, title: str = "") -> None:
        """Say what came of it, as a table to people. Its first column is the name of each row."""

    def note(self, text: str) -> None:
        """Say to people what is going on."""

    def error(self, error: BaseException, message: str) -> None:
        """Say why it failed."""

    def bar(self, label: str, size: int | None) -> AbstractContextManager[Advance]:
        """Show how far something with `size` bytes is, from what the yielded function is told."""

    def live(self, columns: Sequence[str]) -> AbstractContextManager[Show]:
        """Show a table that changes: the yielded function is told its rows, again and again."""


class PlainScreen:
    """Lines of text: for pipes, for logs, and where rich is not installed."""

    def result(self, fields: Mapping[str, Any], text: str) -> None:
        """Print the text."""
        print(text, flush=True)

    def table(self, fields: Mapping[str, Any], columns: Sequence[str], rows: Rows, title: str = "") -> None:
        """Print the rows in columns, under their heads."""
        lines = [columns, *rows] if any(columns) else list(rows)
        widths = [max(len(line[place]) for line in lines) for place in range(len(columns))]
        if title:
            print(title)
        for line in lines:
            print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
        sys.stdout.flush()

    def note(self, text: str) -> None:
        """Print a line to standard error."""
        print(text, file=sys.stderr, flush=True)

    def error(self, error: BaseException, message: str) -> None:
        """Print it as commands do, with the program's name first."""
        print(f"snapstore: error: {message}", file=sys.stderr, flush=True)

    @contextmanager
    def bar(self, label: str, size: int | None) -> Iterator[Advance]:
        """Print a line at the start and one at the end."""
        self.note(f"{label}: {format_size(size)}" if size is not None else label)
        done = 0

        def advance(count: int) -> None:
            nonlocal done
            done = count

        started_s = time.monotonic()
        yield advance
        elapsed_s = time.monotonic() - started_s
        self.note(f"{label}: done, {format_size(done)} in {elapsed_s:.2f} s, {format_rate(done, elapsed_s)}")

    @contextmanager
    def live(self, columns: Sequence[str]) -> Iterator[Show]:
        """Print the rows under their heads each time, and a word where there are none."""

        def show(rows: Rows) -> None:
            if rows:
                PlainScreen.table(self, {}, columns, rows)
            else:
                print("nothing to show", flush=True)

        yield show


class JsonScreen:
    """One JSON object a result, on standard output, and nothing else; errors too."""

    def result(self, fields: Mapping[str, Any], text: str) -> None:
        """Print the fields."""
        print(json_format.dumps(fields), flush=True)

    def table(self, fields: Mapping[str, Any], columns: Sequence[str], rows: Rows, title: str = "") -> None:
        """Print the fields."""
        self.result(fields, "")

    def note(self, text: str) -> None:
        """Say nothing: machines wait for the result."""

    def error(self, error: BaseException, message: str) -> None:
        """Print the error's name and its message."""
        self.result({"error": type(error).__name__, "message": message}, "")

    @contextmanager
    def bar(self, label: str, size: int | None) -> Iterator[Advance]:
        """Show nothing."""
        yield lambda _count: None

    @contextmanager
    def live(self, columns: Sequence[str]) -> Iterator[Show]:
        """Show nothing: a machine asks again when it wants to know."""
        yield lambda _rows: None


def make_screen(*, json: bool) -> Screen:
    """Return the screen for these standard streams: machine, terminal, or plain."""
    if json:
        return JsonScreen()
    if sys.stdout.isatty() or sys.stderr.isatty():
        try:
            from snapstore.cli.rich_screen import RichScreen
        except ImportError:  # Nothing is missing then but colours and bars.
            return PlainScreen()
        return RichScreen()
    return PlainScreen()


@contextmanager
def transfer_bar(screen: Screen, label: str, size: int | None) -> Iterator[Progress]:
    """Yield a `Progress` for a transfer on this thread, watched and shown by another one.

    The transfer stays on the main thread, so that Ctrl-C ends it.
    """
    from snapstore._fastpipe import Progress

    progress = Progress()
    over = threading.Event()
    with screen.bar(label, size) as advance:

        def watch() -> None:
            while not over.wait(POLL_INTERVAL_S):
                advance(progress.bytes)

        watcher = threading.Thread(target=watch, name="snapstore-bar", daemon=True)
        watcher.start()
        try:
            yield progress
        finally:
            over.set()
            watcher.join()
            advance(progress.bytes)


def format_size(size: float) -> str:
    """Return a size in bytes as people read it: `1.5 GiB`."""
    if size < 1024:
        return f"{size:.0f} B"
    for unit in ("KiB", "MiB", "GiB"):
        size /= 1024
        if size < 1023.95:
            return f"{size:.1f} {unit}"
    return f"{size / 1024:.1f} TiB"


def format_rate(size: float, elapsed_s: float) -> str:
    """Return bytes by seconds as people read it."""
    return f"{format_size(size / elapsed_s)}/s" if elapsed_s > 0 else "-"
