"""Durable saves into a directory, against the disk alone, and against what people write in Python."""

from __future__ import annotations

import pytest

from snapstore import SnapshotDir
from snapstore.bench.command_ways import command_ways
from snapstore.bench.python_ways import LEFT_OUT_BUSY, cold_copyfileobj_way, copyfileobj_ways
from snapstore.bench.report import Line
from snapstore.bench.saves import save_ways


@pytest.fixture
def directory(tmp_path):
    with SnapshotDir(tmp_path / "snapshots") as directory:
        yield directory


def test_durable_saves(race, neighbour, stage, directory, report):
    disk, copies, cold_copy = stage.disk(), copyfileobj_ways(stage, neighbour), cold_copyfileobj_way(stage)
    if neighbour == "busy":
        report.left_out.append(LEFT_OUT_BUSY)
    memory, file, cold_file, pipe = (way.name for way in save_ways(stage, directory))
    commands = command_ways(stage)
    comparison = race.run([disk, *save_ways(stage, directory), *copies, *commands.values(), cold_copy])
    best = comparison.fastest(*(way.name for way in copies))
    race.judge(
        Line("memory-against-disk", memory, disk.name),
        Line("file-against-disk", file, disk.name),
        Line("pipe-against-disk", pipe, disk.name),
        Line("file-against-copyfileobj", file, best),
        Line("cold-file-against-copyfileobj", cold_file, cold_copy.name),
        *(Line(f"file-against-{command}", file, way.name) for command, way in commands.items()),
    )


def test_saves_beside_a_busy_thread(race, stage, directory):
    """Against themselves in a process that is otherwise idle."""
    memory, file, _cold, pipe = save_ways(stage, directory)
    race.run([way for idle in (memory, file, pipe) for way in (idle, idle.busy())])
    race.judge(
        Line("memory-busy-against-idle", memory.busy().name, memory.name),
        Line("file-busy-against-idle", file.busy().name, file.name),
        Line("pipe-busy-against-idle", pipe.busy().name, pipe.name),
    )
