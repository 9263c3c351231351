"""What was measured, and the arithmetic on it: samples in, rates and ratios with their spread out.

Values only: no clocks, no files. Rates in GB/s are of 1e9 bytes. A ratio is made from each round by itself,
since the two that are compared were timed a second apart there, and then the median is taken.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

GB = 1e9


@dataclass(frozen=True, slots=True)
class Sample:
    """One run: seconds by the clock, CPU seconds of all processes that worked for it, and its bytes.

    The CPU seconds are None where nobody can tell them.
    """

    wall_s: float
    cpu_s: float | None
    size: int

    @property
    def gb_s(self) -> float:
        """GB per second."""
        return self.size / self.wall_s / GB

    @property
    def cpu_s_per_gb(self) -> float:
        """CPU seconds for each GB, of both sides where there are two. Raises ValueError where it is None."""
        if self.cpu_s is None:
            raise ValueError("nobody can tell how much CPU this took")
        return self.cpu_s / self.size * GB


@dataclass(frozen=True, slots=True)
class Spread:
    """The median of some figures, and the lowest and the highest of them."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, figures: Iterable[float]) -> Spread:
        """Return the spread of one figure or more."""
        ordered = sorted(figures)
        return cls(statistics.median(ordered), ordered[0], ordered[-1])

    def to_json(self) -> dict[str, float]:
        """Return it for machines."""
        return {"median": self.median, "low": self.low, "high": self.high}

    def __str__(self) -> str:
        return f"{self.median:.3g} ({self.low:.3g} to {self.high:.3g})"


class Comparison:
    """The samples of some ways, as many for each as there were rounds; the n-th ones of all are a round."""

    def __init__(self, samples: Mapping[str, Sequence[Sample]]) -> None:
        """Take what was measured, by the names of the ways. Raises ValueError where the rounds differ."""
        self.samples = {name: tuple(taken) for name, taken in samples.items()}
        counts = {len(taken) for taken in self.samples.values()}
        if len(counts) != 1 or 0 in counts:
            raise ValueError(f"each way has the same number of rounds, 1 or more, not {sorted(counts)}")
        self.rounds = counts.pop()

    def gb_s(self, name: str) -> Spread:
        """Return how fast a way was."""
        return Spread.of(sample.gb_s for sample in self.samples[name])

    def cpu_s_per_gb(self, name: str) -> Spread | None:
        """Return the CPU seconds that a way took for each GB; None where nobody can tell."""
        if any(sample.cpu_s is None for sample in self.samples[name]):
            return None
        return Spread.of(sample.cpu_s_per_gb for sample in self.samples[name])

    def ratio(self, ours: str, baseline: str) -> Spread:
        """Return how many times as fast as the baseline ours was: above 1 is faster."""
        return Spread.of(
            mine.gb_s / theirs.gb_s
            for mine, theirs in zip(self.samples[ours], self.samples[baseline], strict=True)
        )

    def cpu_ratio(self, ours: str, baseline: str) -> Spread:
        """Return how many times the CPU of the baseline ours took for the same bytes: below 1 is less.

        Raises ValueError where nobody can tell.
        """
        return Spread.of(
            mine.cpu_s_per_gb / theirs.cpu_s_per_gb
            for mine, theirs in zip(self.samples[ours], self.samples[baseline], strict=True)
        )

    def fastest(self, *names: str) -> str:
        """Return which of these was the fastest, by its median; the best that a baseline can do."""
        return max(names, key=lambda name: self.gb_s(name).median)

    def slowest(self, *names: str) -> str:
        """Return which of these was the slowest, by its median; what limits a work that needs them all."""
        return min(names, key=lambda name: self.gb_s(name).median)

    def to_json(self) -> list[dict[str, Any]]:
        """Return every sample for machines, and what was made of them."""
        return [
            {
                "name": name,
                "gb_s": self.gb_s(name).to_json(),
                "cpu_s_per_gb": cpu.to_json() if (cpu := self.cpu_s_per_gb(name)) else None,
                "samples": [
                    {"wall_s": sample.wall_s, "cpu_s": sample.cpu_s, "size": sample.size}
                    for sample in samples
                ],
            }
            for name, samples in self.samples.items()
        ]
