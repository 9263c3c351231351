"""When to come again, as HTTP says it: the field `Retry-After` (RFC 9110, 10.2.3), both ways.

Text in, seconds out, and back. No clocks: a date counts from the answer's own.
"""

from __future__ import annotations

import math
from datetime import timezone
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

#: Longer than any follower is busy; who waits as long as he is told must come again some day.
RETRY_AFTER_S_MAX = 3600.0


def advice_headers(retry_after_s: float | None) -> Sequence[tuple[str, str]]:
    """Return what tells a peer to come again after so many seconds, or later; nothing where that is None.

    A hook of the node's names them: what is no number of seconds is told as the most, or the least.
    """
    if retry_after_s is None:
        return ()
    # In whole seconds, and never 0, which would be a storm. `not <=` takes a NaN, too.
    bounded_s = RETRY_AFTER_S_MAX if not retry_after_s <= RETRY_AFTER_S_MAX else max(1.0, retry_after_s)
    return [("Retry-After", str(math.ceil(bounded_s)))]


def parse_advice(headers: Mapping[str, str]) -> float | None:
    """Return how many seconds an answer asks for, at most RETRY_AFTER_S_MAX; None where it does not.

    A proxy may give a date. One that has passed is 0 seconds, and what is neither is no advice.
    """
    text = headers.get("retry-after", "")
    if text.isascii() and text.isdigit():
        return min(float(text), RETRY_AFTER_S_MAX)
    try:
        until, now = parsedate_to_datetime(text), parsedate_to_datetime(headers.get("date", ""))
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    # HTTP's dates are of Greenwich, whatever zone they name.
    left = until.replace(tzinfo=timezone.utc) - now.replace(tzinfo=timezone.utc)
    return min(max(0.0, left.total_seconds()), RETRY_AFTER_S_MAX)
