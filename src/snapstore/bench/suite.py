"""What `snapstore bench` runs on a user's own disk: saves, then whole walks, each beside its baselines."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from snapstore.bench.content import Content
from snapstore.bench.machine import look_at_machine
from snapstore.bench.neighbour import busy_thread
from snapstore.bench.python_ways import (
    LEFT_OUT_BUSY,
    cold_copyfileobj_way,
    copyfileobj_ways,
    sendfile_way,
)
from snapstore.bench.report import Line, Report, Result
from snapstore.bench.rounds import Turns
from snapstore.bench.saves import save_ways
from snapstore.bench.stage import Stage
from snapstore.bench.walks import walk_ways
from snapstore.directory import SnapshotDir

if TYPE_CHECKING:
    from snapstore.bench.comparison import Comparison
    from snapstore.bench.ways import Way

#: The source, a stored snapshot and an LMDB store, and one copy that is being made.
COPIES = 4

Note = Callable[[str], None]


def run_suite(
    directory: Path,
    *,
    size: int,
    rounds: int,
    busy: bool,
    note: Note,
    before: Callable[[], None] = os.sync,
) -> Report:
    """Measure in an empty `directory`, with COPIES times `size` bytes of room; what was found.

    With `busy` each comparison comes a second time, beside a thread that computes in Python. `note(words)`
    is told how far it is; `before` is Turns' own. Whoever made the directory removes what is left in it.
    Raises OSError as the disk gives it, and ValueError where a content is not what was written.
    """
    report = Report(look_at_machine(directory))

    def compare(
        name: str,
        ways_beside: Callable[[str], Sequence[Way]],
        judge: Callable[[Comparison], Iterator[Line]],
    ) -> None:
        for neighbour in ("idle", "busy") if busy else ("idle",):
            beside = busy_thread if neighbour == "busy" else nullcontext
            ways = [replace(way, beside=beside) for way in ways_beside(neighbour)]
            turns = Turns(ways, size=size, before=before)
            for number in range(rounds + 1):
                note(f"{name}, {neighbour}: {f'round {number} of {rounds}' if number else 'warming up'}")
                turns.turn()
            found = turns.comparison()
            report.results.append(Result(name, found, size, tuple(judge(found)), neighbour))

    note("write what is to be moved")
    with Stage(directory, Content(size)) as stage, SnapshotDir(directory / "snapshots") as snapshots:

        def saves(neighbour: str) -> Sequence[Way]:
            copies = [*copyfileobj_ways(stage, neighbour), cold_copyfileobj_way(stage)]
            return [stage.disk(), *copies, *save_ways(stage, snapshots)]

        compare("durable saves", saves, _judge_saves)
        if busy:
            report.left_out.append(LEFT_OUT_BUSY)
        with walk_ways(stage, snapshots) as walks:
            ways = [stage.disk(), stage.wire(), sendfile_way(stage), *walks]
            compare("to a follower", lambda _neighbour: ways, _judge_walks)
    return report


def _judge_saves(comparison: Comparison) -> Iterator[Line]:
    disk, *others = comparison.samples
    copies = [name for name in others if name.startswith("copyfileobj") and "cold" not in name]
    for kind in ("memory", "file", "pipe"):
        yield Line(f"{kind} saved, against the disk alone", f"save_from {kind}", disk)
    best = comparison.fastest(*copies)
    yield Line(f"file saved, against {best}", "save_from file", best)
    yield Line("cold file saved, against copyfileobj", "save_from cold file", "copyfileobj cold file")


def _judge_walks(comparison: Comparison) -> Iterator[Line]:
    disk, wire, sendfile, *walks = comparison.samples
    limit = comparison.slowest(disk, wire)
    for walk in walks:
        yield Line(f"{walk}, against the {limit}", walk, limit)
        yield Line(f"{walk}, against {sendfile}", walk, sendfile)
