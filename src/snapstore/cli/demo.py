"""`snapstore demo`: the whole walk on one machine, watched.

The parent of two processes: it tells them when, listens, draws, compares what both found, and leaves
nothing behind. It never touches a store itself.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from snapstore.cli.demo_cast import Cast
from snapstore.cli.demo_machine import Memory, file_system_of
from snapstore.cli.demo_report import Report, Store
from snapstore.cli.demo_store import Content
from snapstore.cli.exits import ExitCode
from snapstore.cli.screen import format_size

if TYPE_CHECKING:
    import argparse

    from snapstore.cli.demo_cast import Event
    from snapstore.cli.screen import Screen

#: The leader's store, the follower's snapshot, and the follower's restored store.
COPIES = 3

#: For what the writer adds meanwhile, and for logs.
SPARE_SIZE = 128 * 1024 * 1024

#: What ends the demo from outside: the stores are removed then, too.
_END_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run(args: argparse.Namespace, screen: Screen) -> int:
    """Play it all; OUTCOME_BAD when the restored store is not the pinned one.

    Raises OSError when there is too little room, and ChildDied when a process ends too soon.
    """
    with _interruptible(), _own_directory(args.dir) as directory:
        check_room(directory, args.size)
        report = _play(directory, args.size, screen)
    return show(report, screen)


def show(report: Report, screen: Screen) -> int:
    """Show the table; the exit code that belongs to it."""
    screen.table(report.to_json(), ("", ""), report.rows())
    return ExitCode.OUTCOME_BAD if report.differences else ExitCode.DONE


def check_room(directory: str, size: int) -> None:
    """Raise OSError unless the demo of `size` bytes has room in `directory`."""
    needed = COPIES * size + SPARE_SIZE
    status = os.statvfs(directory)
    free = status.f_bavail * status.f_frsize
    if free < needed:
        words = f"{format_size(needed)} are needed and {format_size(free)} free; give a smaller --size"
        raise OSError(errno.ENOSPC, words, os.path.dirname(directory))


def _play(directory: str, size: int, screen: Screen) -> Report:
    screen.note(f"stores in {directory} ({file_system_of(directory)})")
    with Cast(directory) as cast:
        store_path = os.path.join(directory, "leader")
        cast.start("follower", "snapstore.cli.demo_follower", os.path.join(directory, "follower"))
        cast.start("leader", "snapstore.cli.demo_leader", store_path, size)
        with screen.bar("fill the store", size) as advance:
            filled = cast.hear("leader", "filled", lambda _name, done: advance(done))
            advance(filled["size"])
        url = cast.hear("follower", "listening")["url"]
        screen.note("the writer begins: one transaction after the other, each with its own fsync")
        cast.tell("leader", url=url)
        before = cast.hear("leader", "baseline")
        pinned = cast.hear("leader", "pinned")
        with screen.bar("send the snapshot", pinned["size"]) as advance:
            sent = cast.hear("leader", "sent", lambda _name, done: advance(done))
            advance(pinned["size"])
        saved = cast.hear("follower", "saved")
        ours, restored, theirs = _hear_contents(cast, pinned["size"], screen)
    return Report(
        size=pinned["size"],
        index=pinned["index"],
        file_system=file_system_of(directory),
        pin_s=pinned["pin_s"],
        transfer_s=sent["elapsed_s"],
        sync_s=sent["sync_s"],
        restore_s=restored["elapsed_s"],
        commits_per_s_before=before["commits_per_s"],
        commits_per_s_during=sent["commits_per_s"],
        commits_during=sent["commits"],
        leader_memory=Memory(**sent["memory"]),
        follower_memory=Memory(**saved["memory"]),
        pinned=Store(_content(ours), ours["image_digest"]),
        restored=Store(_content(theirs), saved["image_digest"]),
    )


def _hear_contents(cast: Cast, size: int, screen: Screen) -> tuple[Event, Event, Event]:
    """Wait until both have digested what they have: the leader its pin, the follower its copy."""
    done = dict.fromkeys(("leader", "follower"), 0)
    with screen.bar("compare the contents", 2 * size) as advance:

        def on_progress(name: str, count: int) -> None:
            done[name] = count
            advance(sum(done.values()))

        ours = cast.hear("leader", "content", on_progress)
        restored = cast.hear("follower", "restored", on_progress)
        theirs = cast.hear("follower", "content", on_progress)
        # Keys and values are less than the pages that they lie in.
        advance(2 * size)
    return ours, restored, theirs


def _content(event: Event) -> Content:
    return Content(event["keys"], event["size"], event["digest"])


@contextmanager
def _own_directory(parent: str | None) -> Iterator[str]:
    """Yield a new directory below `parent`, or below $TMPDIR, and remove it at the end."""
    directory = tempfile.mkdtemp(prefix="snapstore-demo-", dir=parent)
    try:
        yield directory
    finally:
        shutil.rmtree(directory)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let the first signal that would end this process interrupt it, so that it cleans up.

    The ones after it are passed over, since cleaning up takes a moment and people are impatient.
    """
    # What is ignored stays so: nohup, and jobs in the background of a script.
    numbers = [number for number in _END_SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]

    def interrupt(*_signal: object) -> None:
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
