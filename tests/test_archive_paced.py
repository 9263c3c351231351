"""An archive keeps to the node's pace: a push to the throttle given, a pull to its directory's."""

from __future__ import annotations

import os
import signal
import time

import pytest

from command_line import END_S_MAX, snapstore, spawn
from paced import DATA, MIB, assert_paced, assert_shared
from snapstore._fastpipe import RATE_LIMIT_MIN, Progress, Throttle
from snapstore.archive import Archive
from snapstore.archive.layout import PART_SIZE_MIN
from snapstore.cli import ExitCode
from snapstore.directory import SnapshotDir
from snapstore.errors import PipeClosed

RATE = 8 * MIB


@pytest.fixture
def source(tmp_path):
    with SnapshotDir(tmp_path / "source") as directory:
        directory.save_from(DATA * 2, 7)
        yield directory


@pytest.fixture
def url(tmp_path):
    return f"file://{tmp_path}/archive"


def push(source, url, throttle, progress=None):
    with source.open(7) as stored:
        return Archive(url, throttle=throttle).push(stored, progress=progress)


def test_a_push_keeps_to_its_throttle(source, url):
    throttle = Throttle(RATE)
    began_s = time.monotonic()
    push(source, url, throttle)
    assert_paced(time.monotonic() - began_s, 2 * MIB, RATE)
    assert throttle.bytes == 2 * MIB
    assert push(source, url, throttle).existed
    assert throttle.bytes == 2 * MIB  # Nothing was sent.


def test_a_pull_keeps_to_its_directory_s(source, url, tmp_path):
    push(source, url, None)
    throttle = Throttle(RATE)
    with SnapshotDir(tmp_path / "target", throttle=throttle) as target:
        began_s = time.monotonic()
        Archive(url).pull(7, target)
        assert_paced(time.monotonic() - began_s, 2 * MIB, RATE)
    assert throttle.bytes == 2 * MIB


@pytest.mark.slow
def test_a_push_yields_to_what_is_urgent(source, url, background):
    assert_shared(background, lambda throttle, progress: push(source, url, throttle, progress))


@pytest.mark.parametrize("parts", [1, 2])
def test_a_push_that_waits_for_its_turn_can_be_stopped(tmp_path, url, background, parts):
    with SnapshotDir(tmp_path / "source") as source:
        source.save_from(os.urandom(PART_SIZE_MIN) * parts, 7)
        throttle, progress = Throttle(RATE_LIMIT_MIN), Progress()
        pushed = background(push, source, url, throttle, progress)
        while throttle.bytes < 2 * RATE_LIMIT_MIN:
            os.sched_yield()
        progress.cancel()
        with pytest.raises(PipeClosed):
            pushed.result()


def test_ctrl_c_ends_one_that_waits_for_its_turn(source, url):
    command = ("push", source.path, 7, url, "--rate", "64KiB/s")  # 32 s
    with spawn(*command) as child:
        archive = url.removeprefix("file://")
        while not os.path.isdir(archive):
            os.sched_yield()
        child.send_signal(signal.SIGINT)
        assert child.wait(END_S_MAX) == ExitCode.INTERRUPTED
    assert not [name for name in os.listdir(archive) if name.endswith(".json")]


def test_the_commands_have_a_rate(source, url, tmp_path):
    for command in (("push", source.path, 7, url), ("pull", url, "--dir", tmp_path / "pulled")):
        began_s = time.monotonic()
        assert snapstore(*command, "--rate", "8MiB/s")[0] == ExitCode.DONE
        assert_paced(time.monotonic() - began_s, 2 * MIB, RATE)
