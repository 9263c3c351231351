"""What lies in a directory: each finding provoked, nothing changed unless told to, and never too much."""

from __future__ import annotations

import fcntl
import os
import signal
import time
from pathlib import Path

import pytest

from looked_at import assert_told, fingerprint, held, looked, two_saved
from nodes import CONTENT
from processes import Process
from residue import names
from snapstore import disk, reception
from snapstore.directory import SnapshotDir
from snapstore.doctor import Level, examine, treat
from snapstore.doctor.contents import STRANGERS_SHOWN_MAX
from snapstore.doctor.leftovers import JUST_MADE_S

pytestmark = pytest.mark.usefixtures("quick_doctor")

WAIT_S = 30.0


@pytest.fixture
def path(tmp_path):
    return two_saved(tmp_path / "snap")


def test_a_sound_directory_has_nothing_wrong_and_nothing_is_changed(path):
    before = fingerprint(path)
    examination = examine(path, read=True)
    assert fingerprint(path) == before
    assert [(found.saved.index, found.read_back) for found in examination.contents.stored] == [
        (7, True), (8, True),
    ]  # fmt: skip
    ours = {"snapshots", *names(path)}
    assert not [found for found in examination.problems if found.subject in ours]
    assert examination.contents.leftovers == examination.contents.markers == ()


def test_each_kind_of_leftover_is_told_with_its_age_and_swept_only_when_told_to(path):
    temp = disk.temp_name(9)
    manifest, part, note = disk.manifest_name(6), reception.partial_name(9), reception.note_name(9)
    old, old_note = reception.partial_name(5), reception.note_name(5)
    for name in (temp, manifest, part, note, old, old_note):
        (path / name).write_bytes(b"left")
    an_hour_ago_s = time.time() - 3600
    os.utime(path / part, (an_hour_ago_s, an_hour_ago_s))
    before = fingerprint(path)
    examination = examine(path)
    assert fingerprint(path) == before
    for name in (temp, manifest, old):
        assert_told(examination, name, "left-over", Level.HINT)
    assert_told(examination, part, "kept", Level.OK)
    (kept,) = [left for left in examination.contents.leftovers if left.name == part]
    assert (kept.index, kept.size, kept.note, kept.why) == (9, 4, note, None)
    assert 3600 <= kept.age_s < 3600 + WAIT_S
    examination = examine(path, fix=True)
    assert sorted(examination.treatment.removed) == sorted([temp, manifest, old, old_note])
    for name in examination.treatment.removed:
        assert_told(examination, name, "removed", Level.OK)
    assert part in names(path)


def test_what_a_living_saver_holds_is_no_leftover(path):
    temp, part = path / disk.temp_name(9), path / reception.partial_name(9)
    temp.touch()
    part.touch()
    with held(temp), held(part):
        examination = examine(path, fix=True)
        assert_told(examination, temp.name, "saving", Level.OK)
        assert_told(examination, part.name, "saving", Level.OK)
        assert examination.treatment.removed == ()
        assert temp.exists()
        assert part.exists()


def test_an_empty_file_that_was_just_made_has_a_saver_who_will_lock_it(path):
    (path / disk.temp_name(9)).touch()
    assert [(left.held, left.why) for left in looked(path).leftovers] == [(True, None)]
    (later,) = examine(path, now_s=lambda: time.time() + 2 * JUST_MADE_S).contents.leftovers
    assert (later.held, later.why) == (False, "its saver was killed")


def test_a_manifest_whose_snapshot_is_being_named_is_no_leftover(path):
    (path / disk.manifest_name(9)).touch()
    fd = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        assert looked(path).leftovers == ()
        fcntl.flock(fd, fcntl.LOCK_UN)
        assert [left.name for left in looked(path).leftovers] == [disk.manifest_name(9)]
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    "name",
    [disk.snapshot_name(9), disk.manifest_name(9), disk.temp_name(9), reception.partial_name(9),
     reception.note_name(9), f".poisoned-{9:016x}"],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["link", "pipe", "directory"])
def test_a_stranger_with_a_name_of_ours_is_a_problem_and_stays(path, name, kind):
    make = {"link": lambda place: place.symlink_to("nowhere"), "pipe": os.mkfifo, "directory": Path.mkdir}
    make[kind](path / name)
    before = os.lstat(path / name)
    examination = examine(path)
    assert_told(examination, name, "misplaced", Level.PROBLEM)
    assert os.lstat(path / name) == before


def test_other_names_are_one_hint_however_many_there_are(path):
    (path / "lost+found").mkdir()
    assert looked(path).strangers == ()
    strangers = [f"stranger-{number:03}" for number in range(STRANGERS_SHOWN_MAX + 5)]
    for name in strangers:
        (path / name).touch()
    examination = examine(path)
    assert_told(examination, "other files", "strangers", Level.HINT)
    assert examination.contents.strangers == tuple(strangers)
    (told,) = [found.seen for found in examination.findings if found.kind == "strangers"]
    assert told.endswith("and 5 more")
    assert strangers[-1] not in told


def test_a_name_that_would_play_with_the_terminal_is_told_in_plain_letters(path):
    (path / "\x1b[2J\udcff\n").touch()
    (told,) = [found.seen for found in examine(path).findings if found.kind == "strangers"]
    assert told.isprintable()
    assert told.isascii()


def test_what_cannot_be_fixed_is_said_with_what_was_found(path):
    (path / disk.temp_name(9)).touch()
    path.chmod(0o707)
    before = fingerprint(path)
    examination = examine(path, fix=True)
    assert {name: found[-1] for name, found in fingerprint(path).items()} == {
        name: found[-1] for name, found in before.items()
    }
    assert_told(examination, "--fix", "refused", Level.PROBLEM)
    assert_told(examination, "access", "mode", Level.PROBLEM)
    assert examination.to_json()["fixed"]["removed"] == ()
    assert "chmod" in examination.treatment.refused


def test_a_directory_that_is_not_there_is_not_made(tmp_path):
    for look in (lambda: examine(tmp_path / "nowhere", fix=True), lambda: treat(tmp_path / "nowhere")):
        with pytest.raises(FileNotFoundError):
            look()
    assert names(tmp_path) == []


def test_a_directory_in_which_a_node_saves_and_purges_is_examined_as_often_as_one_likes(path):
    """A process saves, is cut in saves, and purges; no look is disturbed, and none disturbs it."""
    script = """
    with SnapshotDir(sys.argv[1]) as directory:
        say("ready")
        index = 100
        while not os.path.exists(sys.argv[2]):
            index += 1
            directory.save_from(bytes(100_000), index)
            directory.purge(keep=2)
        say(index)
    """
    over = path.parent / "over"
    with Process(script, path, over) as node:
        assert node.hear() == "ready"
        try:
            looks = [looked(path, read=True) for _ in range(40)]
            fixes = [treat(path) for _ in range(10)]
        finally:
            over.touch()
        last = int(node.finish()[-1])
    assert last > 101
    for contents in looks:
        assert [found.problem for found in contents.stored] == [None] * len(contents.stored)
        assert [left for left in contents.leftovers if left.why] == []
        assert contents.newest_sound is not None
    assert {fix.refused for fix in fixes} == {None}
    # A saver locks its file a moment after it has made it; where a sweep is quicker, it makes another.
    assert [name for fix in fixes for name in fix.removed if not name.startswith(".tmp-")] == []
    assert [found.saved.index for found in looked(path, read=True).stored] == [last - 1, last]


def test_what_came_while_all_that_was_there_went_is_looked_at(path, monkeypatch):
    with monkeypatch.context() as patched:

        def list_and_be_overtaken(directory):
            patched.undo()
            indexes = disk.snapshot_indexes(directory)
            with SnapshotDir(path) as node:
                node.save_from(CONTENT, 9)
                assert node.purge(keep=1) == [7, 8]
            return indexes

        patched.setattr(disk, "snapshot_indexes", list_and_be_overtaken)
        assert [found.saved.index for found in looked(path).stored] == [9]


def test_a_look_that_is_killed_anywhere_leaves_nothing(path):
    """Killed as it goes, wherever it is; a sweep over each call is `test_doctor_sweep.py`'s."""
    before = fingerprint(path)
    script = """
    from snapstore.doctor import examine
    say("ready")
    while True:
        examine(sys.argv[1], read=True)
        say("again")
    """
    with Process(script, path) as doctor:
        assert [doctor.hear(), doctor.hear()] == ["ready", "again"]
        doctor.send_signal(signal.SIGKILL)
        doctor.wait(WAIT_S)
    assert fingerprint(path) == before
