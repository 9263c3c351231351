"""Fixtures that several test modules share."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

import nodes
from pipes_at_work import SIZE
from snapstore import _fastpipe


@pytest.fixture
def nothing_lost():
    """No descriptor and no thread is left when the test, and the fixtures it asked for, are over."""
    with nodes.nothing_lost():
        yield


@pytest.fixture
def follower(nothing_lost, tmp_path):
    with nodes.Follower(tmp_path / "follower") as follower:
        yield follower


@pytest.fixture
def background():
    with ThreadPoolExecutor() as pool:
        yield pool.submit


@pytest.fixture
def pair(background):
    reader, writer = _fastpipe.pipe(chunk_size=SIZE, chunks=2)
    yield reader, writer
    reader.close()  # Whoever still waits after a failure is let go.
    writer.close()
