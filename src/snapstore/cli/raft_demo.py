"""`snapstore demo raft`: a node of a real cluster loses all it has, and is handed a snapshot.

The parent of the nodes' processes: it starts and kills them, tells them when, listens, draws and
compares. It never touches a store itself; what a node does is `raft_demo_node.py`'s.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING

from snapstore.cli.demo_cast import Cast, NotHeard
from snapstore.cli.demo_stage import check_room, file_system_of, interruptible, own_directory
from snapstore.cli.demo_store import Content
from snapstore.cli.exits import ExitCode
from snapstore.cli.raft_demo_dumps import Setup
from snapstore.cli.raft_demo_report import Final, Outcome, RaftReport, Span
from snapstore.cli.raft_demo_store import FILL_STEP_SIZE, WRITE_WINDOW

if TYPE_CHECKING:
    from snapstore._fastpipe import Throttle
    from snapstore.cli.demo_cast import Event
    from snapstore.cli.screen import Screen

#: Beside each node's store: a snapshot on the leader, what is received, and what is made of that.
COPIES = 3

#: For what the writers add meanwhile, and for logs.
SPARE_SIZE = 256 * 1024 * 1024

#: How long the writers are watched before the kill, and after all is well again.
WATCHED_S = 2.0

#: So many entries the others go on before the log is compacted: clearly more than are under way at once.
LEFT_BEHIND = 10 * WRITE_WINDOW

#: After so long a snapshot counts as never handed over; a GiB takes PySyncObj's own way about 80 s.
CAUGHT_UP_S_MAX = 180.0

#: Whatever else a node is asked for comes sooner than this, or something is wrong with it.
ANSWER_S_MAX = 60.0

#: Bytes a second: a fill that is slower stands still.
FILL_RATE_MIN = 1024 * 1024

#: Between two looks at who leads, where an election goes on: as often as PySyncObj's messages go.
LOOK_INTERVAL_S = 0.1


def run(
    size: int,
    nodes: int,
    screen: Screen,
    *,
    parent: str | None,
    kv_dir: str | None = None,
    baseline: bool = False,
    paced: bool = False,
    fsync_log: bool = False,
    busy_disk: Throttle | None = None,
) -> int:
    """Play it all; OUTCOME_BAD when nodes differ, or elections were held, or the snapshot never came.

    In a directory below `parent`, or below $TMPDIR, and the stores below `kv_dir`, if given. With
    `busy_disk` a neighbour writes beside the nodes all the time, at that rate. `paced` and `baseline` are
    ways that are played besides. Raises OSError when there is too little room, and ChildDied when a
    process ends too soon.
    """
    with (
        interruptible(),
        own_directory(parent) as directory,
        nullcontext(directory) if kv_dir is None else own_directory(kv_dir) as kv_directory,
    ):
        check_room(directory, (nodes + COPIES) * size + SPARE_SIZE)
        screen.note(f"stores in {directory} ({file_system_of(directory)})")
        play = partial(
            _play, directory, kv_directory, nodes, size, screen, fsync_log=fsync_log, busy_disk=busy_disk
        )
        report = RaftReport(
            nodes,
            file_system_of(directory),
            tickets=play("tickets"),
            paced=play("tickets, paced", paced=True) if paced else None,
            own_dumps=play("PySyncObj's own dumps", own_dumps=True) if baseline else None,
        )
    return show(report, screen)


def show(report: RaftReport, screen: Screen) -> int:
    """Show the table; the exit code that belongs to it."""
    screen.table(report.to_json(), report.columns(), report.rows())
    return ExitCode.OUTCOME_BAD if report.differences else ExitCode.DONE


def _play(
    directory: str,
    kv_directory: str,
    nodes: int,
    size: int,
    screen: Screen,
    way: str,
    *,
    busy_disk: Throttle | None,
    **options: bool,
) -> Outcome:
    """Play one way in directories of its own, which are gone at the end; `options` are those of `Setup`."""
    screen.note(f"{nodes} nodes, with {way}")
    places = directory, kv_directory = [os.path.join(place, "nodes") for place in (directory, kv_directory)]
    for place in set(places):
        os.mkdir(place)
    with reserved_addresses(2 * nodes) as addresses, Cast(directory) as cast:
        setups = make_setups(directory, kv_directory, addresses, map_size=4 * size + 1024**3, **options)
        if busy_disk is not None:
            cast.start("neighbour", "snapstore.cli.raft_demo_neighbour", directory, busy_disk.rate)
        outcome = _Play(cast, setups, size, screen).run()
    for place in set(places):
        shutil.rmtree(place)
    return outcome


def make_setups(
    directory: str, kv_directory: str, addresses: list[str], *, map_size: int, **options: bool
) -> dict[str, Setup]:
    """Return a setup for each node, by its name; a node has two of the addresses."""
    rafts, servers = addresses[::2], addresses[1::2]
    return {
        f"node{number}": Setup(
            directory=os.path.join(directory, f"node{number}"),
            kv_directory=os.path.join(kv_directory, f"node{number}", "kv"),
            address=address,
            partners=[other for other in rafts if other != address],
            listen=server,
            peers=[f"http://{other}" for other in servers if other != server],
            map_size=map_size,
            **options,
        )
        for number, (address, server) in enumerate(zip(rafts, servers, strict=True), 1)
    }


@contextmanager
def reserved_addresses(count: int) -> Iterator[list[str]]:
    """Yield free addresses of this machine that nobody else is given meanwhile.

    A socket that is bound but does not listen keeps the port from everybody who asks for any port;
    whoever asks for this one, with SO_REUSEADDR as servers do, gets it all the same. So a node that was
    killed comes back to where it was.
    """
    with ExitStack() as keepers:
        addresses = []
        for _ in range(count):
            keeper = keepers.enter_context(socket.socket())
            keeper.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            keeper.bind(("127.0.0.1", 0))
            addresses.append(f"127.0.0.1:{keeper.getsockname()[1]}")
        yield addresses


class _Play:
    """One way, from the start of the nodes to the comparison of what they have."""

    def __init__(self, cast: Cast, setups: dict[str, Setup], size: int, screen: Screen) -> None:
        self._cast = cast
        self._setups = setups
        self._size = size
        self._screen = screen
        self._leader = ""

    def run(self) -> Outcome:
        """Play it."""
        for name in self._setups:
            self._start(name)
        for name in self._setups:
            self._cast.hear(name, "ready", timeout_s=ANSWER_S_MAX)
        self._fill()
        for name in self._setups:
            self._ask(name, "flush")
        self._leader = self._find_leader()
        self._screen.note(f"writes begin, and do not end: {WRITE_WINDOW} under way at any time")
        self._ask(self._leader, "write")
        before = self._watch()
        lost = next(name for name in self._setups if name != self._leader)
        term = self._ask(self._leader, "status")["term"]
        self._lose(lost)
        making = self._span(self._leader)
        size = self._ask(self._leader, "status")["size"]
        caught_up_s, handed_over_s = self._come_back(lost)
        during, newcomer = self._span(self._leader), self._span(lost)
        after = self._watch()
        finals = self._finals([name for name in self._setups if name != lost or caught_up_s is not None])
        return Outcome(
            size=size,
            limit_s=CAUGHT_UP_S_MAX,
            caught_up_s=caught_up_s,
            handed_over_s=handed_over_s,
            elections=max(self._ask(name, "status")["term"] for name in self._setups) - term,
            before=before,
            making=making,
            during=during,
            after=after,
            newcomer=newcomer,
            finals=finals,
        )

    def _start(self, name: str) -> None:
        setup = json.dumps(self._setups[name].to_json())
        self._cast.start(name, "snapstore.cli.raft_demo_node", setup)

    def _ask(self, name: str, command: str, **arguments: object) -> Event:
        self._cast.tell(name, command=command, **arguments)
        return self._cast.hear(name, command, timeout_s=ANSWER_S_MAX)

    def _fill(self) -> None:
        """Through the log, a MiB of noise an entry; the noise is the same on every node."""
        steps = max(1, self._size // FILL_STEP_SIZE)
        name = next(iter(self._setups))
        with self._screen.bar("fill the stores, by entries of the log", self._size) as advance:
            self._cast.tell(name, command="fill", steps=steps)
            self._cast.hear(
                name,
                "fill",
                lambda _name, done: advance(min(done, self._size)),
                timeout_s=ANSWER_S_MAX + self._size / FILL_RATE_MIN,
            )
            advance(self._size)

    def _find_leader(self) -> str:
        deadline_s = time.monotonic() + ANSWER_S_MAX
        while time.monotonic() < deadline_s:
            for name in self._setups:
                if self._ask(name, "status")["leads"]:
                    return name
            threading.Event().wait(LOOK_INTERVAL_S)
        raise NotHeard(f"nobody leads, after {ANSWER_S_MAX:g} s")

    def _span(self, name: str) -> Span:
        return Span.from_event(self._ask(name, "span"))

    def _watch(self) -> Span:
        """Let a while pass in which nothing happens but the writes."""
        self._span(self._leader)
        threading.Event().wait(WATCHED_S)
        return self._span(self._leader)

    def _lose(self, name: str) -> None:
        """Kill a node, remove all that it has, and have the leader compact its log past it."""
        applied = self._ask(name, "status")["applied"]
        self._cast.kill(name)
        shutil.rmtree(self._setups[name].kv_directory)
        shutil.rmtree(self._setups[name].directory)
        self._screen.note(f"{name} was killed at index {applied}, and its directory removed")
        self._ask(self._leader, "reach", index=applied + LEFT_BEHIND)
        self._span(self._leader)
        self._ask(self._leader, "compact", beyond=applied)
        self._screen.note(f"the leader's log was compacted past it; {name} comes back with nothing")

    def _come_back(self, name: str) -> tuple[float | None, float | None]:
        """Start a node that has nothing; after how long it caught up, and how long the snapshot took."""
        started_s = time.monotonic()
        self._start(name)
        try:
            ready_s = self._cast.hear(name, "ready", timeout_s=CAUGHT_UP_S_MAX)["at_s"]
        except NotHeard:
            self._screen.note(f"{name} did not catch up in {CAUGHT_UP_S_MAX:g} s")
            return None, None
        self._screen.note(f"{name} has caught up, while the writes went on")
        joined_s = self._cast.hear(name, "joined")["at_s"]
        return ready_s - started_s, self._cast.hear(name, "installed")["at_s"] - joined_s

    def _finals(self, names: list[str]) -> dict[str, Final]:
        """End the writes, and digest what the nodes have when all have applied the same entries."""
        if not self._ask(self._leader, "rest")["rested"]:
            self._screen.note("some writes were never answered")
        index = self._ask(self._leader, "status")["applied"]
        finals: dict[str, Final] = {}
        with self._screen.bar("compare the contents", self._size * len(names)) as advance:

            def on_progress(_name: str, done: int) -> None:
                advance(self._size * len(finals) + min(done, self._size))

            for name in names:
                self._ask(name, "reach", index=index)
                self._cast.tell(name, command="content")
                final = self._cast.hear(name, "content", on_progress)
                finals[name] = Final(final.pop("applied"), Content(**final))
            advance(self._size * len(names))
        return finals
