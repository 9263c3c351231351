"""Durable saves into a directory, against what people write in Python."""

from __future__ import annotations

import os
from functools import partial

import pytest

from snapstore import SnapshotDir
from snapstore.bench.cache import load
from snapstore.bench.python_ways import copyfileobj_ways
from snapstore.bench.report import Line
from snapstore.bench.ways import Way


@pytest.fixture
def source(content, tmp_path):
    """A file that the page cache has."""
    content.write(tmp_path / "source")
    load(tmp_path / "source")
    return tmp_path / "source"


def test_file_to_durable_file(race, neighbour, source, content, tmp_path):
    with SnapshotDir(tmp_path / "snapshots") as directory:

        def save():
            with open(source, "rb") as file:
                directory.save_from(file, 1)

        def check():
            content.check(directory.get_snap_file_path(1))
            os.unlink(directory.get_snap_file_path(1))
            directory.remove_orphans()

        copies = copyfileobj_ways(partial(source.open, "rb"), tmp_path / "copy", content)
        comparison = race.run([Way("save_from", save, check), *copies])
        best = comparison.fastest(*(way.name for way in copies))
        race.judge(Line("file-against-copyfileobj", "save_from", best))
