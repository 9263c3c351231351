"""A report as a picture: each ratio a dot, a bar from 1 to it, its spread, floor and goal. SVG, by hand.

The picture brings its own background, in a light and in a dark kind, so that it can be read on any page.
The axis is logarithmic: twice as fast is as far from 1 as half as fast.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

from snapstore.bench.table import figure, title

if TYPE_CHECKING:
    from snapstore.bench.comparison import Spread
    from snapstore.bench.report import Bounds, Report

_Row = tuple[str, "Spread", "Bounds | None"]

#: In pixels of the picture's own. A page shows it some 900 wide.
_WIDTH, _MARGIN = 940, 24
_LABEL_WIDTH, _VALUE_WIDTH = 330, 172
_ROW_HEIGHT, _BAR_HEIGHT, _TITLE_HEIGHT, _DOT = 27, 8, 34, 5.5
_HEAD_HEIGHT, _FOOT_HEIGHT = 48, 74
_LEFT, _RIGHT = _MARGIN + _LABEL_WIDTH, _WIDTH - _MARGIN - _VALUE_WIDTH

#: What the axis shows at least: half as fast to twice as fast.
_AXIS_LOW, _AXIS_HIGH = 0.5, 2.0

_TICKS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)

#: What the colours of the bars mean; the last one is for ratios that nobody has set a goal.
_KINDS = (
    ("good", "goal reached"),
    ("short", "goal missed"),
    ("broken", "floor broken"),
    ("plain", "no goal"),
)

_STYLE = """
text { font: 13px system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif; fill: #1f2328 }
.title { font-size: 16px; font-weight: 600 } .part { font-weight: 600 } .small { font-size: 11.5px }
.small, .grey { fill: #59636e } .end { text-anchor: end } .middle { text-anchor: middle }
.value { font-variant-numeric: tabular-nums; font-weight: 600 }
.card { fill: #ffffff; stroke: #d1d9e0 } .grid { stroke: #d1d9e0; stroke-dasharray: 2 3 }
.one { stroke: #59636e } .whisker { stroke: #1f2328; stroke-width: 1.3; fill: none }
.dot { stroke: #1f2328; stroke-width: 1.3 }
.good { fill: #4ac26b } .short { fill: #54aeff } .broken { fill: #ff8182 } .plain { fill: #afb8c1 }
.floor { stroke: #cf222e; stroke-width: 2.4 } .goal { stroke: #bf8700; stroke-width: 2.4 }
@media (prefers-color-scheme: dark) {
text { fill: #f0f6fc } .small, .grey { fill: #9198a1 }
.card { fill: #0d1117; stroke: #3d444d } .grid { stroke: #3d444d } .one { stroke: #9198a1 }
.whisker, .dot { stroke: #f0f6fc } .floor { stroke: #f85149 } .goal { stroke: #e3b341 }
.good { fill: #238636 } .short { fill: #1f6feb } .broken { fill: #8e1519 } .plain { fill: #656c76 }
}"""


def plot(report: Report) -> str:
    """Return an SVG of every ratio in the report, those of one comparison together."""
    parts: list[tuple[str, list[_Row]]] = [
        (title(result), [(line.name, line.ratio(result.comparison), line.bounds) for line in result.lines])
        for result in report.results
    ]
    rows = [row for _, own in parts for row in own]
    place = _axis(rows)
    bottom = _HEAD_HEIGHT + _TITLE_HEIGHT * len(parts) + _ROW_HEIGHT * len(rows) + 8
    height = bottom + _FOOT_HEIGHT
    size = f'width="{_WIDTH}" height="{height}" viewBox="0 0 {_WIDTH} {height}"'
    drawn = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">',
        "<title>snapstore against its baselines</title>",
        f"<style>{_STYLE}</style>",
        f'<rect class="card" x="0.5" y="0.5" width="{_WIDTH - 1}" height="{height - 1}" rx="8"/>',
        _text(_MARGIN, 32, "How many times its baseline: median, lowest and highest of all rounds", "title"),
        *_grid(place, bottom),
    ]
    y = _HEAD_HEIGHT
    for name, own in parts:
        drawn.append(_text(_MARGIN, y + _TITLE_HEIGHT - 9, name, "part"))
        y += _TITLE_HEIGHT
        for row in own:
            drawn += _bar(row, place, y + _ROW_HEIGHT / 2)
            y += _ROW_HEIGHT
    if any(bounds for _, _, bounds in rows):
        drawn += _key(bottom + 42)
    drawn += [_text(_MARGIN, bottom + 60, _machine(report), "small"), "</svg>"]
    return "\n".join(drawn) + "\n"


class _Axis:
    """Where a ratio lies between the left and the right, by its logarithm."""

    def __init__(self, low: float, high: float) -> None:
        self.low, self.high = low, high

    def __call__(self, ratio: float) -> float:
        share = math.log(ratio / self.low) / math.log(self.high / self.low)
        return round(_LEFT + share * (_RIGHT - _LEFT), 1)


def _axis(rows: Sequence[_Row]) -> _Axis:
    """An axis that has room for all: ratios, floors, goals, and a little beside them."""
    shown = [_AXIS_LOW, _AXIS_HIGH]
    for _, spread, bounds in rows:
        shown += [spread.low, spread.high]
        if bounds:
            shown += [mark for mark in (bounds.floor, bounds.goal) if mark]
    return _Axis(min(shown) / 1.1, max(shown) * 1.1)


def _grid(place: _Axis, bottom: float) -> Iterator[str]:
    for tick in _TICKS:
        if place.low <= tick <= place.high:
            kind = "one" if tick == 1 else "grid"
            yield _line(kind, place(tick), _HEAD_HEIGHT + _TITLE_HEIGHT - 4, place(tick), bottom)
            yield _text(place(tick), bottom + 16, f"{tick:g}", "small middle")


def _bar(row: _Row, place: _Axis, middle: float) -> Iterator[str]:
    name, spread, bounds = row
    kind = _kind(spread, bounds)
    left, right = sorted((place(1), place(spread.median)))
    yield _text(_LEFT - 12, middle + 4.5, name.replace("-", " "), "end")
    yield (
        f'<rect class="{kind}" x="{left}" y="{middle - _BAR_HEIGHT / 2}"'
        f' width="{right - left:.1f}" height="{_BAR_HEIGHT}"/>'
    )
    for name, mark in (("floor", bounds.floor), ("goal", bounds.goal)) if bounds else ():
        if mark is not None:
            yield _line(name, place(mark), middle - 10, place(mark), middle + 10)
    yield f'<path class="whisker" d="M{place(spread.low)} {middle - 4}v8m0 -4H{place(spread.high)}m0 -4v8"/>'
    yield f'<circle class="{kind} dot" cx="{place(spread.median)}" cy="{middle}" r="{_DOT}"/>'
    yield _text(_RIGHT + 44, middle + 4.5, figure(spread.median), "value end")
    yield _text(_RIGHT + 54, middle + 4.5, f"{figure(spread.low)} to {figure(spread.high)}", "grey")


def _kind(spread: Spread, bounds: Bounds | None) -> str:
    if bounds is None:
        return "plain"
    if not bounds.holds(spread.median):
        return "broken"
    return {None: "plain", True: "good", False: "short"}[bounds.reached(spread.median)]


def _key(y: float) -> Iterator[str]:
    """What the colours and the marks mean."""
    x = _MARGIN
    for kind, words in _KINDS:
        yield f'<rect class="{kind}" x="{x}" y="{y - 9}" width="10" height="10" rx="2"/>'
        yield _text(x + 15, y, words, "small")
        x += 112
    for kind in ("floor", "goal"):
        yield _line(kind, x + 4, y - 10, x + 4, y + 2)
        yield _text(x + 12, y, kind, "small")
        x += 62


def _machine(report: Report) -> str:
    machine = report.machine
    return (
        f"{machine.cpu}, {machine.cores} cores; {machine.file_system} on {machine.device};"
        f" Linux {machine.kernel}; {machine.python}"
    )


def _text(x: float, y: float, words: str, kind: str) -> str:
    return f'<text class="{kind}" x="{x}" y="{y}">{escape(words)}</text>'


def _line(kind: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="{kind}" x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}"/>'
