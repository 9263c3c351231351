"""What every benchmark shares: the size, the content, a busy neighbour, and races against baselines.

A test gives its ways to `race`, and says which ratios count: those stand in `floors.toml`, and the test
fails where one is below its floor. `--bench-report DIR` keeps what the whole run found.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.built import leave_out
from benchmarks.floors import read_floors
from snapstore.bench.content import Content
from snapstore.bench.machine import look_at_machine
from snapstore.bench.neighbour import busy_thread
from snapstore.bench.plot import plot
from snapstore.bench.report import Report, Result
from snapstore.bench.rounds import Turns
from snapstore.bench.stage import Stage
from snapstore.bench.table import table
from snapstore.cli.arguments import parse_count, parse_size
from snapstore.cli.commands.bench import BENCH_ROUNDS_DEFAULT

#: Large enough that the last fsync and the threads' start are small beside the bytes; figures that are
#: published are of 1GiB.
SIZE_DEFAULT = "256MiB"

#: File systems that no disk is under: what is fast there says nothing of one.
IN_MEMORY = "tmpfs", "ramfs"

FLOORS = read_floors()

REPORT = pytest.StashKey[Report]()


def pytest_addoption(parser):
    """Take the size, the rounds, and where the report goes."""
    group = parser.getgroup("snapstore")
    size = os.environ.get("SNAPSTORE_BENCH_SIZE", SIZE_DEFAULT)
    group.addoption("--bench-size", type=parse_size, default=parse_size(size), help="bytes, as 1GiB")
    group.addoption("--bench-rounds", type=parse_count, default=BENCH_ROUNDS_DEFAULT, help="how many count")
    group.addoption("--bench-report", type=Path, metavar="DIR", help="write report.json, .txt and .svg there")


@pytest.fixture(scope="session")
def report(pytestconfig, tmp_path_factory):
    """What the whole run finds; the machine is looked at where the files of the benchmarks lie."""
    report = pytestconfig.stash[REPORT] = Report(look_at_machine(tmp_path_factory.getbasetemp()))
    if report.machine.file_system in IN_MEMORY:
        leave_out(f"the files lie in memory ({report.machine.file_system}); give --basetemp on a disk")
    return report


def pytest_terminal_summary(terminalreporter, config):
    """Show the report, and write it where that was asked for. What was skipped must be seen there."""
    report = config.stash.get(REPORT, None)
    if report is None:
        return
    report.left_out += sorted(
        {
            skipped.longrepr[2].removeprefix("Skipped: ")
            for skipped in terminalreporter.stats.get("skipped", [])
        }
    )
    terminalreporter.section("ratios")
    terminalreporter.write(table(report))
    directory = config.getoption("--bench-report")
    if directory is not None:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "report.json").write_text(json.dumps(report.to_json(), indent=1) + "\n")
        (directory / "report.txt").write_text(table(report))
        (directory / "report.svg").write_text(plot(report))


@pytest.fixture(scope="session")
def size(pytestconfig):
    return pytestconfig.getoption("--bench-size")


@pytest.fixture(scope="session")
def content(size):
    """Return `size` bytes in memory, which can write themselves to a file and verify one."""
    return Content(size)


@pytest.fixture
def stage(content, tmp_path):
    """Return where ways play: the content in a file, and the processes of the other side."""
    with Stage(tmp_path, content) as stage:
        yield stage


@pytest.fixture(params=["idle", "busy"])
def neighbour(request):
    """Whether this process does nothing else, or has a thread computing in Python, while a way is timed."""
    return request.param


class Race:
    """Ways against each other; what comes of it goes into the report of the whole run."""

    def __init__(self, name, neighbour, benchmark, config, report, before=os.sync):
        self._name = name
        self._suffix = "-busy" if neighbour == "busy" else ""
        self._neighbour = neighbour
        self._benchmark = benchmark
        self._config = config
        self._report = report
        self._before = before

    def run(self, ways, *, size=None, rounds=None):
        """Time the ways in turn; a Comparison. `size` in bytes; None: that of the whole run."""
        self._size = self._config.getoption("--bench-size") if size is None else size
        if self._neighbour == "busy":
            ways = [replace(way, beside=busy_thread) for way in ways]
        self._turns = Turns(ways, size=self._size, before=self._before)
        self._rounds = self._config.getoption("--bench-rounds") if rounds is None else rounds
        # Its own table shows how long the rounds took; what counts are the ratios.
        self._benchmark.pedantic(self._turns.turn, rounds=self._rounds, warmup_rounds=1)
        self.comparison = self._turns.comparison()
        return self.comparison

    def judge(self, *lines):
        """Report these Lines, and fail where one breaks its floor; each name has an entry in `floors.toml`.

        Beside a busy neighbour that is another entry: its name ends in `-busy`. What is broken is measured
        once more, by as many rounds again, and all of them count: somebody else may have used the machine.
        So call it while the ways can still run.
        """
        lines = [self._bounded(line) for line in lines]
        if self._broken(lines):
            for _ in range(self._rounds):
                self._turns.turn()
            self.comparison = self._turns.comparison()
        result = Result(self._name, self.comparison, self._size, lines, self._neighbour)
        self._report.results.append(result)
        self._benchmark.extra_info.update(result.to_json())
        broken = self._broken(lines)
        assert not broken, "; ".join(broken)

    def _broken(self, lines):
        return [
            f"{line.name}: {line.ratio(self.comparison)}, floor {line.bounds.floor:g}"
            for line in lines
            if not line.bounds.holds(line.ratio(self.comparison).median)
        ]

    def _bounded(self, line):
        name = line.name + self._suffix
        return replace(line, name=name, bounds=FLOORS[name])


@pytest.fixture
def race(benchmark, request, report):
    """Return a Race, named as the test is; beside a neighbour where the test has one."""
    neighbour = request.getfixturevalue("neighbour") if "neighbour" in request.fixturenames else "idle"
    name = request.node.originalname.removeprefix("test_").replace("_", " ")
    return Race(name, neighbour, benchmark, request.config, report)
