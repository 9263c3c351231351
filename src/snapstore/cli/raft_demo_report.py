"""What the raft demo found: the figures of each way, compared, and as rows beside each other.

Values in, values and text out: no processes and no screens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from snapstore.cli.demo_machine import Memory
from snapstore.cli.demo_store import Content
from snapstore.cli.raft_demo_ticks import Stalls
from snapstore.cli.screen import format_rate, format_size


@dataclass(frozen=True, slots=True)
class Span:
    """What one node measured over a span of time, in seconds and commits a second.

    `waited_s` is for how long its transfers, all together, waited for their turn.
    """

    elapsed_s: float
    commits_per_s: float
    cpu_s: float
    waited_s: float
    memory: Memory
    stalls: Stalls

    @classmethod
    def from_event(cls, event: dict[str, Any]) -> Span:
        """Make it of what a node told."""
        memory, stalls = Memory(**event.pop("memory")), Stalls(**event.pop("stalls"))
        return cls(memory=memory, stalls=stalls, **event)


@dataclass(frozen=True, slots=True)
class Final:
    """What a node has at the end: its last applied index, and its content."""

    applied: int
    content: Content


@dataclass(frozen=True, slots=True)
class Outcome:
    """One way, played to its end. Sizes in bytes, times in seconds.

    `caught_up_s` is the time from the start of the new process until it had applied all that the leader
    had committed; `handed_over_s` that from its first word from a leader until it went on from the
    snapshot. Both are None where that took longer than `limit_s`. Spans are the leader's: with all
    nodes, while the snapshot was made, until the new node had caught up, and behind that.
    """

    size: int
    limit_s: float
    caught_up_s: float | None
    handed_over_s: float | None
    elections: int
    before: Span
    making: Span
    during: Span
    after: Span
    newcomer: Span
    finals: dict[str, Final]

    @property
    def differences(self) -> list[str]:
        """What is not as it must be, in words; empty where all is."""
        found = []
        if self.caught_up_s is None:
            found.append(f"the node that came back did not catch up in {self.limit_s:g} s")
        if self.elections:
            found.append(f"there were {self.elections} elections, from the kill to the end")
        (first, expected), *others = self.finals.items()
        for name, final in others:
            for field in ("keys", "size", "digest"):
                there, here = getattr(expected.content, field), getattr(final.content, field)
                if there != here:
                    found.append(f"{field} of the content of {first} is {there}, of {name} {here}")
            if expected.applied != final.applied:
                found.append(f"{first} applied {expected.applied} entries, {name} {final.applied}")
        return found

    def to_json(self) -> dict[str, Any]:
        """Return everything for JSON, with the throughput and the differences."""
        rate = None if self.handed_over_s is None else self.size / self.handed_over_s
        return {**asdict(self), "throughput_bytes_per_s": rate, "differences": self.differences}


@dataclass(frozen=True, slots=True)
class RaftReport:
    """The demo's ways: tickets, and those that were asked for besides: paced, and PySyncObj's own dumps."""

    nodes: int
    file_system: str
    tickets: Outcome
    paced: Outcome | None = None
    own_dumps: Outcome | None = None

    @property
    def differences(self) -> list[str]:
        """What is wrong with the tickets' way, paced where that was asked for.

        The others are shown as they are, and judged by nobody.
        """
        return (self.paced or self.tickets).differences

    def to_json(self) -> dict[str, Any]:
        """Return everything for JSON."""
        return {
            "nodes": self.nodes,
            "file_system": self.file_system,
            "tickets": self.tickets.to_json(),
            "paced": self.paced and self.paced.to_json(),
            "own_dumps": self.own_dumps and self.own_dumps.to_json(),
            "identical": not self.differences,
        }

    def columns(self) -> tuple[str, ...]:
        """Return the heads of the columns."""
        return ("", *self._ways())

    def rows(self) -> list[tuple[str, ...]]:
        """Return what people read: a name, and a value of each way."""
        return [(name, *map(text, self._ways().values())) for name, text in _ROWS]

    def _ways(self) -> dict[str, Outcome]:
        ways = {"tickets": self.tickets, "paced": self.paced, "PySyncObj's own dumps": self.own_dumps}
        return {name: outcome for name, outcome in ways.items() if outcome is not None}


def _time(outcome: Outcome, time_s: float | None) -> str:
    return f"never, in {outcome.limit_s:g} s" if time_s is None else f"{time_s:.2f} s"


def _throughput(outcome: Outcome) -> str:
    time_s = outcome.handed_over_s
    return "-" if time_s is None else f"{format_rate(outcome.size, time_s)} ({time_s:.2f} s)"


def _stalls(span: Span) -> str:
    stalls = span.stalls
    return f"{stalls.p50_s * 1000:.0f} / {stalls.p99_s * 1000:.0f} / {stalls.max_s * 1000:.0f} ms"


def _cost(span: Span) -> str:
    return f"{span.cpu_s:.2f} s, +{format_size(span.memory.anonymous_growth)}"


def _waits(outcome: Outcome) -> str:
    return f"{outcome.making.waited_s + outcome.during.waited_s:.2f} s, {outcome.newcomer.waited_s:.2f} s"


def _comparison(outcome: Outcome) -> str:
    if outcome.differences:
        return f"DIFFERENT: {'; '.join(outcome.differences)}"
    final = next(iter(outcome.finals.values()))
    return f"identical: {len(outcome.finals)} nodes, {final.content.keys} keys, index {final.applied}"


_ROWS: tuple[tuple[str, Callable[[Outcome], str]], ...] = (
    ("store", lambda outcome: format_size(outcome.size)),
    ("caught up, from its start", lambda outcome: _time(outcome, outcome.caught_up_s)),
    ("handed over: sent, saved, restored", _throughput),
    ("elections meanwhile", lambda outcome: str(outcome.elections)),
    ("commits/s before", lambda outcome: f"{outcome.before.commits_per_s:.0f}"),
    ("commits/s while it is made", lambda outcome: f"{outcome.making.commits_per_s:.0f}"),
    ("commits/s until caught up", lambda outcome: f"{outcome.during.commits_per_s:.0f}"),
    ("commits/s after", lambda outcome: f"{outcome.after.commits_per_s:.0f}"),
    ("leader stands still (p50/p99/max) before", lambda outcome: _stalls(outcome.before)),
    ("leader while it is made", lambda outcome: _stalls(outcome.making)),
    ("leader until caught up", lambda outcome: _stalls(outcome.during)),
    ("new node until caught up", lambda outcome: _stalls(outcome.newcomer)),
    ("leader's CPU and memory meanwhile", lambda outcome: _cost(outcome.during)),
    ("new node's", lambda outcome: _cost(outcome.newcomer)),
    ("waits for its turn: leader, new node", _waits),
    ("comparison", _comparison),
)
