"""All that was measured in one go, as one value: the machine, the comparisons, and what is said of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from snapstore.bench.comparison import Comparison, Spread

if TYPE_CHECKING:
    from snapstore.bench.machine import Machine

#: Of the JSON: raised when a field changes its meaning or goes.
SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a ratio ought to be: `floor` below which something is broken, the `goal`, the `wish` beyond it.

    Where `at_most`, less is better, and beyond the floor is above it.
    """

    floor: float
    goal: float | None = None
    wish: float | None = None
    at_most: bool = False

    def holds(self, ratio: float) -> bool:
        """Whether nothing is broken."""
        return ratio <= self.floor if self.at_most else ratio >= self.floor

    def reached(self, ratio: float) -> bool | None:
        """Whether it is as it ought to be; None where there is no goal."""
        if self.goal is None:
            return None
        return ratio <= self.goal if self.at_most else ratio >= self.goal

    def to_json(self) -> dict[str, Any]:
        """Return it for machines."""
        return {"floor": self.floor, "goal": self.goal, "wish": self.wish, "at_most": self.at_most}


@dataclass(frozen=True, slots=True)
class Line:
    """One ratio that is told: which way against which, of `rate`, or of the `cpu` for each byte."""

    name: str
    ours: str
    baseline: str
    of: str = "rate"
    bounds: Bounds | None = None

    def ratio(self, comparison: Comparison) -> Spread:
        """Return it."""
        made = {"rate": comparison.ratio, "cpu": comparison.cpu_ratio}[self.of]
        return made(self.ours, self.baseline)


@dataclass(frozen=True, slots=True)
class Result:
    """One comparison, and the ratios that are told of it. `size` in bytes; `neighbour` is idle or busy."""

    name: str
    comparison: Comparison
    size: int
    lines: Sequence[Line]
    neighbour: str = "idle"

    def to_json(self) -> dict[str, Any]:
        """Return everything for machines."""
        return {
            "name": self.name,
            "neighbour": self.neighbour,
            "size": self.size,
            "rounds": self.comparison.rounds,
            "ways": self.comparison.to_json(),
            "ratios": [
                {
                    "name": line.name,
                    "ours": line.ours,
                    "baseline": line.baseline,
                    "of": line.of,
                    **line.ratio(self.comparison).to_json(),
                    "bounds": line.bounds.to_json() if line.bounds else None,
                }
                for line in self.lines
            ],
        }


@dataclass(slots=True)
class Report:
    """What one run found. `left_out` says what could not be measured, and why."""

    machine: Machine
    results: list[Result] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return everything for machines."""
        return {
            "schema": SCHEMA_VERSION,
            "machine": self.machine.to_json(),
            "comparisons": [result.to_json() for result in self.results],
            "left_out": self.left_out,
        }
