"""Snapstore's own saver under the power cut: what it is made to do, and what must be found afterwards.

A workload and a check for `PowerCut`: saves, and receives whose line breaks and that go on later; knows
how a SnapshotDir is used, not how power is cut.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from snapstore import _fastpipe
from snapstore.directory import SnapshotDir
from snapstore.errors import KeptPrefixWrong, SnapshotTruncated, SnapstoreError
from snapstore.meta import SnapshotMeta
from snapstore.reception import note_name, partial_name
from snapstore.testing.power_cut.saved_files import SIZES, content_of, problems_of_files

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet
    from pathlib import Path

    from snapstore.testing.power_cut.recording import Marker

#: Where on the file system the snapshots are; not its root, so that the directory is made lasting, too.
DIRECTORY_NAME = "follower/snapshots"

#: Several chunks in the larger files, so that their manifests have several digests.
CHUNK_SIZE = 64 * 1024

#: In each round four snapshots are saved, one per way to save, and one is received.
ROUNDS = 5

#: What is received comes in more and smaller ones: each may be the last that is kept.
RECEIVED_CHUNK_SIZE = 16 * 1024

#: How many a purge between two rounds keeps.
KEPT = 3

#: The indexes of a round; the received one is among the last, so that nothing newer makes it useless.
_INDEXES_PER_ROUND = 64

#: Where the line of a receive breaks, as shares of its bytes: each attempt goes on with what was kept.
_BREAKS = (0.4, 0.8)

#: An index that no workload uses: what is saved after the power came back.
NEW_INDEX = 2**32

_PAGE = 4096

_PARTIAL_NAME = re.compile(r"\.part-([0-9a-f]{16})")


def save_and_purge(path: Path, mark: Marker) -> None:
    """Save in all ways: with and without a temporary name, with and without direct I/O, two at once.

    Beside them one is received, over a line that breaks; it goes on after the others were named.
    Purges between the rounds.
    """
    directories = [
        SnapshotDir(path / DIRECTORY_NAME, chunk_size=CHUNK_SIZE, nameless=nameless, direct=direct)
        for nameless, direct in itertools.product((True, False), repeat=2)
    ]
    stored: list[int] = []

    def save(index: int) -> None:
        mark.begin(index)
        directories[index % len(directories)].save_from(content_of(index), index)
        mark.ok(index)

    try:
        with ThreadPoolExecutor(3) as pool:
            for number in range(ROUNDS):
                *saved, received = _indexes_of(number, len(directories))
                receiving = directories[number % len(directories)]
                mark.begin(received)
                breaking = pool.submit(_break, receiving, received)
                list(pool.map(save, saved))
                breaking.result()
                receive(receiving, received)
                mark.ok(received)
                stored += [*saved, received]
                for index in stored[:-KEPT]:
                    mark.gone(index)
                directories[0].purge(keep=KEPT)
    finally:
        for directory in directories:
            directory.close()


def _indexes_of(number: int, saves: int) -> list[int]:
    """Return what one round saves, and, as the last, what it receives: one of the largest."""
    first, after = number * _INDEXES_PER_ROUND, (number + 1) * _INDEXES_PER_ROUND
    large = (index for index in range(first + saves, after) if len(content_of(index)) == SIZES[-1])
    return [*range(first, first + saves), next(large)]


def _break(directory: SnapshotDir, index: int) -> None:
    """Receive over lines that break, one after the other.

    The note of what was kept is made to last, as the kernel does of itself within half a minute: else
    no power cut in so short a workload would leave anything to go on with.
    """
    for share in _BREAKS:
        with contextlib.suppress(SnapshotTruncated):
            receive(directory, index, share=share)
        with (directory.path / note_name(index)).open("rb") as note:
            os.fsync(note.fileno())


def receive(directory: SnapshotDir, index: int, *, share: float = 1.0) -> None:
    """Receive the content of `index`; after this `share` of it the line breaks, which is SnapshotTruncated.

    The sender leaves out what is kept and sends its digests instead. Raises KeptPrefixWrong where
    that is not what the sender has.
    """
    content, unit = content_of(index), RECEIVED_CHUNK_SIZE
    size = len(content)
    near, far = socket.socketpair()

    def send(kept: int) -> None:
        sent = content[: round(share * size)]
        with far, contextlib.suppress(SnapshotTruncated, BrokenPipeError):  # One end or the other breaks.
            _fastpipe.send_frames(
                sent, far.fileno(), size=size, chunk_size=unit, kept=kept, http_chunked=True
            )

    meta = SnapshotMeta(index)
    # Left from its end: the socket is closed before the sender is waited for.
    with (
        ThreadPoolExecutor(1) as pool,
        near,
        directory.receive(meta, size=size, chunk_size=unit) as reception,
    ):
        sending = pool.submit(send, reception.kept)
        body = _fastpipe.Body(near.fileno(), b"", None)
        reception.save(_fastpipe.Frames(body, chunk_size=unit, size=size), meta)
    sending.result()


def complete(directory: SnapshotDir, index: int) -> int | None:
    """Receive what an earlier attempt began; which of its chunks had to come again, being wrong."""
    try:
        receive(directory, index)
    except KeptPrefixWrong as error:
        receive(directory, index)  # The wrong one is not kept any more.
        return error.chunk
    return None


def check_directory(path: Path, begun: AbstractSet[int], reported: AbstractSet[int]) -> list[str]:
    """Return what is wrong: bytes, lost snapshots, manifests, leftovers, and that a save fails.

    Opening removes what a dead saver left; what a broken line left is gone on with, in one half of the
    cases after a page of it was lost. Afterwards each name belongs to a snapshot that verifies.
    """
    with SnapshotDir(path / DIRECTORY_NAME, chunk_size=CHUNK_SIZE) as directory:
        problems = problems_of_files(directory.path, begun, reported)
        for index in partial_indexes(directory):
            if index % 2:
                lose_page(directory, index)
            complete(directory, index)
        problems += problems_of_files(directory.path, begun, reported)
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


def partial_indexes(directory: SnapshotDir) -> list[int]:
    """Return the indexes of which something was kept."""
    found = (_PARTIAL_NAME.fullmatch(path.name) for path in directory.path.iterdir())
    return sorted(int(name[1], 16) for name in found if name)


def lose_page(directory: SnapshotDir, index: int) -> None:
    """Take a page in the middle of what was kept away, as a file system may that keeps sizes before data.

    ext4, xfs and btrfs, as they are mounted here, do so too seldom to be waited for.
    """
    with (directory.path / partial_name(index)).open("r+b") as file:
        file.seek(os.fstat(file.fileno()).st_size // 2 // _PAGE * _PAGE)
        file.write(bytes(_PAGE))


def _problems_of_names(directory: SnapshotDir) -> list[str]:
    stored = [saved.path for saved in directory.list()]
    owned = {path.name for path in stored} | {path.with_suffix(".json").name for path in stored}
    found = {path.name for path in directory.path.iterdir()}
    return [f"{name} is left over" for name in sorted(found - owned)] + [
        f"{name} is missing" for name in sorted(owned - found)
    ]
