"""What the demo found: the measurements of both sides in one place, compared, and as rows.

Values in, values and text out: no processes and no screens.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from snapstore.cli.demo_machine import Memory
from snapstore.cli.demo_store import Content
from snapstore.cli.screen import format_rate, format_size


@dataclass(frozen=True, slots=True)
class Store:
    """One side's store as it is compared: what is in it, and the digest of the image."""

    content: Content
    image_digest: str


@dataclass(frozen=True, slots=True)
class Report:
    """What was measured. Sizes in bytes, times in seconds."""

    size: int
    index: int
    file_system: str
    pin_s: float
    transfer_s: float
    sync_s: float
    restore_s: float
    commits_per_s_before: float
    commits_per_s_during: float
    commits_during: int
    leader_memory: Memory
    follower_memory: Memory
    pinned: Store
    restored: Store

    @property
    def differences(self) -> list[str]:
        """In what the restored store differs from the pinned one; empty where they are the same."""
        return compare(self.pinned, self.restored)

    def to_json(self) -> dict[str, Any]:
        """Return everything for JSON, with the throughput and the outcome."""
        rates = {"throughput_bytes_per_s": self.size / self.transfer_s}
        return {**asdict(self), **rates, "identical": not self.differences, "differences": self.differences}

    def rows(self) -> list[tuple[str, str]]:
        """Return what people read: a name and a value each."""
        return [
            ("size", f"{format_size(self.size)} at index {self.index}"),
            ("file system", self.file_system),
            ("time to a snapshot", f"{self.pin_s * 1000:.1f} ms"),
            ("throughput", f"{_throughput(self)} ({self.transfer_s:.2f} s, last fsync included)"),
            ("last fsync", f"{self.sync_s * 1000:.1f} ms"),
            ("peak memory, leader", _memory_text(self.leader_memory)),
            ("peak memory, follower", _memory_text(self.follower_memory)),
            ("commits/s before", f"{self.commits_per_s_before:.0f} (each with its own fsync)"),
            ("commits/s during", f"{self.commits_per_s_during:.0f} ({self.commits_during} in all)"),
            ("restored in", f"{self.restore_s:.2f} s"),
            ("pinned", _store_text(self.pinned)),
            ("restored", _store_text(self.restored)),
            ("comparison", f"DIFFERENT: {'; '.join(self.differences)}" if self.differences else "identical"),
        ]


def compare(pinned: Store, restored: Store) -> list[str]:
    """Return in what the restored store differs from the pinned one, in words."""
    differences = []
    if pinned.image_digest != restored.image_digest:
        differences.append(f"the image pinned is {pinned.image_digest}, saved {restored.image_digest}")
    for name in ("keys", "size", "digest"):
        there, here = getattr(pinned.content, name), getattr(restored.content, name)
        if there != here:
            differences.append(f"{name} of the content pinned is {there}, restored {here}")
    return differences


def _throughput(report: Report) -> str:
    return format_rate(report.size, report.transfer_s)


def _memory_text(memory: Memory) -> str:
    growth, peak = format_size(memory.anonymous_growth), format_size(memory.resident_peak)
    return f"+{growth} of its own ({peak} with mapped files)"


def _store_text(store: Store) -> str:
    return f"{store.content.keys} keys {store.content.digest[:19]} {store.image_digest}"
