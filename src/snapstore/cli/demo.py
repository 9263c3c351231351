"""`snapstore demo`: the whole walk on one machine, watched. `snapstore demo raft` is `raft_demo.py`'s.

The parent of two processes: it tells them when, listens, draws, compares what both found, and leaves
nothing behind. It never touches a store itself.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from snapstore.cli.arguments import parse_size
from snapstore.cli.commands.demo import DEMO_SIZE_DEFAULT, RAFT_DEMO_NODES, RAFT_DEMO_SIZE_DEFAULT
from snapstore.cli.demo_cast import Cast
from snapstore.cli.demo_machine import Memory
from snapstore.cli.demo_report import Report, Store
from snapstore.cli.demo_stage import check_room, file_system_of, interruptible, own_directory
from snapstore.cli.demo_store import Content
from snapstore.cli.exits import ExitCode, UsageError

if TYPE_CHECKING:
    import argparse

    from snapstore.cli.demo_cast import Event
    from snapstore.cli.screen import Screen

#: The leader's store, the follower's snapshot, and the follower's restored store.
COPIES = 3

#: For what the writer adds meanwhile, and for logs.
SPARE_SIZE = 128 * 1024 * 1024

#: What only the raft demo has, as its `run` calls it.
_RAFT_OPTIONS = ("kv_dir", "baseline", "paced", "fsync_log", "busy_disk")

RAFT_USAGE = (
    "snapstore demo raft [--nodes N] [--size SIZE] [--dir DIR] [--kv-dir DIR] [--baseline] [--paced]"
    " [--fsync-log] [--busy-disk RATE] [--json]"
)


def run(args: argparse.Namespace, screen: Screen) -> int:
    """Play the demo that is asked for; OUTCOME_BAD when what is restored is not what was pinned.

    Raises OSError when there is too little room, and ChildDied when a process ends too soon.
    """
    if args.play == "raft":
        # Imported here: the walk needs no PySyncObj.
        from snapstore.cli.raft_demo import run as run_raft

        size = parse_size(RAFT_DEMO_SIZE_DEFAULT) if args.size is None else args.size
        options = {name: getattr(args, name) for name in _RAFT_OPTIONS}
        return run_raft(size, args.nodes or RAFT_DEMO_NODES, screen, parent=args.dir, **options)
    for name in ("nodes", *_RAFT_OPTIONS):
        if getattr(args, name):
            option = name.replace("_", "-")
            raise UsageError(f"--{option} belongs to the raft demo", f"usage: {RAFT_USAGE}")
    size = parse_size(DEMO_SIZE_DEFAULT) if args.size is None else args.size
    with interruptible(), own_directory(args.dir) as directory:
        check_room(directory, COPIES * size + SPARE_SIZE)
        report = _play(directory, size, screen)
    return show(report, screen)


def show(report: Report, screen: Screen) -> int:
    """Show the table; the exit code that belongs to it."""
    screen.table(report.to_json(), ("", ""), report.rows())
    return ExitCode.OUTCOME_BAD if report.differences else ExitCode.DONE


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
