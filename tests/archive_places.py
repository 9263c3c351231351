"""A directory with a snapshot of several parts, and archives for tests to put it into."""

from __future__ import annotations

import os
from contextlib import contextmanager

from archive_server import ArchiveServer
from snapstore.archive import Archive
from snapstore.directory import SnapshotDir
from snapstore.meta import ConfState, SnapshotMeta

#: Small, so that a part has many.
CHUNK_SIZE = 4096

#: What `small_parts` lets a part have, in bytes: S3's own least would be megabytes in each test.
PART_SIZE = 20 * CHUNK_SIZE

#: Five parts, the last a short one that ends in a broken chunk.
CONTENT = os.urandom(4 * PART_SIZE + CHUNK_SIZE + 1)

PARTS = [f"part-{number:05d}" for number in range(5)]

META = SnapshotMeta(7, 3, ConfState((1, 2, 3), learners=(9,)), b"what the engine carries beside")


def archive_on(server):
    """The archive of an ArchiveServer, with small parts."""
    return Archive(server.url, endpoint=server.endpoint, part_size=PART_SIZE)


@contextmanager
def stored(path, content=CONTENT, meta=META):
    """A snapshot in a directory at `path`, opened."""
    with SnapshotDir(path, chunk_size=CHUNK_SIZE) as directory:
        directory.save_from(content, meta)
        index = meta if isinstance(meta, int) else meta.index
        with directory.open(index) as snapshot:
            yield snapshot


@contextmanager
def archived(path, content=CONTENT, meta=META, part_size=PART_SIZE):
    """A server that has one snapshot, made at `path`; what it was asked for that is forgotten."""
    with ArchiveServer() as server:
        with stored(path, content, meta) as snapshot:
            Archive(server.url, endpoint=server.endpoint, part_size=part_size).push(snapshot)
        server.forget()
        yield server
