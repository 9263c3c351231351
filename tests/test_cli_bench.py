"""`snapstore bench`: it measures, tells people and machines, draws, and leaves nothing behind."""

from __future__ import annotations

import json
import signal
import subprocess
from xml.etree import ElementTree

import pytest

from command_line import END_S_MAX, snapstore, spawn
from residue import names
from snapstore.bench.suite import run_suite
from snapstore.bench.ways import nothing
from snapstore.cli import ExitCode
from snapstore.cli.bench import check_memory

SIZE = 1024 * 1024


def test_every_way_moves_the_content_and_is_told(tmp_path):
    said = []
    report = run_suite(tmp_path, size=SIZE, rounds=1, busy=False, note=said.append, before=nothing)
    saves, walks = report.results
    assert [result.neighbour for result in report.results] == ["idle", "idle"]
    assert len(saves.comparison.samples) == 9
    assert len(walks.comparison.samples) == 5
    for result in report.results:
        assert result.comparison.rounds == 1
        assert all(line.ratio(result.comparison).median > 0 for line in result.lines)
    # The children's work is counted: whoever receives has written a MiB.
    assert walks.comparison.samples["sendfile, copyfileobj"][0].cpu_s > 0
    assert said[-1] == "to a follower, idle: round 1 of 1"


@pytest.mark.slow
def test_people_get_a_table_machines_json_and_both_a_picture(tmp_path):
    picture = tmp_path / "a.svg"
    command = ("bench", "--dir", tmp_path, "--size", "1MiB", "--rounds", 1, "--busy", "--plot", picture)
    code, out, err = snapstore(*command)
    assert code == ExitCode.DONE
    assert "to a follower beside a busy Python thread: 1.049 MB, 1 round" in out.splitlines()
    assert "all that the hardware gives" in out
    assert "LEFT OUT: copyfileobj 64 KiB beside the busy thread" in out
    assert "durable saves, busy: warming up" in err
    assert len(list(ElementTree.parse(picture).getroot().iter())) > 20
    assert names(tmp_path) == ["a.svg"]
    code, out, err = snapstore(*command, "--json")
    assert (code, err) == (ExitCode.DONE, "")
    assert [found["neighbour"] for found in json.loads(out)["comparisons"]] == ["idle", "busy"] * 2


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (("--size", "1000TiB"), ExitCode.SYSTEM, "are needed and"),
        (("--size", "1KiB"), ExitCode.USAGE, "less than 1 MiB"),
        (("--rounds", "0"), ExitCode.USAGE, "1 or more"),
        (("--plot", "{here}/nowhere/a.svg"), ExitCode.NOT_FOUND, "check the path"),
        (("--dir", "{here}/nowhere"), ExitCode.NOT_FOUND, "check the path"),
    ],
)
def test_what_cannot_be_measured_is_refused_at_once(tmp_path, options, code, words):
    options = [option.format(here=tmp_path) for option in options]
    found, out, err = snapstore("bench", *([] if "--dir" in options else ["--dir", tmp_path]), *options)
    assert (found, out) == (code, "")
    assert words in err
    assert names(tmp_path) == []


def test_more_than_half_of_the_memory_is_refused():
    check_memory(4 * SIZE, 8 * SIZE)
    with pytest.raises(OSError, match=r"--size is 4\.0 MiB.*smaller --size"):
        check_memory(4 * SIZE, 8 * SIZE - 2)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_and_nothing_is_left(tmp_path, number):
    command = ("bench", "--dir", tmp_path, "--size", "64MiB", "--rounds", 100)
    with spawn(*command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        for line in child.stderr:
            if "round 1 " in line:
                break
        child.send_signal(number)
        out, err = child.communicate(timeout=END_S_MAX)
    assert (child.returncode, out) == (ExitCode.INTERRUPTED, "")
    assert err.splitlines()[-1] == "snapstore: error: interrupted"
    assert names(tmp_path) == []
