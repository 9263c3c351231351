"""All transfers of a node: which are under way, how the last ones ended, and what they come to.

It must not know how bytes are moved, nor who looks. Give one `TransferRegistry` to the node's store,
clients and servers: whoever moves a snapshot does it within `watch`, which counts it, logs its start and
its end, and tells the node.
"""

from __future__ import annotations

import json
import logging
import threading
import time
import weakref
from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from snapstore._fastpipe import Progress
from snapstore.metrics import TRANSFER_BOUNDS_S, Histogram
from snapstore.transfer import OUTCOMES, Direction, State, Transfer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from snapstore.lease import Lease

logger = logging.getLogger("snapstore.transfers")

#: How many ended transfers are remembered: more than a screen shows, less than a storm of offers brings.
ENDED_MAX = 100


class PinHolder(Protocol):
    """Who pins snapshots: a store."""

    @property
    def pinned_age_s(self) -> float | None:
        """How long it has held its snapshot, in seconds; None without one."""

    def leases(self) -> list[Lease]:
        """Return the leases that keep its snapshot pinned; all cost the same, which is the pin's."""


class TransferRegistry:
    """The transfers of one node. From any thread.

    `on_change(transfer)` is called when one begins and when it has ended, on the thread that moves it,
    so it must be quick; what it raises is logged. `ended_max` ended ones are remembered. `monotonic`
    gives seconds.
    """

    def __init__(
        self,
        *,
        ended_max: int = ENDED_MAX,
        on_change: Callable[[Transfer], object] | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        if ended_max < 0:
            raise ValueError(f"ended_max is 0 or more, not {ended_max}")
        self._listeners: tuple[Callable[[Transfer], object], ...] = (on_change,) if on_change else ()
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._live: list[Transfer] = []
        self._ended: deque[Transfer] = deque(maxlen=ended_max)
        self._ended_bytes = dict.fromkeys(Direction, 0)
        self._seconds = {(way, end): Histogram(TRANSFER_BOUNDS_S) for way in Direction for end in OUTCOMES}
        # Weakly: a store that nobody holds any more has no say in what is pinned.
        self._pin_holders: weakref.WeakSet[PinHolder] = weakref.WeakSet()

    def transfers(self) -> list[Transfer]:
        """Return those under way, then those that have ended; the youngest of each first."""
        with self._lock:
            return [*reversed(self._live), *reversed(self._ended)]

    def tell(self, listener: Callable[[Transfer], object]) -> None:
        """From now on call `listener` as `on_change` is called. One that fails keeps none from the others."""
        with self._lock:
            self._listeners += (listener,)

    @contextmanager
    def watch(
        self,
        direction: Direction,
        peer: str,
        index: int,
        *,
        total: int | None = None,
        progress: Progress | None = None,
    ) -> Iterator[Transfer]:
        """Show what is done inside as a transfer; how the block is left says how it ended.

        `progress` is what the bytes are counted in, from where it stands; None: a new one.
        """
        transfer = Transfer(
            direction,
            peer,
            index,
            total=total,
            progress=Progress() if progress is None else progress,
            started_s=time.time(),
            monotonic=self._monotonic,
        )
        try:
            # Within `try`: whatever comes now, Ctrl-C too, is an end.
            with self._lock:
                self._live.append(transfer)
            self._report("begins", transfer)
            yield transfer
        except BaseException as error:
            self._settle(transfer, error)
            raise
        self._settle(transfer, None)

    def watch_pins(self, holder: PinHolder) -> None:
        """Count what `holder` pins, as long as there is such an object."""
        with self._lock:
            self._pin_holders.add(holder)

    @property
    def pinned_age_s(self) -> float:
        """How long the oldest snapshot has been pinned, in seconds; 0 where none is."""
        with self._lock:
            holders = list(self._pin_holders)
        return max((holder.pinned_age_s or 0.0 for holder in holders), default=0.0)

    def leases(self) -> list[Lease]:
        """Return what keeps snapshots pinned."""
        return [lease for leases in self._pin_leases() for lease in leases]

    @property
    def pinned_bytes(self) -> int:
        """What the KVs cannot use again for pins that are lent, in bytes, as far as they tell."""
        return sum(leases[0].bytes_held or 0 for leases in self._pin_leases() if leases)

    def _pin_leases(self) -> list[list[Lease]]:
        with self._lock:
            holders = list(self._pin_holders)
        return [holder.leases() for holder in holders]

    def in_flight(self) -> dict[Direction, int]:
        """Return how many are under way."""
        with self._lock:
            return {way: sum(transfer.direction is way for transfer in self._live) for way in Direction}

    def moved(self) -> dict[Direction, int]:
        """Return how many bytes were moved, by those under way too; never less than before."""
        with self._lock:
            moved = dict(self._ended_bytes)
            for transfer in self._live:
                moved[transfer.direction] += transfer.moved
        return moved

    @property
    def seconds(self) -> Mapping[tuple[Direction, State], Histogram]:
        """How long they took, by direction and outcome."""
        return self._seconds

    def _settle(self, transfer: Transfer, error: BaseException | None) -> None:
        with self._lock:
            last = transfer.end(error)
            self._live = [other for other in self._live if other is not transfer]
            self._ended.append(transfer)
            self._ended_bytes[transfer.direction] += transfer.moved
        self._seconds[transfer.direction, last.state].observe(last.elapsed_s)
        self._report("ends", transfer)

    def _report(self, what: str, transfer: Transfer) -> None:
        if logger.isEnabledFor(logging.INFO):
            fields = transfer.to_json()
            logger.info("transfer %s %s", what, to_text(fields), extra=fields)
        for listener in self._listeners:
            try:
                listener(transfer)
            except Exception:
                logger.exception("on_change failed; the transfer goes on")

    def __repr__(self) -> str:
        return f"<TransferRegistry {len(self._live)} under way, {len(self._ended)} ended>"


def to_text(fields: Mapping[str, Any]) -> str:
    """Return `fields` as key=value, on one line whatever they have; what has spaces is quoted."""
    return " ".join(f"{key}={_value_text(value)}" for key, value in fields.items())


def _value_text(value: object) -> str:
    text = json.dumps(value)
    # A word stands as it is; all else as JSON, which has no line ends and no ambiguous quotes.
    plain = text[1:-1] if isinstance(value, str) else text
    return plain if plain and plain == str(value) and not set(plain) & set(' "=') else text
