"""The other side of a measurement: a process of its own, which does what it is told, one thing at a time.

It talks in JSON, a line each way, and ends when its standard input does: so with its parent, however that
ended.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

#: One that has nothing to do ends at once; one that takes so long is stuck.
END_S_MAX = 10.0


class ChildError(RuntimeError):
    """What a child was told to do failed, or it ended; the message has its own words."""


class Child:
    """A child that runs `module` of this package. One thread at a time."""

    def __init__(self, module: str) -> None:
        # So it imports what its parent does, however that was started.
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        self._process = subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            # A Ctrl-C at the terminal is for the parent, which ends this one.
            start_new_session=True,
        )

    @property
    def pid(self) -> int:
        """Its id."""
        return self._process.pid

    def tell(self, task: str, **arguments: Any) -> None:
        """Tell it to begin with something; `answer` waits for what comes of it."""
        assert self._process.stdin is not None
        print(json.dumps([task, arguments]), file=self._process.stdin, flush=True)

    def answer(self) -> Any:
        """Wait for what comes of what it was told. Raises ChildError."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise ChildError(f"{self._process.args!r} ended with {self._process.wait(END_S_MAX)}")
        outcome = json.loads(line)
        if "error" in outcome:
            raise ChildError(outcome["error"])
        return outcome["done"]

    def ask(self, task: str, **arguments: Any) -> Any:
        """Tell it to do something, and wait for what comes of it. Raises ChildError."""
        self.tell(task, **arguments)
        return self.answer()

    def close(self) -> None:
        """End it, whatever it does, and wait until it is gone."""
        with self._process:
            assert self._process.stdin is not None
            self._process.stdin.close()
            try:
                self._process.wait(END_S_MAX)
            except subprocess.TimeoutExpired:
                self._process.kill()


@contextmanager
def child(module: str) -> Iterator[Child]:
    """Have a child while the block runs."""
    started = Child(module)
    try:
        yield started
    finally:
        started.close()


def serve(tasks: Mapping[str, Callable[..., Any]]) -> None:
    """Be a child: do what the parent says until it ends, or ends us."""
    told: SimpleQueue[tuple[str, dict[str, Any]]] = SimpleQueue()
    threading.Thread(target=_listen, args=(told,), name="bench-parent", daemon=True).start()
    while True:
        task, arguments = told.get()
        try:
            outcome = {"done": tasks[task](**arguments)}
        except Exception as error:  # noqa: BLE001 - raised in the parent, which waits for it.
            outcome = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(outcome), flush=True)


def _listen(told: SimpleQueue[tuple[str, dict[str, Any]]]) -> None:
    for line in sys.stdin:
        told.put(json.loads(line))
    # At once, whatever the main thread is in the middle of: nobody is left to hear of it.
    os._exit(0)
