"""Colours, tables and bars, by rich. Imported only where a terminal is there to show them."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich import box
from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from snapstore.cli.screen import Advance, PlainScreen, Rows, Show, format_rate, format_size

#: How a cell is shown that begins with one of these words.
_STYLES = {
    "ok": "green",
    "done": "green",
    "identical": "bold green",
    "DIFFERENT": "bold red",
    "stalled": "bold red",
    "failed": "red",
    "refused": "yellow",
}


class RichScreen(PlainScreen):
    """A `Screen` for a terminal. What goes to a stream that is none is plain."""

    def __init__(self) -> None:
        self._out = Console(highlight=False, soft_wrap=True)
        self._err = Console(stderr=True, highlight=False, soft_wrap=True)

    def table(self, fields: Mapping[str, Any], columns: Sequence[str], rows: Rows, title: str = "") -> None:
        """Print a table."""
        if not self._out.is_terminal:
            super().table(fields, columns, rows, title)
            return
        Console(highlight=False).print(_table(columns, rows, title))

    def note(self, text: str) -> None:
        """Print a dim line."""
        self._err.print(Text(text, style="dim"))

    def error(self, error: BaseException, message: str) -> None:
        """Print it with the reason to look first."""
        self._err.print(Text.assemble(("snapstore: error: ", "bold red"), message))

    @contextmanager
    def bar(self, label: str, size: int | None) -> Iterator[Advance]:
        """Show a bar with bytes, rate and time left; two lines where standard error is no terminal."""
        if not sys.stderr.isatty() or self._err.is_dumb_terminal:
            with super().bar(label, size) as advance:
                yield advance
            return
        columns = (
            TextColumn("{task.description}", style="cyan"),
            BarColumn(bar_width=24),
            _BytesColumn(),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
        )
        with Progress(*columns, console=self._err) as progress:
            task = progress.add_task(f"{label:<22}", total=size)
            yield lambda count: progress.update(task, completed=count)

    @contextmanager
    def live(self, columns: Sequence[str]) -> Iterator[Show]:
        """Show the table in place; one after the other where standard output is no terminal."""
        if not self._out.is_terminal or self._out.is_dumb_terminal:
            with super().live(columns) as show:
                yield show
            return
        console = Console(highlight=False)
        with Live(console=console, auto_refresh=False) as live:
            yield lambda rows: live.update(_table(columns, rows, ""), refresh=True)


def _table(columns: Sequence[str], rows: Rows, title: str) -> Table:
    table = Table(
        title=title or None,
        title_justify="left",
        show_header=any(columns),
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    for place, column in enumerate(columns):
        table.add_column(column, style="cyan" if place == 0 else None, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell, style=_STYLES.get(cell.partition(":")[0], "")) for cell in row))
    return table


class _BytesColumn(ProgressColumn):
    """Bytes done and bytes per second, in the units that the rest of the program uses."""

    def render(self, task: Task) -> Text:
        if task.finished_time:
            return Text(f"{format_size(task.completed)} {format_rate(task.completed, task.finished_time)}")
        rate = f" {format_size(task.speed)}/s" if task.speed else ""
        return Text(f"{format_size(task.completed)}{rate}")
