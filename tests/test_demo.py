"""The demo: that it shows what happened, fails when it must, and leaves nothing behind."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace

import pytest

from command_line import END_S_MAX, on_terminal, snapstore, spawn
from residue import names
from snapstore.cli import ExitCode
from snapstore.cli.demo import show
from snapstore.cli.demo_cast import Cast, ChildDied
from snapstore.cli.demo_machine import Memory
from snapstore.cli.demo_report import Report, Store, compare
from snapstore.cli.demo_stage import file_system_of
from snapstore.cli.demo_store import Content
from snapstore.cli.screen import JsonScreen, PlainScreen

STORE = Store(Content(keys=3, size=300, digest="sha256:00"), "crc32c:00")
MEMORY = Memory(anonymous_growth=1024, resident_peak=2048)
REPORT = Report(
    size=4096,
    index=7,
    file_system="ext4 on /dev/vda",
    pin_s=0.001,
    transfer_s=2.0,
    sync_s=0.01,
    restore_s=0.1,
    commits_per_s_before=100.0,
    commits_per_s_during=50.0,
    commits_during=100,
    leader_memory=MEMORY,
    follower_memory=MEMORY,
    pinned=STORE,
    restored=STORE,
)


def children_of(parent):
    """The processes whose parent is `parent`."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat") as stat:
                    fields = stat.read().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(fields[1]) == parent:
                found.append(int(name))
    return found


def test_a_snapshot_of_a_store_that_is_written_to_arrives_and_is_the_same(tmp_path):
    command = ("demo", "--size", "16MiB", "--dir", tmp_path, "--json")
    with spawn(*command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        out, err = child.communicate(timeout=END_S_MAX)
    assert (child.returncode, err) == (ExitCode.DONE, "")
    report = json.loads(out)
    assert report["identical"] is True
    assert report["pinned"] == report["restored"]
    assert report["size"] >= 16 * 2**20
    assert report["pinned"]["content"]["keys"] > 1000
    assert report["commits_per_s_before"] > 0
    assert report["index"] >= report["commits_per_s_before"]
    assert report["leader_memory"]["anonymous_growth"] < report["size"]
    assert names(tmp_path) == []


@pytest.mark.slow
def test_on_a_terminal_it_draws_bars_and_ends_with_the_table(tmp_path):
    seen, code = on_terminal("demo", "--size", "8MiB", "--dir", tmp_path)
    assert code == ExitCode.DONE
    for words in ("fill the store", "send the snapshot", "compare the contents", "━", "throughput"):
        assert words in seen
    assert "\x1b[1;32midentical" in seen
    assert names(tmp_path) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_one_removes_its_stores_and_ends_its_processes(tmp_path, number):
    with spawn("demo", "--size", "64MiB", "--dir", tmp_path, stderr=subprocess.PIPE, text=True) as child:
        while not child.stderr.readline().startswith("the writer begins"):
            pass
        children = children_of(child.pid)
        assert len(children) == 2
        child.send_signal(number)
        assert child.wait(END_S_MAX) == ExitCode.INTERRUPTED
        assert child.stderr.read() == "snapstore: error: interrupted\n"
    assert names(tmp_path) == []
    assert not any(os.path.exists(f"/proc/{pid}") for pid in children)


def test_one_whose_child_dies_says_so_and_cleans_up(tmp_path):
    with spawn("demo", "--size", "64MiB", "--dir", tmp_path, stderr=subprocess.PIPE, text=True) as child:
        while not child.stderr.readline().startswith("the writer begins"):
            pass
        os.kill(min(children_of(child.pid)), signal.SIGKILL)
        assert child.wait(END_S_MAX) == ExitCode.SYSTEM
        assert "process was killed by signal 9" in child.stderr.read()
    assert names(tmp_path) == []


def test_one_without_room_is_refused_before_anything_is_written(tmp_path):
    code, out, err = snapstore("demo", "--size", "90000TiB", "--dir", tmp_path)
    assert (code, out) == (ExitCode.SYSTEM, "")
    assert "are needed" in err
    assert "--size" in err
    assert names(tmp_path) == []


def test_a_directory_that_is_not_there_is_named(tmp_path):
    code, _, err = snapstore("demo", "--dir", tmp_path / "nowhere")
    assert (code, str(tmp_path / "nowhere") in err) == (ExitCode.NOT_FOUND, True)


def test_the_signals_are_given_back(tmp_path):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    snapstore("demo", "--size", "90000TiB", "--dir", tmp_path)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


@pytest.mark.parametrize(
    ("restored", "word"),
    [
        (replace(STORE, image_digest="crc32c:ff"), "image"),
        (replace(STORE, content=replace(STORE.content, keys=2)), "keys"),
        (replace(STORE, content=replace(STORE.content, size=299)), "size"),
        (replace(STORE, content=replace(STORE.content, digest="sha256:ff")), "digest"),
    ],
)
def test_any_difference_is_named_and_makes_the_outcome_bad(capsys, restored, word):
    report = replace(REPORT, restored=restored)
    assert len(report.differences) == 1
    assert word in report.differences[0]
    assert show(report, PlainScreen()) == ExitCode.OUTCOME_BAD
    assert capsys.readouterr().out.splitlines()[-1].startswith("comparison  ")
    assert show(report, JsonScreen()) == ExitCode.OUTCOME_BAD
    assert json.loads(capsys.readouterr().out)["identical"] is False


def test_equal_stores_are_identical(capsys):
    assert compare(STORE, STORE) == []
    assert show(REPORT, PlainScreen()) == ExitCode.DONE
    out = capsys.readouterr().out
    assert out.splitlines()[-1].split() == ["comparison", "identical"]
    assert "2.0 KiB/s (2.00 s, last fsync included)" in out


def test_a_child_that_dies_is_quoted(tmp_path):
    with Cast(str(tmp_path)) as cast:
        cast.start("reader", "json.tool", "--no-such-option")
        with pytest.raises(ChildDied, match=r"the reader process ended with exit code 2.*no-such-option"):
            cast.hear("reader", "anything")


def test_events_wait_until_they_are_asked_for_and_progress_is_told(tmp_path):
    lines = [{"event": "early", "n": 1}, {"event": "progress", "bytes": 5}, {"event": "late"}]
    # A program of the standard library that prints what we like.
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "lines").write_bytes(base64.encodebytes(text.encode()))
    told = []
    with Cast(str(tmp_path)) as cast:
        cast.start("player", "base64", "-d", tmp_path / "lines")
        assert cast.hear("player", "late", lambda name, done: told.append((name, done))) == {}
        assert cast.hear("player", "early") == {"n": 1}
    assert told == [("player", 5)]


@pytest.mark.parametrize("module", ["demo_follower", "demo_leader"])
def test_a_child_ends_with_its_parent(tmp_path, module):
    arguments = [str(tmp_path / "store"), str(2**30)][: 1 if module == "demo_follower" else 2]
    program = [sys.executable, "-m", f"snapstore.cli.{module}", *arguments]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert json.loads(child.stdout.readline())["event"] in ("listening", "progress")
        child.stdin.close()
        assert child.wait(END_S_MAX) == 0


def test_the_file_system_is_named(tmp_path):
    assert file_system_of("/proc/self") == "proc on proc"
    assert " on " in file_system_of(str(tmp_path))
