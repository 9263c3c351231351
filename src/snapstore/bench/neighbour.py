"""The neighbour that every raft leader has: a thread of the same process that computes in Python."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def busy_thread() -> Iterator[None]:
    """Have a thread compute while the block runs, giving the GIL up only when the interpreter asks for it."""
    over = threading.Event()
    started = threading.Event()

    def compute() -> None:
        number = 0
        started.set()
        while not over.is_set():
            number = (number * 31 + 7) % 1_000_003

    thread = threading.Thread(target=compute, name="bench-neighbour", daemon=True)
    thread.start()
    started.wait()
    try:
        yield
    finally:
        over.set()
        thread.join()
