"""What was found of one thing: how bad it is, what it means, and what to change.

Values only. Sizes and ages stand apart from the words, so that a screen says them as it says others.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any


class Level(enum.Enum):
    """How bad it is. Only a PROBLEM makes an examination end badly."""

    OK = "ok"
    #: It costs room or time, and no promise is broken.
    HINT = "hint"
    #: Something promised does not hold: bytes are wrong, or a power cut may take them, or no save works.
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. `kind` names the finding for machines and stays as it is.

    `subject` is a name in the directory, or a part of what it stands on. `seen`, `means` and `advice` are
    words for people, the last two empty where all is well. `size` in bytes, `age_s` in seconds.
    """

    kind: str
    subject: str
    level: Level
    seen: str
    means: str = ""
    advice: str = ""
    size: int | None = None
    age_s: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return what is told of it to machines."""
        return {
            "kind": self.kind,
            "subject": self.subject,
            "level": self.level.value,
            "seen": self.seen,
            "means": self.means,
            "advice": self.advice,
        }
