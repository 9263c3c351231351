"""The demo's child processes, seen from the parent: started, listened to, ended.

It must not know what they play. Plan: each child's standard output is read by a thread of its own
into one queue, so that the parent waits in one place and hears of a death at once, whoever it was. One
that the parent killed itself is no death, and what it still said is not heard.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from snapstore.errors import SnapstoreError

if TYPE_CHECKING:
    from typing_extensions import Self

#: How long a child whose input has ended may take to go before it is killed; it exits at once.
GONE_WITHIN_S = 5.0

#: How much of a dead child's last words is shown.
_LAST_LINES = 3

Event = dict[str, Any]


class ChildDied(SnapstoreError):
    """A child process ended before its part was done; the message has its last words."""


class NotHeard(SnapstoreError, TimeoutError):
    """A child process did not tell within the time that was allowed; it runs on."""


class Cast:
    """Child processes that tell their events in JSON lines. Use it as a context manager."""

    def __init__(self, log_directory: str) -> None:
        self._log_directory = log_directory
        self._children: dict[str, subprocess.Popen[str]] = {}
        self._listeners: list[threading.Thread] = []
        # A child, by its name and itself, with its event, or with None at its end.
        self._heard: SimpleQueue[tuple[str, subprocess.Popen[str], Event | None]] = SimpleQueue()
        self._kept: dict[tuple[str, str], Event] = {}

    def start(self, name: str, module: str, *arguments: object) -> None:
        """Start `module` as a child called `name`, which may be the name of one that was killed."""
        # Its words go to a file: a pipe that nobody reads would stop it.
        with open(self._log_path(name), "ab") as log:
            child = subprocess.Popen(
                [sys.executable, "-m", module, *map(str, arguments)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                # Out of the terminal's reach: on Ctrl-C the parent ends the children, in order.
                start_new_session=True,
            )
        self._children[name] = child
        listener = threading.Thread(target=self._listen, args=(name, child), name=f"demo-{name}", daemon=True)
        self._listeners.append(listener)
        listener.start()

    def _listen(self, name: str, child: subprocess.Popen[str]) -> None:
        assert child.stdout is not None
        with child.stdout as lines:
            for line in lines:
                if line.endswith("\n"):  # Else it was killed in the middle of a word.
                    self._heard.put((name, child, json.loads(line)))
        self._heard.put((name, child, None))

    def kill(self, name: str) -> None:
        """End a child at once, with SIGKILL, and forget what it told."""
        child = self._children.pop(name)
        child.kill()
        child.wait()
        _end_input(child)
        self._kept = {(who, event): what for (who, event), what in self._kept.items() if who != name}

    def tell(self, name: str, **command: Any) -> None:
        """Give a child a command."""
        stdin = self._children[name].stdin
        try:
            print(json.dumps(command), file=stdin, flush=True)
        except BrokenPipeError:
            raise self._death_of(name) from None

    def hear(
        self,
        name: str,
        event: str,
        on_progress: Callable[[str, int], None] | None = None,
        *,
        timeout_s: float | None = None,
    ) -> Event:
        """Wait until the child `name` tells `event`; what it told.

        Other events are kept for later. `on_progress(name, bytes)` is told how far which child is.
        Raises ChildDied when one has ended, whichever it is, and NotHeard after `timeout_s`.
        """
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        while (name, event) not in self._kept:
            try:
                who, child, what = self._heard.get(timeout=_left_s(deadline_s))
            except Empty:
                raise NotHeard(f"the {name} process did not tell {event!r} within {timeout_s:g} s") from None
            if child is not self._children.get(who):
                continue  # It was killed.
            if what is None:
                raise self._death_of(who)
            kind = what.pop("event")
            if kind != "progress":
                self._kept[who, kind] = what
            elif on_progress is not None:
                on_progress(who, what["bytes"])
        return self._kept.pop((name, event))

    def _death_of(self, name: str) -> ChildDied:
        code = self._children[name].wait(GONE_WITHIN_S)
        end = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        with open(self._log_path(name), encoding="utf-8", errors="replace") as log:
            words = [line.strip() for line in log if line.strip()][-_LAST_LINES:]
        last = f"; its last words: {' | '.join(words)}" if words else ""
        return ChildDied(f"the {name} process {end}{last}")

    def _log_path(self, name: str) -> str:
        return os.path.join(self._log_directory, f"{name}.log")

    def close(self) -> None:
        """End all children, and wait until they are gone. May come twice."""
        for child in self._children.values():
            _end_input(child)
        for child in self._children.values():
            _reap(child)
        for listener in self._listeners:
            listener.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()


def _left_s(deadline_s: float | None) -> float | None:
    return None if deadline_s is None else max(0.0, deadline_s - time.monotonic())


def _end_input(child: subprocess.Popen[str]) -> None:
    if child.stdin is not None:
        with suppress(BrokenPipeError):  # It was gone before what was written last.
            child.stdin.close()


def _reap(child: subprocess.Popen[str]) -> None:
    try:
        child.wait(GONE_WITHIN_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
