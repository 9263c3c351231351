"""Snapstore's own saver under the power cut: what it is made to do, and what must be found afterwards.

A workload and a check for `PowerCut`; knows how a SnapshotDir is used, not how power is cut.
"""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from snapstore.directory import SnapshotDir
from snapstore.errors import SnapstoreError
from snapstore.testing.power_cut.saved_files import content_of, problems_of_files

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet
    from pathlib import Path

    from snapstore.testing.power_cut.recording import Marker

#: Where on the file system the snapshots are; not its root, so that the directory is made lasting, too.
DIRECTORY_NAME = "follower/snapshots"

#: Several chunks in the larger files, so that their manifests have several digests.
CHUNK_SIZE = 64 * 1024

#: How many snapshots one workload saves: four in each round, one per way to save.
ROUNDS = 8

#: How many a purge between two rounds keeps.
KEPT = 3

#: An index that no workload uses: what is saved after the power came back.
NEW_INDEX = 2**32


def save_and_purge(path: Path, mark: Marker) -> None:
    """Save in all ways: with and without a temporary name, with and without direct I/O, two at once.

    Purges between the rounds.
    """
    directories = [
        SnapshotDir(path / DIRECTORY_NAME, chunk_size=CHUNK_SIZE, nameless=nameless, direct=direct)
        for nameless, direct in itertools.product((True, False), repeat=2)
    ]

    def save(index: int) -> None:
        mark.begin(index)
        directories[index % len(directories)].save_from(content_of(index), index)
        mark.ok(index)

    try:
        with ThreadPoolExecutor(2) as pool:
            for first in range(0, ROUNDS * len(directories), len(directories)):
                list(pool.map(save, range(first, first + len(directories))))
                for index in range(first + len(directories) - KEPT):
                    mark.gone(index)
                directories[0].purge(keep=KEPT)
    finally:
        for directory in directories:
            directory.close()


def check_directory(path: Path, begun: AbstractSet[int], reported: AbstractSet[int]) -> list[str]:
    """Return what is wrong: bytes, lost snapshots, manifests, leftovers, and that a save fails.

    Opening removes what a dead saver left; afterwards each name belongs to a snapshot that verifies.
    """
    with SnapshotDir(path / DIRECTORY_NAME, chunk_size=CHUNK_SIZE) as directory:
        problems = problems_of_files(directory.path, begun, reported)
        problems += _problems_of_names(directory)
        for saved in directory.list():
            try:
                directory.verify(saved.index)
            except SnapstoreError as error:
                problems.append(f"{saved.index} does not verify: {error}")
        saved = directory.save_from(content_of(NEW_INDEX), NEW_INDEX)
        if saved.path.read_bytes() != content_of(NEW_INDEX):
            problems.append("what was saved afterwards is not what was given")
    return problems


def _problems_of_names(directory: SnapshotDir) -> list[str]:
    stored = [saved.path for saved in directory.list()]
    owned = {path.name for path in stored} | {path.with_suffix(".json").name for path in stored}
    found = {path.name for path in directory.path.iterdir()}
    return [f"{name} is left over" for name in sorted(found - owned)] + [
        f"{name} is missing" for name in sorted(owned - found)
    ]
