"""Two exchanges over a real server, a real client and real LMDB: lines that are cut, members that end."""

from __future__ import annotations

import os
import threading
from dataclasses import replace

import pytest

from cutting_line import CuttingLine
from nodes import WAIT_S, wait_until
from raft_cluster import QUICK, Cluster
from raft_lmdb import Places
from snapstore import _fastpipe
from snapstore.testing.scripted_node import Message

#: Twelve chunks and a bit.
CONTENT = os.urandom(12 * _fastpipe.CHUNK_SIZE_DEFAULT + 13)

#: What each cut lets through: two whole chunks, and part of another one.
CUT_SIZE = _fastpipe.CHUNK_SIZE_DEFAULT * 5 // 2

#: Four attempts in a row that come no further are the end. How far one came is what the leader has read,
#: some of which lay in the line's buffers, so that it takes two or three to be further for certain.
STRICT = replace(QUICK, attempts_max=4, progress_size_min=1)


class LmdbCluster(Cluster):
    """A cluster whose members keep what they apply in LMDB; the leader has CONTENT besides."""

    def __init__(self, path):
        self.places = {member: Places(path / f"places-{member}") for member in (1, 2)}
        super().__init__(path, retry=STRICT)

    def begin(self, member, **life):
        places = self.places[member]
        kv = places.begin()
        if member == 1:
            kv.put(b"content", CONTENT)
        return super().begin(member, kv=kv, open_kv=places.open_kv, **life)

    def restart_follower(self):
        self.follower.close()
        self.follower = self.begin(2, log=self.follower.member.log)


@pytest.fixture
def pair(nothing_lost, tmp_path):
    with LmdbCluster(tmp_path) as cluster:
        yield cluster


class Cuts:
    """Cuts the first `count` attempts of a leader to its follower; `passed` is what each let through."""

    def __init__(self, pair, line, count, *, between=lambda: None):
        self.passed = []
        self._pair, self._line, self._count, self._between = pair, line, count, between
        self._send = pair.leader.client.send_snapshot
        pair.leader.client.send_snapshot = self._send_cut
        pair.leader.urls[2] = line.url

    def _send_cut(self, url, stream, **options):
        cut_size = CUT_SIZE if len(self.passed) < self._count else None
        self._line.cut_after(cut_size, url=self._pair.follower.server.url)
        try:
            return self._send(url, stream, **options)
        finally:
            self.passed.append(self._line.passed)
            if cut_size is not None:
                self._between()


def test_transfer_that_is_cut_again_and_again_goes_on_where_it_was(pair):
    def write():
        pair.leader.do(lambda member: member.node.propose(b"meanwhile"))

    with CuttingLine(pair.follower.server.url) as line:
        cuts = Cuts(pair, line, 5, between=write)
        pair.lend()
        pair.is_reported(True)
    assert pair.leader.ask(lambda member: member.reports) == [(2, True)]
    assert len(cuts.passed) == 6
    assert sum(cuts.passed) < len(CONTENT) + 6 * _fastpipe.CHUNK_SIZE_DEFAULT, "what was kept went again"
    assert pair.leader.ask(lambda member: member.kv.pins) == 1
    pair.is_equal()
    assert len(pair.places[2].all()) == 2, "the old one and the new one"


def test_follower_that_ends_in_the_middle_goes_on_where_it_was(pair):
    with CuttingLine(pair.follower.server.url) as line:
        cuts = Cuts(pair, line, 1, between=pair.restart_follower)
        pair.lend()
        pair.is_reported(True)
    assert sum(cuts.passed) < len(CONTENT) + CUT_SIZE
    assert pair.leader.ask(lambda member: member.kv.pins) == 1
    pair.is_equal()


def test_follower_that_ends_after_it_installed_serves_what_it_had(pair):
    pair.lend()
    pair.is_reported(True)
    pair.is_equal()
    before = pair.follower.ask(lambda member: (member.kv.applied, member.kv.entries))
    pair.restart_follower()
    assert pair.follower.ask(lambda member: (member.kv.applied, member.kv.entries)) == before
    assert len(pair.places[2].all()) == 1
    pair.leader.do(lambda member: member.node.propose(b"after"))
    pair.is_equal()


def test_reader_keeps_the_old_kv_until_it_is_done(pair):
    slot = pair.follower.member.slot
    with slot.reading() as old:
        pair.lend()
        pair.is_reported(True)
        pair.is_equal()
        assert old.entries == {}
        with slot.reading() as new:
            assert new.entries[b"content"] == CONTENT
        assert "open" in repr(old)
    wait_until(lambda: "closed" in repr(old))


def test_leader_that_steps_down_while_it_sends_is_told_all_the_same(pair):
    held, go_on = threading.Event(), threading.Event()
    send = pair.leader.client.send_snapshot

    def hold(url, stream, **options):
        held.set()
        assert go_on.wait(WAIT_S)
        return send(url, stream, **options)

    pair.leader.client.send_snapshot = hold
    pair.lend()
    assert held.wait(WAIT_S)
    beat = Message(to=1, term=7, **{"from": 3}).encode()
    pair.leader.do(lambda member: member.take(beat))
    pair.leader.until(lambda member: not member.node.leads)
    go_on.set()
    pair.is_reported(True)
    pair.leader.do(lambda member: member.node.campaign())
    pair.is_equal()
    assert pair.leader.ask(lambda member: member.reports) == [(2, True)]


def test_follower_that_leads_sends_what_it_was_sent(pair):
    pair.lend()
    pair.is_reported(True)
    pair.is_equal()
    pair.leader, pair.follower = pair.follower, pair.leader
    pair.leader.do(lambda member: member.node.campaign())
    pair.is_equal()
    pair.fall_behind()
    pair.lend()
    pair.is_reported(True)
    pair.is_equal()
    assert pair.leader.ask(lambda member: member.kv.entries[b"content"]) == CONTENT
