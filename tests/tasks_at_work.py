"""Tasks awaited with a limit, calls that are watched, and readers that wait: for the tests of aio."""

from __future__ import annotations

import asyncio
import contextlib
import threading

import pytest

from nodes import CONTENT, WAIT_S
from snapstore.transport.http import SnapshotClient


def run(main):
    """Run `main(loop)`, with a limit that only a failure meets."""

    async def limited():
        return await asyncio.wait_for(main(asyncio.get_running_loop()), WAIT_S)

    return asyncio.run(limited())


class WatchedClient(SnapshotClient):
    """Knows how many threads are in its calls."""

    inside = 0
    lock = threading.Lock()

    @contextlib.contextmanager
    def _entered(self):
        with self.lock:
            WatchedClient.inside += 1
        try:
            yield
        finally:
            with self.lock:
                WatchedClient.inside -= 1

    def send_snapshot(self, *arguments, **options):
        with self._entered():
            return super().send_snapshot(*arguments, **options)

    def fetch(self, *arguments, **options):
        with self._entered():
            return super().fetch(*arguments, **options)

    def list(self, *arguments, **options):
        with self._entered():
            return super().list(*arguments, **options)


class Gate:
    """A reader of `CONTENT` whose first `read` waits until it may; notes who is in it."""

    def __init__(self, on_read=lambda: None):
        self.open = threading.Event()
        self.entered = 0
        self.most = 0
        self._lock = threading.Lock()
        self._on_read = on_read

    def reader(self):
        return _GatedReader(self)

    def enter(self):
        with self._lock:
            self.entered += 1
            self.most = max(self.most, self.entered)
        self._on_read()
        try:
            assert self.open.wait(WAIT_S)
        finally:
            with self._lock:
                self.entered -= 1


class _GatedReader:
    def __init__(self, gate):
        self._gate, self._rest = gate, None

    def read(self, size):
        if self._rest is None:
            self._gate.enter()
            self._rest = CONTENT
        piece, self._rest = self._rest[:size], self._rest[size:]
        return piece


async def cancelled(task):
    """Await `task`, which was cancelled: it has to say so."""
    with pytest.raises(asyncio.CancelledError):
        await task
