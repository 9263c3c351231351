"""The pipe by itself: from the page cache to a reader that looks at nothing, against bare reads."""

from __future__ import annotations

import os

from snapstore import _fastpipe
from snapstore.bench.cache import load
from snapstore.bench.report import Line
from snapstore.bench.saves import through_pipe
from snapstore.bench.ways import Way

#: A buffer for bare reads that stays in a core's cache, and two that ask the kernel more rarely.
BUFFER_SIZES = 64 * 1024, 256 * 1024, 1024 * 1024

#: Once through 256 MiB takes 0.02 s, in which anything else that the machine does shows.
TIMES = 8


def bare_reads(fd, size, buffer_size):
    """Read all of a file into one buffer, TIMES times."""
    buffer = [memoryview(bytearray(buffer_size))]

    def read():
        for _ in range(TIMES):
            offset = 0
            while count := os.preadv(fd, buffer, offset):
                offset += count
            assert offset == size

    return Way(f"pread {buffer_size // 1024} KiB", read)


def lend(reader):
    """Take the chunks in Python, and give them back; how many bytes."""
    done = 0
    while chunk := reader.read_chunk():
        done += len(chunk)
        chunk.release()
    return done


def digest(reader):
    """Have the core read them all, as a save does, and keep nothing; how many bytes."""
    return _fastpipe.digest(reader).size


def pipe_way(name, read, fd, size):
    """One thread has the core read the file into the pipe, TIMES times; this one reads the pipe by `read`."""

    def feed(writer):
        for _ in range(TIMES):
            writer.copy_from_fd(fd, 0, size)

    def move():
        assert through_pipe(feed, read) == TIMES * size

    return Way(name, move)


def test_page_cache_through_the_pipe(race, content, size, tmp_path):
    content.write(tmp_path / "source")
    load(tmp_path / "source")
    with open(tmp_path / "source", "rb") as file:
        lent, digested = (
            pipe_way(name, read, file.fileno(), size)
            for name, read in (("pipe read in Python", lend), ("pipe read by the core", digest))
        )
        reads = [bare_reads(file.fileno(), size, buffer_size) for buffer_size in BUFFER_SIZES]
        lent_busy, digested_busy = lent.busy(), digested.busy()
        comparison = race.run([lent, lent_busy, digested, digested_busy, *reads], size=TIMES * size)
        bare = comparison.fastest(*(way.name for way in reads))
        race.judge(
            Line("bare-pipe-against-pread", lent.name, bare),
            Line("bare-pipe-busy-against-idle", lent_busy.name, lent.name),
            Line("digested-pipe-busy-against-idle", digested_busy.name, digested.name),
        )
