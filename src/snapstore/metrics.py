"""Numbers that others scrape: counters and histograms, and Prometheus' text format to tell them in.

It must not know what is counted, nor how the page gets to whoever reads it. The format is a dozen lines
to write (text format 0.0.4), so no library is needed for it.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence

#: What a page is called in HTTP.
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

#: In seconds: an fsync on flash takes a millisecond, and one of seconds loses an election.
FSYNC_BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

#: In seconds: from an offer that is refused at once to a snapshot of terabytes on a slow link.
TRANSFER_BOUNDS_S = (0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14400.0)

_ESCAPES = str.maketrans({"\\": r"\\", "\n": r"\n", '"': r"\""})
_HELP_ESCAPES = str.maketrans({"\\": r"\\", "\n": r"\n"})

Labels = Mapping[str, str]


class Counter:
    """Only grows. From any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.value = 0

    def add(self, count: int = 1) -> None:
        """Count `count` more."""
        with self._lock:
            self.value += count


class Histogram:
    """How often a value was at most each of `bounds`, which rise. From any thread."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self._lock = threading.Lock()
        self._counts = [0] * (len(self.bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Count one more, of this value."""
        with self._lock:
            self._counts[bisect_left(self.bounds, value)] += 1
            self._sum += value

    def read(self) -> tuple[list[int], float]:
        """Return how many were at most each bound, then how many there were at all; and their sum."""
        with self._lock:
            counts, total = list(self._counts), self._sum
        for place in range(1, len(counts)):
            counts[place] += counts[place - 1]
        return counts, total


class Page:
    """One answer to a scrape. One thread; each name comes once, with all its samples."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def counter(self, name: str, words: str, samples: Iterable[tuple[Labels, float]]) -> None:
        """Write what only grows; `name` ends in `_total`, and `words` say what it is."""
        self._family("counter", name, words, samples)

    def gauge(self, name: str, words: str, samples: Iterable[tuple[Labels, float]]) -> None:
        """Write what goes up and down."""
        self._family("gauge", name, words, samples)

    def histogram(self, name: str, words: str, samples: Iterable[tuple[Labels, Histogram]]) -> None:
        """Write histograms; `name` ends in their unit."""
        self._head("histogram", name, words)
        for labels, histogram in samples:
            counts, total = histogram.read()
            for bound, count in zip((*histogram.bounds, float("inf")), counts, strict=True):
                self._sample(f"{name}_bucket", {**labels, "le": _number(bound)}, count)
            self._sample(f"{name}_sum", labels, total)
            self._sample(f"{name}_count", labels, counts[-1])

    def encode(self) -> bytes:
        """Return the page."""
        return "".join(f"{line}\n" for line in self._lines).encode()

    def _family(self, kind: str, name: str, words: str, samples: Iterable[tuple[Labels, float]]) -> None:
        self._head(kind, name, words)
        for labels, value in samples:
            self._sample(name, labels, value)

    def _head(self, kind: str, name: str, words: str) -> None:
        self._lines += [f"# HELP {name} {words.translate(_HELP_ESCAPES)}", f"# TYPE {name} {kind}"]

    def _sample(self, name: str, labels: Labels, value: float) -> None:
        text = ",".join(f'{label}="{told.translate(_ESCAPES)}"' for label, told in labels.items())
        self._lines.append(f"{name}{{{text}}} {_number(value)}" if text else f"{name} {_number(value)}")


def _number(value: float) -> str:
    return "+Inf" if value == float("inf") else repr(value)
