"""The raft demo: that a node really loses all and gets it back, and that what is shown was found."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from dataclasses import replace

import pytest

from command_line import snapstore, spawn
from residue import names
from snapstore.cli import ExitCode
from snapstore.cli.demo_cast import Cast, ChildDied, NotHeard
from snapstore.cli.demo_machine import Memory
from snapstore.cli.demo_store import Content
from snapstore.cli.raft_demo import reserved_addresses, show
from snapstore.cli.raft_demo_report import Final, Outcome, RaftReport, Span
from snapstore.cli.raft_demo_ticks import Stalls, TickWatch, stalls_of
from snapstore.cli.screen import JsonScreen, PlainScreen
from test_demo import children_of

SPAN = Span(
    elapsed_s=2.0,
    commits_per_s=900.0,
    cpu_s=0.5,
    waited_s=0.0,
    memory=Memory(anonymous_growth=1024, resident_peak=2048),
    stalls=Stalls(ticks=200, p50_s=0.0, p99_s=0.02, max_s=0.1),
)
FINAL = Final(applied=7, content=Content(keys=3, size=300, digest="sha256:00"))
OUTCOME = Outcome(
    size=4096,
    limit_s=180.0,
    caught_up_s=2.0,
    handed_over_s=1.0,
    elections=0,
    before=SPAN,
    making=SPAN,
    during=SPAN,
    after=SPAN,
    newcomer=SPAN,
    finals={"node1": FINAL, "node2": FINAL, "node3": FINAL},
)

#: A demo of some MiB on a busy machine, start of its processes included.
DEMO_S_MAX = 120.0


def play(directory, *arguments):
    command = ("demo", "raft", "--dir", directory, "--json", *arguments)
    with spawn(*command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        out, err = child.communicate(timeout=DEMO_S_MAX)
    assert (child.returncode, err) == (ExitCode.DONE, ""), out
    return json.loads(out)


def check(outcome):
    """What any way must come to."""
    assert outcome["differences"] == []
    assert outcome["elections"] == 0
    assert len({json.dumps(final) for final in outcome["finals"].values()}) == 1
    assert outcome["finals"]["node1"]["content"]["size"] > 8 * 2**20
    assert outcome["size"] > 8 * 2**20
    assert 0 < outcome["handed_over_s"] < outcome["caught_up_s"]
    for span in ("before", "making", "during", "after"):
        assert outcome[span]["stalls"]["ticks"] > 1
    assert min(outcome[span]["commits_per_s"] for span in ("before", "during", "after")) > 0


@pytest.mark.slow
def test_a_node_that_lost_all_is_handed_a_snapshot_while_writes_go_on_and_is_equal_to_the_others(tmp_path):
    report = play(tmp_path, "--size", "8MiB")
    assert report["identical"] is True
    assert (report["nodes"], report["own_dumps"]) == (3, None)
    check(report["tickets"])
    assert names(tmp_path) == []


@pytest.mark.slow
def test_the_same_with_more_nodes_and_beside_pysyncobjs_own_dumps(tmp_path):
    report = play(tmp_path, "--size", "8MiB", "--nodes", "5", "--baseline")
    check(report["tickets"])
    check(report["own_dumps"])
    assert len(report["own_dumps"]["finals"]) == 5
    assert report["paced"] is None
    assert names(tmp_path) == []


@pytest.mark.slow
def test_the_same_with_paced_transfers_durable_logs_and_a_busy_disk(tmp_path):
    logs, stores = tmp_path / "logs", tmp_path / "stores"
    logs.mkdir()
    stores.mkdir()
    report = play(
        logs, "--kv-dir", stores, "--size", "8MiB", "--paced", "--fsync-log", "--busy-disk", "20MB/s"
    )
    check(report["paced"])
    assert names(logs) == names(stores) == []


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_one_removes_its_stores_and_ends_its_processes(tmp_path, number):
    command = ("demo", "raft", "--size", "64MiB", "--dir", tmp_path)
    with spawn(*command, stderr=subprocess.PIPE, text=True) as child:
        while not child.stderr.readline().startswith("fill the stores"):
            pass
        children = children_of(child.pid)
        assert len(children) == 3
        child.send_signal(number)
        assert child.wait(DEMO_S_MAX) == ExitCode.INTERRUPTED
        assert child.stderr.read() == "snapstore: error: interrupted\n"
    assert names(tmp_path) == []
    assert not any(os.path.exists(f"/proc/{pid}") for pid in children)


@pytest.mark.slow
def test_one_whose_node_dies_by_itself_says_so_and_cleans_up(tmp_path):
    command = ("demo", "raft", "--size", "64MiB", "--dir", tmp_path)
    with spawn(*command, stderr=subprocess.PIPE, text=True) as child:
        while not child.stderr.readline().startswith("fill the stores"):
            pass
        os.kill(min(children_of(child.pid)), signal.SIGKILL)
        assert child.wait(DEMO_S_MAX) == ExitCode.SYSTEM
        assert "process was killed by signal 9" in child.stderr.read()
    assert names(tmp_path) == []


def test_one_without_room_is_refused_before_anything_is_written(tmp_path):
    code, out, err = snapstore("demo", "raft", "--size", "90000TiB", "--dir", tmp_path)
    assert (code, out) == (ExitCode.SYSTEM, "")
    assert "are needed" in err
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--baseline",), "belongs to the raft demo"),
        (("--nodes", "3"), "belongs to the raft demo"),
        (("--kv-dir", "/tmp"), "--kv-dir belongs to the raft demo"),
        (("--paced",), "--paced belongs to the raft demo"),
        (("--fsync-log",), "--fsync-log belongs to the raft demo"),
        (("raft", "--nodes", "2"), "no majority without one of them"),
        (("swim",), "invalid choice: 'swim'"),
    ],
)
def test_what_makes_no_sense_is_refused_with_the_usage(arguments, words):
    code, out, err = snapstore("demo", *arguments)
    assert (code, out) == (ExitCode.USAGE, "")
    assert words in err
    assert "usage: snapstore demo" in err


def test_without_pysyncobj_it_names_the_extra(monkeypatch):
    for name in list(sys.modules):
        if name.startswith(("snapstore.cli.raft_demo", "snapstore.raft.pysyncobj", "pysyncobj")):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pysyncobj", None)
    code, out, err = snapstore("demo", "raft")
    assert (code, out) == (ExitCode.SYSTEM, "")
    assert "pip install 'snapstore[raft]'" in err


def changed(**fields):
    return replace(OUTCOME, finals={**OUTCOME.finals, "node2": replace(FINAL, **fields)})


@pytest.mark.parametrize(
    ("outcome", "words"),
    [
        (replace(OUTCOME, caught_up_s=None, handed_over_s=None), "did not catch up in 180 s"),
        (replace(OUTCOME, elections=2), "there were 2 elections"),
        (changed(applied=6), "node1 applied 7 entries, node2 6"),
        (changed(content=replace(FINAL.content, keys=2)), "keys of the content of node1 is 3, of node2 2"),
        (changed(content=replace(FINAL.content, size=299)), "size of the content"),
        (changed(content=replace(FINAL.content, digest="sha256:ff")), "digest of the content"),
    ],
)
def test_whatever_is_wrong_is_named_and_makes_the_outcome_bad(capsys, outcome, words):
    assert len(outcome.differences) == 1
    assert words in outcome.differences[0]
    report = RaftReport(3, "ext4 on /dev/vda", outcome)
    assert show(report, PlainScreen()) == ExitCode.OUTCOME_BAD
    assert capsys.readouterr().out.splitlines()[-1].startswith("comparison")
    assert show(report, JsonScreen()) == ExitCode.OUTCOME_BAD
    assert json.loads(capsys.readouterr().out)["identical"] is False
    # PySyncObj's own way is shown, and judged by nobody.
    assert show(RaftReport(3, "ext4 on /dev/vda", OUTCOME, own_dumps=outcome), PlainScreen()) == ExitCode.DONE
    assert words in capsys.readouterr().out
    # Where paced transfers were asked for, the others show what happens without.
    report = RaftReport(3, "ext4 on /dev/vda", outcome, paced=OUTCOME)
    assert show(report, PlainScreen()) == ExitCode.DONE
    assert words in capsys.readouterr().out
    assert (
        show(RaftReport(3, "ext4 on /dev/vda", OUTCOME, paced=outcome), PlainScreen()) == ExitCode.OUTCOME_BAD
    )
    assert words in capsys.readouterr().out


def test_both_ways_stand_beside_each_other(capsys):
    never = replace(OUTCOME, caught_up_s=None, handed_over_s=None)
    assert show(RaftReport(3, "ext4 on /dev/vda", OUTCOME, own_dumps=never), PlainScreen()) == ExitCode.DONE
    out = capsys.readouterr().out
    assert "tickets" in out.splitlines()[0]
    assert "PySyncObj's own dumps" in out.splitlines()[0]
    caught_up = next(line for line in out.splitlines() if line.startswith("caught up"))
    assert caught_up.split()[-6:] == ["2.00", "s", "never,", "in", "180", "s"]
    assert "0 / 20 / 100 ms" in out


class Turns:
    """A clock whose times are those of the turns of a loop."""

    def __init__(self, *times_s):
        self._times_s = iter(times_s)

    def __call__(self):
        return next(self._times_s)


def test_a_turn_counts_as_far_as_it_is_longer_than_a_period():
    watch = TickWatch(0.1, Turns(0.0, 0.05, 0.15, 1.25, 1.5, 2.0, 2.05))
    for _ in range(3):
        watch()
    # Two turns that only waited; one that took 1.1 s; and one that goes on for 0.25 s now.
    assert watch.take() == Stalls(4, 0.0, 1.0, 1.0)
    watch()
    stalls = watch.take()
    assert (stalls.ticks, stalls.max_s) == (2, pytest.approx(0.65))


def test_percentiles_are_times_that_were_measured():
    assert stalls_of([0.3]) == Stalls(1, 0.3, 0.3, 0.3)
    assert stalls_of([number / 1000 for number in range(100)]) == Stalls(100, 0.049, 0.098, 0.099)


def test_reserved_addresses_are_given_to_who_asks_for_them_and_to_nobody_else():
    with reserved_addresses(3) as addresses:
        assert len(set(addresses)) == 3
        for address in addresses:
            host, port = address.split(":")
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection((host, int(port)))
            for _ in range(2):  # Again, as one that was killed.
                with socket.create_server((host, int(port))), socket.create_connection((host, int(port))):
                    pass


@pytest.mark.slow
def test_one_that_was_killed_is_no_death_and_may_come_again(tmp_path):
    with Cast(str(tmp_path)) as cast:
        for number in range(3):
            cast.start("node", "snapstore.cli.demo_follower", tmp_path / f"follower{number}")
            with pytest.raises(NotHeard, match="the node process did not tell 'anything' within 0 s"):
                cast.hear("node", "anything", timeout_s=0.0)
            assert cast.hear("node", "listening", timeout_s=DEMO_S_MAX)["url"].startswith("http://")
            cast.kill("node")
        cast.start("other", "json.tool", "--no-such-option")
        with pytest.raises(ChildDied, match="the other process ended"):
            cast.hear("node", "anything")
