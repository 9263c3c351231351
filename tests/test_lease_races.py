"""Purges never race those who apply: threads and processes that purge, and those who read and restore."""

from __future__ import annotations

import contextlib
import io
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from nodes import wait_until
from processes import Process
from snapstore import disk
from snapstore.directory import SnapshotDir
from snapstore.errors import SnapshotNotFound
from snapstore.kv.memory import MemoryKV

READERS = 3

WAIT_S = 60.0

#: How many snapshots come and go meanwhile.
SAVES_PLAIN, SAVES_SLOW = 15, 600

PURGER = """
import select
with SnapshotDir(sys.argv[1]) as directory:
    say("begun")
    while not select.select([sys.stdin], [], [], 0)[0]:
        directory.purge(keep=1)
"""


def image_of(index):
    """A KV's snapshot that tells its index in each of its values."""
    kv, image = MemoryKV(), io.BytesIO()
    for number in range(9):
        kv.put(b"%d" % number, b"%d " % index * 100)
    with kv.snapshot() as snapshot:
        snapshot.write_to(image)
    return image.getvalue()


def apply(stored):
    """Restore it by its path, which must be there as long as it is leased, and check each value."""
    kv, index = MemoryKV(), stored.meta.index
    kv.restore(stored.path)
    assert dict(kv.items()) == {b"%d" % number: b"%d " % index * 100 for number in range(9)}
    stored.verify()
    assert stored.path.stat().st_size == stored.size


def apply_newest(directory):
    """Where one was saved, one is found: purges leave none out."""
    with directory.open_newest() as stored:
        apply(stored)


def apply_any(directory):
    """What is listed may be gone before it is opened, and not after."""
    for saved in directory.list():
        with contextlib.suppress(SnapshotNotFound):
            stored = directory.open(saved.index, verify=False)
            with stored:
                apply(stored)


def test_what_is_purged_between_its_opening_and_its_lock_is_not_there(tmp_path, monkeypatch):
    with SnapshotDir(tmp_path) as directory:
        for index in (1, 2):
            directory.save_from(image_of(index), index)
        open_regular = disk.open_regular

        def overtaken(*given):
            fd = open_regular(*given)
            monkeypatch.setattr(disk, "open_regular", open_regular)
            assert directory.purge(keep=1) == [1]
            return fd

        directory.verify(2)
        monkeypatch.setattr(disk, "open_regular", overtaken)
        with pytest.raises(SnapshotNotFound):
            directory.open(1, verify=False)
        assert directory.leases() == []


@pytest.mark.parametrize("saves", [SAVES_PLAIN, pytest.param(SAVES_SLOW, marks=pytest.mark.slow)])
def test_who_applies_is_never_overtaken_by_purges_of_threads_and_processes(tmp_path, saves):
    done, applied = threading.Event(), [0] * READERS

    def purge():
        with SnapshotDir(tmp_path) as own:
            while not done.is_set():
                own.purge(keep=1)

    def read(number, directory):
        take = (apply_newest, apply_any)[number % 2]
        while not done.is_set():
            take(directory)
            applied[number] += 1

    with (
        SnapshotDir(tmp_path) as directory,
        Process(PURGER, tmp_path) as first,
        Process(PURGER, tmp_path) as second,
        ThreadPoolExecutor(READERS + 1) as pool,
    ):
        directory.save_from(image_of(0), 0)
        others = [first, second]
        assert [other.hear() for other in others] == ["begun"] * 2
        work = [pool.submit(purge), *(pool.submit(read, number, directory) for number in range(READERS))]
        try:
            for index in range(1, saves):
                directory.save_from(image_of(index), index)
            wait_until(lambda: min(applied) > 3 or any(it.done() for it in work), WAIT_S)
        finally:
            done.set()
        for it in work:
            it.result(WAIT_S)
        for other in others:
            other.finish()
        directory.purge(keep=1)
        assert [saved.index for saved in directory.list()] == [saves - 1]
        assert directory.leases() == []
    assert len(os.listdir(tmp_path)) == 2
