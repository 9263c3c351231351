"""A report for a terminal: plain text in columns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from snapstore.bench.report import Line, Report, Result

_WAY_HEADS = ("", "GB/s", "lowest to highest", "CPU s/GB")
_RATIO_HEADS = ("", "ratio", "lowest to highest", "floor", "goal", "")


def table(report: Report) -> str:
    """Return all of it: the machine, then each comparison, its ways and its ratios."""
    parts = [_columns(report.machine.rows())]
    for result in report.results:
        parts += [_ways(result), _columns([_RATIO_HEADS, *(_ratio(result, line) for line in result.lines)])]
    parts += [f"LEFT OUT: {words}" for words in report.left_out]
    return "\n\n".join(parts) + "\n"


def title(result: Result) -> str:
    """Return what a comparison is called, and how it was made."""
    beside = " beside a busy Python thread" if result.neighbour == "busy" else ""
    rounds = result.comparison.rounds
    return f"{result.name}{beside}: {result.size / 1e6:.4g} MB, {rounds} round{'s' * (rounds != 1)}"


def figure(number: float) -> str:
    """Return a figure as people read it: `0.087`, `0.85`, `1.85`, `12.4`, `254`."""
    if number < 0.0995:
        return f"{number:.2g}"
    decimals = 2 if number < 9.995 else 1 if number < 99.95 else 0
    return f"{number:.{decimals}f}"


def _ways(result: Result) -> str:
    rows = []
    for name in result.comparison.samples:
        rate, cpu = result.comparison.gb_s(name), result.comparison.cpu_s_per_gb(name)
        spread = f"{figure(rate.low)} to {figure(rate.high)}"
        rows.append((f"  {name}", figure(rate.median), spread, figure(cpu.median) if cpu else "-"))
    return f"{title(result)}\n{_columns([_WAY_HEADS, *rows])}"


def _ratio(result: Result, line: Line) -> tuple[str, ...]:
    spread, bounds = line.ratio(result.comparison), line.bounds
    told = (f"  {line.name}", figure(spread.median), f"{figure(spread.low)} to {figure(spread.high)}")
    if bounds is None:
        return (*told, "", "", "")
    sign = "<=" if bounds.at_most else ">="
    goal = "" if bounds.goal is None else f"{sign} {bounds.goal:g}"
    if not bounds.holds(spread.median):
        verdict = "BROKEN"
    else:
        verdict = {None: "", True: "reached", False: "missed"}[bounds.reached(spread.median)]
    return (*told, f"{sign} {bounds.floor:g}", goal, verdict)


def _columns(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]

    def lines() -> Iterator[str]:
        for row in rows:
            yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()

    return "\n".join(lines())
