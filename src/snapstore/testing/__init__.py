"""Simulated twins of the outside, and ways to prove a save, for tests of whoever embeds snapstore.

Public and kept stable like the rest of the package. Nothing here is imported by snapstore itself,
and nothing here needs a test framework.

Twins have the shape of what comes in through a constructor, plus the verbs with which a test drives it:

- `FakeClock`: a clock that a test moves; stands in for `clock.SystemClock`.
- `LetterReader`: a source whose every read is drawn as a letter, bad ones too.

Proofs take your own save, whatever it is made of:

- `syscall_sweep`: kill it before each system call, fail each call in every way; your check after each.
- `FaultyDisk`: record it once, lose what was not synced at every moment; your check of each crash state.
- `snapstore.testing.power_cut`: the same below real file systems (needs root).

`tracer` is what the first two stand on: a forked process held before each of its system calls.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from snapstore.testing.clock import FakeClock
from snapstore.testing.letters import LetterReader

if TYPE_CHECKING:
    from snapstore.testing.faulty_disk import FaultyDisk
    from snapstore.testing.sweep import syscall_sweep

__all__ = ["FakeClock", "FaultyDisk", "LetterReader", "syscall_sweep"]


def __getattr__(name: str) -> Any:
    # Loaded when asked for: they look at the machine, and most tests want a clock only.
    if name == "syscall_sweep":
        from snapstore.testing.sweep import syscall_sweep

        return syscall_sweep
    if name == "FaultyDisk":
        from snapstore.testing.faulty_disk import FaultyDisk

        return FaultyDisk
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
