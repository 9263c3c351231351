"""Transfers as OpenTelemetry's spans: one for each, with the fields that the log has.

Needs the extra `otel`, which brings the API alone: where spans go is for the node's own SDK to say. It
must not know how bytes are moved, nor who looks.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from snapstore.errors import MissingExtra
from snapstore.transfer import OUTCOMES, Direction, State

try:
    from opentelemetry import trace
except ImportError as error:
    raise MissingExtra("spans need OpenTelemetry: pip install 'snapstore[otel]'") from error

if TYPE_CHECKING:
    from snapstore.transfer import Transfer
    from snapstore.transfers import TransferRegistry

#: What the spans are called. Low cardinality: peers and indexes are attributes.
SPAN_NAMES = {Direction.IN: "snapstore.receive", Direction.OUT: "snapstore.send"}

#: Larger numbers are no attribute's: the specification has signed 64 bits, and a peer's offer 64.
_NUMBER_MAX = 2**63 - 1

#: Ends that are errors; a cancelled transfer is somebody's wish.
_ERRORS = (State.REFUSED, State.FAILED)


class TransferSpans:
    """Makes a span of each transfer that begins in `registry` from now on. From any thread.

    A span's parent is the one that is current on the thread that moves the transfer: with
    `snapstore.aio` that of the task. `tracer` stands in for the global provider's.
    """

    def __init__(self, registry: TransferRegistry, tracer: trace.Tracer | None = None) -> None:
        self._tracer = tracer or trace.get_tracer("snapstore")
        self._lock = threading.Lock()
        self._spans: dict[Transfer, trace.Span] = {}
        registry.tell(self._look)

    def _look(self, transfer: Transfer) -> None:
        fields = transfer.to_json()
        known = {f"snapstore.{name}": _told(value) for name, value in fields.items() if value is not None}
        with self._lock:
            span = self._spans.pop(transfer, None)
        if span is not None:
            span.set_attributes(known)
            if transfer.state in _ERRORS:
                span.set_status(trace.StatusCode.ERROR, known.get("snapstore.error"))
            span.end()
        elif transfer.state not in OUTCOMES:  # Else it began before anybody looked.
            span = self._tracer.start_span(SPAN_NAMES[transfer.direction], attributes=known)
            with self._lock:
                self._spans[transfer] = span


def _told(value: Any) -> Any:
    """Return `value` as exporters take it: one that they cannot encode may cost a whole batch."""
    if isinstance(value, str):
        # A file's name in an error's words need not be UTF-8.
        return value.encode("utf-8", "backslashreplace").decode()
    return str(value) if isinstance(value, int) and value > _NUMBER_MAX else value
