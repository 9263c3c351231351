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


def read_floors() -> dict[str, Bounds]:
    """Return the bounds by the names of the ratios. Raises ValueError where an entry has no reason."""
    floors = {}
    for name, entry in tomllib.loads(FILE.read_text()).items():
        if not entry.pop("reason", ""):
            raise ValueError(f"{FILE.name}: {name} has no reason")
        floors[name] = Bounds(**entry)
    return floors
