"""Where broken snapshots go: one file each, the last few of them, and never one that is good."""

from __future__ import annotations

import errno
import io
import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from nodes import CONTENT, UNIT
from processes import Process
from residue import names, nothing_left
from rotten import fail, rot
from snapstore import broken
from snapstore.broken import BROKEN_MAX, broken_name
from snapstore.cli import main
from snapstore.directory import SnapshotDir
from snapstore.errors import SnapshotCorrupt, SnapshotNotFound

#: A bound for waits that a defect would make endless.
WAIT_S = 30.0


@pytest.fixture
def directory(tmp_path):
    with SnapshotDir(tmp_path / "snap", chunk_size=UNIT) as directory:
        yield directory


def test_what_cannot_be_renamed_is_still_called_broken(directory, monkeypatch):
    rot(directory.save_from(CONTENT, 2).path)
    directory.save_from(CONTENT, 1)
    monkeypatch.setattr(broken, "_rename", lambda *given: fail(errno.EROFS))
    with nothing_left(directory.path):
        with pytest.raises(
            SnapshotCorrupt, match=r"could not be set aside: .*Read-only file system"
        ) as raised:
            directory.verify(2)
        assert raised.value.chunk == 0
        with directory.open_newest() as stored:
            assert stored.meta.index == 1


def test_only_the_newest_few_are_kept_and_strangers_stay(directory):
    stranger = directory.path / broken_name(9, 3)
    stranger.mkdir()
    for number in range(BROKEN_MAX + 5):
        path = directory.save_from(CONTENT[:number], 1).path
        path.write_bytes(b"broken" + bytes(number))
        with pytest.raises(SnapshotCorrupt):
            directory.verify(1)
    found = directory.broken()
    assert [aside.number for aside in found] == list(range(9, 9 + BROKEN_MAX))
    assert [aside.size for aside in found] == list(range(11, 11 + BROKEN_MAX))
    assert stranger.is_dir()
    with SnapshotDir(directory.path) as again:
        assert again.broken() == found
        assert again.list() == []
        assert again.save_from(CONTENT, 1).size == len(CONTENT)


def test_a_reader_with_a_lease_reads_on(directory):
    path = directory.save_from(CONTENT, 1).path
    with directory.open(1, verify=False) as stored:
        rot(path, 8 * 100)
        with pytest.raises(SnapshotCorrupt, match="set aside"):
            directory.verify(1)
        sink = io.BytesIO()
        assert stored.write_to(sink) == len(CONTENT)
    assert sink.getvalue()[101:] == CONTENT[101:]


def test_a_good_one_that_came_under_the_name_meanwhile_is_not_touched(directory):
    rot(directory.save_from(CONTENT, 1).path)
    with directory.open(1, verify=False) as late, SnapshotDir(directory.path) as quicker:
        with pytest.raises(SnapshotCorrupt):
            quicker.verify(1)
        quicker.save_from(CONTENT, 1)
        with nothing_left(directory.path):
            (aside,) = quicker.broken()
            assert broken.set_aside(directory._fd, late.saved) == aside.path
        aside.path.unlink()
        with nothing_left(directory.path):
            assert broken.set_aside(directory._fd, late.saved) is None
    assert directory.verify(1).size == len(CONTENT)


def test_of_many_that_find_the_same_one_each_is_told_and_one_file_is_kept(directory):
    finders, rounds = 4, 20
    start = threading.Barrier(finders)

    def find(index):
        start.wait(WAIT_S)
        with pytest.raises((SnapshotCorrupt, SnapshotNotFound)) as raised:
            directory.verify(index)
        return raised.type

    with ThreadPoolExecutor(finders) as pool:
        for index in range(rounds):
            rot(directory.save_from(CONTENT, index).path)
            assert SnapshotCorrupt in list(pool.map(find, [index] * finders))
            assert [directory.broken()[-1].index, directory.broken()[-1].number] == [index, index + 1]
    assert len(names(directory.path)) == 2 * BROKEN_MAX


def test_of_two_processes_that_find_the_same_one_one_file_is_kept(directory):
    script = """
    directory = SnapshotDir(sys.argv[1])
    for line in sys.stdin:
        try:
            directory.verify(int(line))
        except (SnapshotCorrupt, SnapshotNotFound) as error:
            say(type(error).__name__)
    """
    with Process(script, directory.path) as first, Process(script, directory.path) as second:
        for index in range(20):
            rot(directory.save_from(CONTENT, index).path)
            first.say(index)
            second.say(index)
            assert "SnapshotCorrupt" in [first.hear(), second.hear()]
            assert directory.broken()[-1].number == index + 1
    assert len(names(directory.path)) == 2 * BROKEN_MAX


def test_nothing_sound_is_set_aside_while_snapshots_rot_and_come_and_go(directory):
    """A process purges, a thread lets every third rot, another asks for the newest."""
    cleaner_script = """
    with SnapshotDir(sys.argv[1]) as directory:
        say("ready")
        while not os.path.exists(sys.argv[2]):
            directory.purge(keep=2)
    """
    over = directory.path.parent / "over"
    offered = 0

    def ask():
        nonlocal offered
        while not over.exists():
            with directory.open_newest(), directory.open_newest(verify=False):
                offered += 1

    directory.save_from(CONTENT, 0)
    with Process(cleaner_script, directory.path, over) as cleaner, ThreadPoolExecutor(1) as pool:
        assert cleaner.hear() == "ready"
        asking = pool.submit(ask)
        try:
            for index in range(1, 61):
                saved = directory.save_from(CONTENT, index)
                if index % 3 == 0:
                    rot(saved.path, index)
        finally:
            over.touch()
        asking.result(WAIT_S)
        cleaner.finish()
    assert offered
    assert all(aside.path.read_bytes() != CONTENT for aside in directory.broken())
    assert {aside.index % 3 for aside in directory.broken()} <= {0}
    with directory.open_newest() as stored:
        assert stored.meta.index == 59


def test_room_is_made_only_where_the_manifest_shows_a_broken_one(directory):
    path = directory.save_from(CONTENT, 1).path
    assert directory.set_aside(1, "a good one is offered") is None
    assert directory.set_aside(2, "nothing is there") is None
    os.truncate(path, 10)
    assert directory.set_aside(1, "a good one is offered") == directory.path / broken_name(1, 1)
    assert directory.save_from(CONTENT, 1).path == path


def test_what_was_set_aside_is_told_on_the_command_line(directory, capsys):
    rot(directory.save_from(CONTENT, 7).path)
    assert main(["verify", str(directory.path)]) == 1
    assert f"set aside as {broken_name(7, 1)}" in capsys.readouterr().out
    assert main(["ls", str(directory.path)]) == 0
    assert f"broken, set aside as {broken_name(7, 1)}" in capsys.readouterr().out
    assert main(["ls", str(directory.path), "--json"]) == 0
    (aside,) = directory.broken()
    told = {"index": 7, "size": len(CONTENT), "path": str(aside.path)}
    assert json.loads(capsys.readouterr().out) == {"snapshots": [], "broken": [told]}
