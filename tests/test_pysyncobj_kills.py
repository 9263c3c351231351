"""PySyncObj clusters with tickets, killed at random moments: nothing acknowledged is lost, nothing differs.

Real processes, real logs and stores, SIGKILL. A round kills a follower, the leader, or one after the
other, with or without all that it had on its disk; compactions are forced around it, so that snapshots
are being pinned, saved, fetched and restored when it happens. Then all three are compared, by content
and applied entry, and the content with all that was ever acknowledged.

A round is replayed by its seed and number, as far as three processes can be.

What raft itself cannot bear is left out: a majority is never down at once, and where a disk was lost the
others commit a write of their own before that member is back, since it has forgotten what it promised.
"""

from __future__ import annotations

import os
import random
import sys

import pytest

from pysyncobj_cluster import Cluster
from snapstore.cli.demo_cast import Cast
from snapstore.cli.raft_demo import make_setups, reserved_addresses

SEED = 2015
ROUNDS = 50

#: Turns of the loop, of 10 ms at most, from the drawn event to the kill.
TURNS_MAX = 40

#: A snapshot of this store is saved, and fetched, within so many.
TRANSFER_TURNS_MAX = 12


#: Much more than the stores become.
MAP_SIZE = 2**30


class Round:
    """One round: what happens is drawn from the seed and its number."""

    def __init__(self, cluster, seed, number):
        self._cluster = cluster
        self._draw = random.Random(f"{seed}/{number}")
        self.story = []

    def play(self):
        victims = self._draw.choice(["follower", "leader", "both"])
        leader = self._cluster.leader()
        first = leader if victims == "leader" else self._draw.choice(sorted(self._cluster.alive - {leader}))
        loses = self._draw.random() < 0.5
        self._kill(first, leader, loses=loses)
        self._start(first)
        if victims == "both":
            # In the middle of what it fetches, perhaps, and from whom it does.
            self._cluster.hear(first, "joined")
            self._pass(first, TRANSFER_TURNS_MAX)
            leader = self._cluster.leader()
            if leader != first:
                self._kill(leader, leader, loses=False)
                self._start(leader)
                self._cluster.await_ready(leader)
        self._cluster.await_ready(first)

    def _kill(self, name, leader, *, loses):
        saves = self._draw.random() < 0.5
        if saves:
            self._force(name)
        if self._draw.random() < 0.5:
            self._force(leader)
        self._pass(name, TRANSFER_TURNS_MAX if saves else TURNS_MAX)
        self._cluster.kill(name, loses=loses)
        self._note(f"{name} killed{', all lost' if loses else ''}")
        if loses:
            # From here on, all that was promised is known to the two others.
            self._cluster.ask(self._draw.choice(sorted(self._cluster.alive)), "barrier")
        if self._draw.random() < 0.7:
            self._force(self._cluster.leader())

    def _start(self, name):
        self._cluster.start(name)
        self._note(f"{name} started")

    def _force(self, name):
        self._cluster.ask(name, "force")
        self._note(f"{name} compacts")

    def _pass(self, name, turns_max):
        count = self._draw.randrange(turns_max)
        self._cluster.ask(name, "turns", count=count)
        self._note(f"{count} turns of {name}")

    def _note(self, words):
        self.story.append(words)


def check(cluster, story):
    """All members have the same, at the same entry, and in it all that was acknowledged, once."""
    contents = cluster.settle()
    assert len({tuple(sorted(content.items())) for content in contents.values()}) == 1, (story, contents)
    found = cluster.ask(min(cluster.alive), "audit")
    assert (found["lost"], found["twice"]) == ([], []), (story, found)
    assert found["sum"] == found["applied"] >= found["acked"], (story, found)
    check_words(cluster, story)
    cluster.ask_all("write")
    return found


def check_words(cluster, story):
    """No member said anything grave; else that is shown, and not all that they said."""
    grave = cluster.grave()
    if grave:
        pytest.fail("\n\n".join([", ".join(story), *grave]), pytrace=False)


@pytest.mark.slow
def test_nothing_is_lost_or_differs_whoever_is_killed_whenever(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    seed = int(os.environ.get("KILLS_SEED", SEED))
    print(f"seed {seed}, {ROUNDS} rounds")
    with reserved_addresses(6) as addresses, Cast(str(tmp_path)) as cast:
        setups = make_setups(str(tmp_path), str(tmp_path), addresses, map_size=MAP_SIZE)
        cluster = Cluster(cast, setups, tmp_path)
        acked = 0
        for number in range(ROUNDS):
            game = Round(cluster, seed, number)
            print(f"seed {seed}, round {number}", end=": ", flush=True)
            try:
                game.play()
                found = check(cluster, game.story)
            finally:
                print(", ".join(game.story))
            assert found["acked"] > acked, "nobody wrote"
            acked = found["acked"]
        check_words(cluster, game.story)  # What was said since the last round, too.
        handed_over = sum(log.count("went on from snapshot") for log in cluster.logs())
    print(f"{acked} acknowledged, {found['applied']} applied, {handed_over} snapshots handed over")
    # It would prove little if the snapshots were not where the kills are.
    assert handed_over >= ROUNDS // 4
