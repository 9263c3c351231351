"""What the demo asks the machine: the memory of this process.

Linux's /proc, read; nothing is kept and nothing is shown here.
"""

from __future__ import annotations

import re
import threading
from contextlib import suppress
from dataclasses import dataclass

#: Between two looks at the memory: a transfer's buffers live for its whole length, so few are enough.
SAMPLE_INTERVAL_S = 0.02

_STATUS = re.compile(r"^(RssAnon|VmHWM):\s+([0-9]+) kB$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Memory:
    """What a process had during a span of time, in bytes.

    `anonymous_growth` is how much its own memory grew at most: heap, stacks, buffers. `resident_peak`
    counts the pages of mapped files, too, which belong to the page cache: with LMDB, most of it.
    """

    anonymous_growth: int
    resident_peak: int


class MemoryWatch:
    """Watches this process's memory from its making to `stop`, on a thread of its own."""

    def __init__(self) -> None:
        with suppress(OSError), open("/proc/self/clear_refs", "w") as clear:
            clear.write("5")  # The peak begins anew here (proc(5)); where that is refused, at the start.
        self._before = self._peak = _memory()["RssAnon"]
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="demo-memory", daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._over.wait(SAMPLE_INTERVAL_S):
            self._peak = max(self._peak, _memory()["RssAnon"])

    def stop(self) -> Memory:
        """End it; what was seen."""
        self._over.set()
        self._thread.join()
        memory = _memory()
        peak = max(self._peak, memory["RssAnon"])
        return Memory(anonymous_growth=peak - self._before, resident_peak=memory["VmHWM"])


def _memory() -> dict[str, int]:
    with open("/proc/self/status") as status:
        return {name: int(kib) * 1024 for name, kib in _STATUS.findall(status.read())}
