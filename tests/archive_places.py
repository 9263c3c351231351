"""A directory with a snapshot of several parts, and archives for tests to put it into."""

from __future__ import annotations

import os
from contextlib import contextmanager

from archive_server import ArchiveServer
from snapstore.archive import Archive
from snapstore.archive.layout import PART_SIZE_MIN
from snapstore.directory import SnapshotDir
from snapstore.meta import ConfState, SnapshotMeta

#: Small, so that a part has many.
CHUNK_SIZE = 256 * 1024

#: Five parts of the smallest kind, the last a short one that ends in a broken chunk.
CONTENT = os.urandom(CHUNK_SIZE) * (PART_SIZE_MIN // CHUNK_SIZE) * 4 + os.urandom(CHUNK_SIZE + 1)

PARTS = [f"part-{number:05d}" for number in range(5)]

META = SnapshotMeta(7, 3, ConfState((1, 2, 3), learners=(9,)), b"what the engine carries beside")


def archive_on(server):
    """The archive of an ArchiveServer, with parts of the smallest kind."""
    return Archive(server.url, endpoint=server.endpoint, part_size=PART_SIZE_MIN)


@contextmanager
def stored(path, content=CONTENT, meta=META):
    """A snapshot in a directory at `path`, opened."""
    with SnapshotDir(path, chunk_size=CHUNK_SIZE) as directory:
        directory.save_from(content, meta)
        index = meta if isinstance(meta, int) else meta.index
        with directory.open(index) as snapshot:
            yield snapshot


@contextmanager
def archived(path, content=CONTENT, meta=META):
    """A server that has one snapshot, made at `path`; what it was asked for that is forgotten."""
    with ArchiveServer() as server:
        with stored(path, content, meta) as snapshot:
            archive_on(server).push(snapshot)
        server.forget()
        yield server
