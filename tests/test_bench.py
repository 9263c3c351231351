"""Benchmarks: the arithmetic, the order of the rounds, what is reported, and that contents are verified."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from xml.etree import ElementTree

import lmdb
import pytest

from benchmarks.conftest import Race
from benchmarks.floors import read_floors
from snapstore import SnapshotDir
from snapstore._fastpipe import CHUNK_SIZE_DEFAULT, PIPE_CHUNKS_DEFAULT
from snapstore.bench.comparison import Comparison, Sample, Spread
from snapstore.bench.content import PIECE_SIZE, Content
from snapstore.bench.hardware import refuses_direct, write_disk
from snapstore.bench.lmdb_content import LmdbContent
from snapstore.bench.machine import look_at_machine
from snapstore.bench.plot import plot
from snapstore.bench.report import Bounds, Line, Report, Result
from snapstore.bench.rounds import Turns, order
from snapstore.bench.saves import save_ways
from snapstore.bench.table import figure, table
from snapstore.bench.ways import Way, nothing

GB = 1_000_000_000


def comparison(**seconds):
    """A comparison of ways by their seconds for a GB; the CPU takes half of each."""
    return Comparison({name: [Sample(s, s / 2, GB) for s in taken] for name, taken in seconds.items()})


def test_a_ratio_is_taken_from_each_round_by_itself():
    found = comparison(ours=[1.0, 2.0, 10.0], theirs=[2.0, 6.0, 10.0])
    assert found.ratio("ours", "theirs") == Spread(2.0, 1.0, 3.0)  # That of the medians is 3.
    assert found.ratio("theirs", "ours") == Spread(0.5, 1 / 3, 1.0)
    assert found.cpu_ratio("ours", "theirs") == Spread(0.5, 1 / 3, 1.0)
    assert found.gb_s("ours") == Spread(0.5, 0.1, 1.0)
    assert found.cpu_s_per_gb("ours") == Spread(1.0, 0.5, 5.0)
    assert (found.fastest("ours", "theirs"), found.slowest("ours", "theirs")) == ("ours", "theirs")


def test_ways_of_different_sizes_are_compared_by_their_rates():
    found = Comparison({"small": [Sample(1.0, 0.1, GB // 4)], "large": [Sample(2.0, 0.4, GB)]})
    assert found.ratio("large", "small").median == 2.0
    assert found.cpu_ratio("large", "small").median == 1.0


@pytest.mark.parametrize("samples", [{}, {"ours": []}, {"ours": [Sample(1, 1, 1)], "theirs": []}])
def test_rounds_that_are_not_whole_are_refused(samples):
    with pytest.raises(ValueError, match="the same number of rounds"):
        Comparison(samples)


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_in_the_course_of_the_rounds_each_way_stands_at_each_place_alike(count):
    ways = [Way(str(number), nothing) for number in range(count)]
    rounds = [order(ways, number) for number in range(2 * count)]
    for place in range(count):
        names = [turn[place].name for turn in rounds]
        assert sorted(names) == sorted(2 * [way.name for way in ways])


def test_two_ways_come_in_the_order_there_and_back():
    ways = [Way("a", nothing), Way("b", nothing)]
    assert "".join(way.name for number in range(5) for way in order(ways, number)) == "abbabaabab"


def in_turn(ways, *, rounds, size, before=nothing):
    """Time each of the ways `rounds` times, and once before to warm up."""
    turns = Turns(ways, size=size, before=before)
    for _ in range(rounds + 1):
        turns.turn()
    return turns.comparison()


def test_the_first_round_does_not_count_and_only_the_run_is_timed():
    seen = []
    told_s = iter((100.0, 1.0, 2.0, 3.0))

    @contextmanager
    def beside():
        seen.append("beside")
        yield
        seen.append("left")

    def run():
        seen.append("run")
        return next(told_s)

    way = Way("ours", run, lambda: seen.append("check"), lambda: seen.append("prepare"), beside)
    found = in_turn([way], rounds=3, size=6 * GB, before=lambda: seen.append("before"))
    assert [sample.wall_s for sample in found.samples["ours"]] == [1.0, 2.0, 3.0]
    assert found.gb_s("ours") == Spread(3.0, 2.0, 6.0)
    assert seen == 4 * ["prepare", "before", "beside", "run", "left", "check"]


def test_a_way_that_cannot_tell_its_cpu_tells_none(tmp_path):
    ways = [Way("ours", lambda: 1.0), Way("theirs", lambda: 2.0, tells_cpu=False)]
    found = in_turn(ways, rounds=1, size=GB)
    assert found.samples["theirs"][0].cpu_s is None
    assert found.cpu_s_per_gb("ours") is not None
    assert found.cpu_s_per_gb("theirs") is None
    with pytest.raises(ValueError, match="nobody can tell"):
        found.cpu_ratio("ours", "theirs")
    ours, theirs = found.to_json()
    assert ours["cpu_s_per_gb"] is not None
    assert (theirs["cpu_s_per_gb"], theirs["samples"]) == (None, [{"wall_s": 2.0, "cpu_s": None, "size": GB}])
    shown = table(
        Report(look_at_machine(tmp_path), [Result("saves", found, GB, [Line("a", "ours", "theirs")])])
    )
    (line,) = [line for line in shown.splitlines() if line.startswith("  theirs")]
    assert line.split() == ["theirs", "0.50", "0.50", "to", "0.50", "-"]


def test_a_way_that_fails_its_check_is_no_figure():
    def check():
        raise ValueError("not what was written")

    turns = Turns([Way("ours", nothing, check)], size=1, before=nothing)
    with pytest.raises(ValueError, match="not what was written"):
        turns.turn()
    with pytest.raises(ValueError, match="rounds"):
        turns.comparison()


def test_two_ways_of_one_name_are_refused():
    with pytest.raises(ValueError, match="one name"):
        Turns([Way("a", nothing), Way("a", nothing)], size=1)


#: For each line it computes, and then says how much CPU it has used in all.
BURNER = "import sys, time\nfor _ in sys.stdin: sum(range(300_000)); print(time.process_time(), flush=True)"


def test_the_cpu_of_a_live_process_counts_and_that_of_children_that_ended():
    with subprocess.Popen(
        [sys.executable, "-c", BURNER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        used_s = []

        def burn():
            print(file=child.stdin, flush=True)
            used_s.append(float(child.stdout.readline()))

        def burn_in_a_child():
            subprocess.run([sys.executable, "-c", BURNER], input="\n", check=True, text=True, stdout=-3)

        ways = [Way("live", burn, processes=(child.pid,)), Way("ended", burn_in_a_child)]
        found = in_turn(ways, rounds=1, size=GB)
        child.stdin.close()
    assert found.samples["live"][0].cpu_s >= used_s[1] - used_s[0] > 0
    # A whole interpreter was started.
    assert found.samples["ended"][0].cpu_s > used_s[1] - used_s[0]


def test_a_save_from_a_pipe_that_fails_leaves_no_thread(tmp_path):
    content = Content(PIPE_CHUNKS_DEFAULT * CHUNK_SIZE_DEFAULT + 1)  # More than the pipe holds.
    stage = SimpleNamespace(content=content, source=tmp_path / "source", warm=nothing)
    directory = SnapshotDir(tmp_path / "snapshots")
    *_, pipe = save_ways(stage, directory)
    directory.close()
    with pytest.raises(ValueError, match="closed"):
        pipe.run()
    assert "bench-feeder" not in [thread.name for thread in threading.enumerate()]


@pytest.mark.parametrize("size", [1, PIECE_SIZE, 2 * PIECE_SIZE + 5])
def test_content_is_what_it_was_in_memory_and_in_a_file(tmp_path, size):
    content, path = Content(size), tmp_path / "file"
    content.write(path)
    content.check(path)
    assert path.read_bytes() == bytes(content.memory)
    assert len(content.memory) == size


def swap(data):
    return data[PIECE_SIZE : 2 * PIECE_SIZE] + data[:PIECE_SIZE] + data[2 * PIECE_SIZE :]


def flip(data):
    return data[:-1] + bytes([data[-1] ^ 1])


@pytest.mark.parametrize("damage", [swap, flip, lambda data: data[:-1], lambda data: data + b"x"])
def test_a_content_that_is_wrong_is_found(tmp_path, damage):
    content, path = Content(2 * PIECE_SIZE + 5), tmp_path / "file"
    path.write_bytes(damage(bytes(content.memory)))
    with pytest.raises(ValueError, match="file"):
        content.check(path)


def change(txn, key, value):
    txn.put(key, value[:-1] + bytes([value[-1] ^ 1]))


@pytest.mark.parametrize(
    "damage", [change, lambda txn, key, _: txn.delete(key), lambda txn, *_: txn.put(b"\xff", b"")]
)
def test_an_lmdb_content_that_is_wrong_is_found(tmp_path, damage):
    content = LmdbContent(tmp_path / "store", 100_000)
    image = tmp_path / "store" / "data.mdb"
    content.check(image)
    with lmdb.open(str(tmp_path / "store"), map_size=content.map_size) as env, env.begin(write=True) as txn:
        cursor = txn.cursor()
        cursor.last()
        damage(txn, cursor.key(), cursor.value())
    with pytest.raises(ValueError, match="store"):
        content.check(image)


@pytest.mark.parametrize("size", [1, 4096, 5 * 1024 * 1024 + 7])
def test_the_disk_alone_gets_as_many_bytes_as_were_asked_for(tmp_path, size):
    direct = not refuses_direct(tmp_path)
    for number, way in enumerate({direct, False}):
        path = tmp_path / str(number)
        assert write_disk(str(path), size, direct=way) > 0
        assert path.stat().st_size == size


def report(tmp_path):
    """One comparison, idle and busy, with a ratio of each kind, and a name that markup would stumble over."""
    found = comparison(ours=[1.0, 1.0, 2.0], disk=[0.9, 0.9, 0.9], other=[3.0, 2.0, 4.0])
    lines = [
        Line("of <disk> & more", "ours", "disk", bounds=Bounds(0.5, 0.85, 0.95)),
        Line("of-other", "ours", "other", bounds=Bounds(3.0)),
        Line("cpu", "ours", "other", "cpu", Bounds(0.6, 0.4, at_most=True)),
        Line("free", "ours", "other"),
    ]
    results = [Result("saves", found, GB, lines, neighbour) for neighbour in ("idle", "busy")]
    return Report(look_at_machine(tmp_path), results, ["test_etcd: no etcd here"])


def test_the_report_in_json_has_all_that_was_measured(tmp_path):
    told = json.loads(json.dumps(report(tmp_path).to_json()))
    assert told.keys() == {"schema", "machine", "comparisons", "left_out"}
    assert told["schema"] == 1
    assert told["machine"]["cores"] == len(os.sched_getaffinity(0))
    assert told["machine"].keys() == {
        "cpu", "cores", "memory", "kernel", "python", "snapstore", "crc32c", "file_system", "mount_options",
        "device",
    }  # fmt: skip
    idle, busy = told["comparisons"]
    assert (idle["neighbour"], busy["neighbour"]) == ("idle", "busy")
    assert (idle["size"], idle["rounds"]) == (GB, 3)
    ours = idle["ways"][0]
    assert ours["name"] == "ours"
    assert ours["samples"][2] == {"wall_s": 2.0, "cpu_s": 1.0, "size": GB}
    assert ours["gb_s"] == {"median": 1.0, "low": 0.5, "high": 1.0}
    assert idle["ratios"][2] == {
        "name": "cpu", "ours": "ours", "baseline": "other", "of": "cpu",
        "median": 0.5, "low": 1 / 3, "high": 0.5,
        "bounds": {"floor": 0.6, "goal": 0.4, "wish": None, "at_most": True},
    }  # fmt: skip
    assert idle["ratios"][3]["bounds"] is None


def test_the_table_says_what_is_broken_and_what_was_left_out(tmp_path):
    text = table(report(tmp_path))
    lines = text.splitlines()
    verdicts = {
        line.split("  ")[1]: line.split()[-1] for line in lines if line.startswith("  of") or "cpu" in line
    }
    assert verdicts == {"of <disk> & more": "reached", "of-other": "BROKEN", "cpu": "missed"}
    assert "saves beside a busy Python thread: 1000 MB, 3 rounds" in lines
    assert lines[-1] == "LEFT OUT: test_etcd: no etcd here"
    assert lines[0].startswith("machine ")


def test_the_plot_is_svg_with_a_dot_for_each_ratio_where_it_belongs(tmp_path):
    name = "{http://www.w3.org/2000/svg}"
    svg = ElementTree.fromstring(plot(report(tmp_path)))
    assert svg.tag == f"{name}svg"
    texts = [text.text for text in svg.iter(f"{name}text")]
    assert texts.count("of <disk> & more") == 2
    assert "of other" in texts
    dots = list(svg.iter(f"{name}circle"))
    assert [dot.get("class").split()[0] for dot in dots] == 2 * ["good", "broken", "short", "plain"]
    # 0.9, 2, 0.5 and 2 times: as far to the right as it is more.
    disk, other, cpu, free = (float(dot.get("cx")) for dot in dots[:4])
    assert cpu < disk < other == free
    width = float(svg.get("width"))
    assert all(0 < float(dot.get("cx")) < width for dot in dots)
    (one,) = [line for line in svg.iter(f"{name}line") if line.get("class") == "one"]
    # Logarithmic: half is as far from 1 as double.
    assert float(one.get("x1")) - cpu == pytest.approx(other - float(one.get("x1")), abs=0.3)


@pytest.mark.parametrize(
    ("number", "text"),
    [(0.087, "0.087"), (0.85, "0.85"), (1.85, "1.85"), (9.99, "9.99"), (12.44, "12.4"), (254.3, "254")],
)
def test_figures_have_two_or_three_digits(number, text):
    assert figure(number) == text


def test_the_machine_is_told_without_its_owner(tmp_path):
    machine = look_at_machine(tmp_path)
    assert machine.memory > 0
    assert re.match(r"[0-9]+\.[0-9]+", machine.kernel)
    assert os.uname().nodename not in json.dumps(machine.to_json())


def test_the_committed_floors_have_reasons_and_lead_to_their_goals():
    floors = read_floors()
    assert floors["memory-against-disk"].goal == 0.85
    for text in (
        "[a]\nfloor = 1.0",
        "[a]\nfloor = 1.0\nreason = ''",
        "[a]\nfloor = 1.0\ngoal = 0.9\nreason = 'less'",
        "[a]\nfloor = 0.5\ngoal = 0.9\nat_most = true\nreason = 'more'",
    ):
        with pytest.raises(ValueError, match=r"^a\b"):
            read_floors(text)
    assert read_floors("[a]\nfloor = 0.7\ngoal = 0.5\nat_most = true\nreason = 'less'")["a"].at_most


class Pedantic:
    """pytest-benchmark, as far as a race needs it."""

    def __init__(self):
        self.extra_info = {}

    def pedantic(self, call, *, rounds, warmup_rounds):
        for _ in range(rounds + warmup_rounds):
            call()


@pytest.mark.parametrize(
    ("seconds", "rounds", "broken"),
    [
        ((1, 1, 1, 1), 3, False),
        ((1, 9, 9, 9, 9, 1, 1), 6, True),
        ((1, 9, 9, 1, 1, 1, 1), 6, False),
    ],
)
def test_what_breaks_a_floor_is_measured_once_more_and_all_rounds_count(tmp_path, seconds, rounds, broken):
    told_s = iter(seconds)
    ways = [Way("ours", lambda: float(next(told_s))), Way("disk", lambda: 0.9)]
    found = report(tmp_path)
    race = Race("saves", "idle", Pedantic(), None, found, before=nothing)
    race.run(ways, size=GB, rounds=3)
    with (
        pytest.raises(AssertionError, match=r"memory-against-disk: 0.1 .*floor 0.5")
        if broken
        else nullcontext()
    ):
        race.judge(Line("memory-against-disk", "ours", "disk"))
    assert found.results[-1].comparison.rounds == rounds
    assert list(told_s) == []


def test_what_breaks_a_floor_and_what_reaches_a_goal():
    more, less = Bounds(0.5, 0.8), Bounds(0.7, 0.5, at_most=True)
    assert [more.holds(ratio) for ratio in (0.49, 0.5, 9)] == [False, True, True]
    assert [more.reached(ratio) for ratio in (0.79, 0.8)] == [False, True]
    assert [less.holds(ratio) for ratio in (0.71, 0.7, 0.1)] == [False, True, True]
    assert [less.reached(ratio) for ratio in (0.51, 0.5)] == [False, True]
    assert Bounds(0.5).reached(9) is None
