"""The committed floors, read: what each ratio that is guarded ought to be."""

from __future__ import annotations

import sys
from pathlib import Path

from snapstore.bench.report import Bounds

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest brings it there.

FILE = Path(__file__).with_name("floors.toml")


def read_floors(text: str | None = None) -> dict[str, Bounds]:
    """Return the bounds by the names of the ratios, of the committed file or of a text like it.

    Raises ValueError for an entry without a reason, or whose goal or wish is not beyond what comes before.
    """
    floors = {}
    for name, entry in tomllib.loads(FILE.read_text() if text is None else text).items():
        if not entry.pop("reason", ""):
            raise ValueError(f"{name} has no reason")
        floors[name] = bounds = Bounds(**entry)
        steps = [step for step in (bounds.floor, bounds.goal, bounds.wish) if step is not None]
        if steps != sorted(steps, reverse=bounds.at_most):
            raise ValueError(f"{name}: from floor to goal to wish it has to become better, not {steps}")
    return floors
