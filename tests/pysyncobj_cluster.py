"""Three members in processes of their own, for the kill test: killed, started again, compared.

Nothing here sleeps: a moment is drawn as a number of turns of a member's loop.
"""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

from pysyncobj.journal import FileJournal

from snapstore.raft.pysyncobj import Ticket

#: Whatever a member is asked for comes sooner, or the cluster is stuck.
ANSWER_S_MAX = 60.0

#: Between two looks at who leads: some messages are exchanged meanwhile.
LOOK_TURNS = 5

#: What a member must never say, and how many lines around it tell what it was about.
GRAVE = ("CRITICAL", "Traceback")
LINES_BEFORE, LINES_AFTER = 6, 30

#: So often the members may be found at different entries, before it is one that never gets there.
LOOKS_MAX = 50


class Cluster:
    """The members by their names. `alive` are those that run."""

    def __init__(self, cast, setups, directory):
        self._cast = cast
        self._setups = setups
        self._logs = directory
        self._acks = directory / "acks"
        self._acks.mkdir()
        self._started = 0
        self.alive = set()
        for name in setups:
            self.start(name)
        for name in setups:
            self.await_ready(name)

    def start(self, name):
        check_disk(Path(self._setups[name].directory))
        self._started += 1
        setup = json.dumps(self._setups[name].to_json())
        self._cast.start(name, "pysyncobj_member", setup, f"{name}.{self._started}", self._acks)
        self.alive.add(name)

    def kill(self, name, *, loses):
        """SIGKILL; the next start finds what it had, or nothing."""
        self._cast.kill(name)
        self.alive.remove(name)
        if loses:
            shutil.rmtree(self._setups[name].directory)

    def hear(self, name, event):
        return self._cast.hear(name, event, timeout_s=ANSWER_S_MAX)

    def ask(self, name, command, **arguments):
        self._cast.tell(name, command=command, **arguments)
        return self.hear(name, command)

    def ask_all(self, command, **arguments):
        """All who run, at the same time; what they answered, by name."""
        names = sorted(self.alive)
        for name in names:
            self._cast.tell(name, command=command, **arguments)
        return {name: self.hear(name, command) for name in names}

    def await_ready(self, name):
        self.hear(name, "ready")

    def leader(self):
        """Who leads, of those who run, as soon as there is one who is believed."""
        for _ in range(LOOKS_MAX * LOOKS_MAX):
            found = self.ask_all("status")
            term = max(status["term"] for status in found.values())
            for name, status in found.items():
                if status["leads"] and status["term"] == term:
                    return name
            self.ask_all("turns", count=LOOK_TURNS)
        raise AssertionError("nobody leads")

    def settle(self):
        """End the writes, and bring all members to the same entry; what each one has."""
        self.ask_all("quiet")
        self.ask_all("barrier")
        for _ in range(LOOKS_MAX):
            index = max(status["applied"] for status in self.ask_all("status").values())
            self.ask_all("reach", index=index)
            contents = self.ask_all("content")
            # A write that had lost its way, or an election, may still have come in between.
            if len({content["applied"] for content in contents.values()}) == 1:
                return contents
        raise AssertionError(f"the members do not come to the same entry: {contents}")

    def logs(self):
        """What each member ever said on its standard error."""
        return [(self._logs / f"{name}.log").read_text() for name in self._setups]

    def grave(self):
        """What members said that they must never say, each with the lines around it."""
        found = []
        for log in self.logs():
            lines = log.splitlines()
            for at, line in enumerate(lines):
                if any(word in line for word in GRAVE):
                    found.append("\n".join(lines[max(0, at - LINES_BEFORE) : at + LINES_AFTER]))
        return found


def check_disk(directory):
    """What a killed member left: a log that begins with the snapshot behind its dump, or before it.

    Else entries would be missing. That PySyncObj's journal may be cut short when it is killed while it
    compacts it, and catches up then, is its own.
    """
    journal, dump = directory / "journal", directory / "dump"
    if not journal.exists():
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # Of a file that PySyncObj leaves open.
        log = FileJournal(str(journal))
    try:
        first = log[0][1] if len(log) else 0
    finally:
        log._destroy()
    assert first <= 1 or first < Ticket.from_bytes(dump.read_bytes()).index, f"nothing before {first}"
