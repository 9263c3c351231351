"""What a check says is wrong: one rule for all harnesses here.

A check returns nothing when all is well, or a text, or several; it may raise instead. So an assertion
will do, and a check that forgot to say something is never mistaken for one that found nothing.
"""

from __future__ import annotations

from collections.abc import Iterable

from snapstore.testing.raised import Raised

#: What a check may return.
Found = Iterable[object] | str | None


def told(found: Found) -> tuple[str, ...]:
    """Return the problems that a check returned as texts."""
    if found is None:
        return ()
    if isinstance(found, str):
        return (found,) if found else ()
    return tuple(map(str, found))


def told_by(error: Exception) -> tuple[str, ...]:
    """Return the problem of a check that raised."""
    return (str(Raised.of(error)),)
