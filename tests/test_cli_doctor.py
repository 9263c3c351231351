"""`snapstore doctor` and `snapstore explain`: what people read, what machines get, and the exit codes."""

from __future__ import annotations

import errno
import json
import os
import stat

import pytest

from command_line import on_terminal, snapstore
from nodes import CONTENT, UNIT
from residue import names
from rotten import rot
from snapstore import disk
from snapstore.cli import ExitCode
from snapstore.cli.doctor import format_age
from snapstore.directory import SnapshotDir
from snapstore.meta import ConfState, SnapshotMeta

pytestmark = pytest.mark.usefixtures("quick_doctor")


@pytest.fixture
def stored(tmp_path):
    """A directory with the snapshots 7 and 8."""
    path = tmp_path / "stored"
    with SnapshotDir(path, chunk_size=UNIT) as directory:
        conf_state = ConfState((1, 2, 3), learners=(9,), auto_leave=True)
        directory.save_from(CONTENT, SnapshotMeta(7, 3, conf_state, b'{"a": 1}'))
        directory.save_from(CONTENT, 8)
    return path


class Dated:
    """The status of a file of the wrong century, as file systems with 64 bits for it may have."""

    st_mode, st_uid = stat.S_IFREG | 0o600, 0

    def __init__(self, time_s):
        self.st_mtime = time_s


def row_of(out, name):
    """The words of one row, without its columns' padding."""
    (line,) = [line for line in out.splitlines() if line.startswith(name)]
    return " ".join(line.split())


def test_people_read_a_table_with_a_row_for_each_thing(stored):
    code, out, err = snapstore("doctor", stored)
    assert out.splitlines()[0].split() == ["WHAT", "SIZE", "AGE", "STATE", "IN", "WORDS"]
    assert row_of(out, "0000000000000007.db").startswith("0000000000000007.db 12.0 KiB ")
    assert row_of(out, "0000000000000007.db").endswith(" ok index 7, term 3; not read back; --read does")
    for name in ("file system", "access", "room", "O_TMPFILE", "linkat", "flock", "speed"):
        assert row_of(out, name)
    machines = json.loads(snapstore("doctor", stored, "--json")[1])
    problems = [found for found in machines["findings"] if found["level"] == "problem"]
    assert (code, err) == (ExitCode.OUTCOME_BAD if problems else ExitCode.DONE, "")


def test_a_problem_is_a_row_with_what_it_means_and_what_to_do_and_the_exit_code_tells(stored):
    rot(stored / disk.snapshot_name(8), bit=80)
    code, out, err = snapstore("doctor", stored, "--read")
    assert code == ExitCode.OUTCOME_BAD
    row = row_of(out, "0000000000000008.db")
    assert " problem the digest of chunk 0 " in row
    assert ". It means: no node restores it. To do: `snapstore verify DIR` reads it again" in row
    assert "every byte was read back" in row_of(out, "0000000000000007.db")
    assert err.splitlines()[0] == "read back"


def test_leftovers_are_removed_only_with_fix_which_says_which(stored):
    temp = disk.temp_name(9)
    (stored / temp).write_bytes(b"left")
    before = names(stored)
    assert " hint left over: its saver was killed" in row_of(snapstore("doctor", stored)[1], temp)
    assert names(stored) == before
    assert row_of(snapstore("doctor", stored, "--fix")[1], temp) == f"{temp} ok removed"
    assert names(stored) == [name for name in before if name != temp]
    assert row_of(snapstore("doctor", stored, "--fix")[1], "--fix") == "--fix ok nothing to remove"


def test_machines_get_one_object_with_all_of_it(stored):
    (stored / "stranger").touch()
    (stored / disk.temp_name(9)).touch()
    code, out, err = snapstore("doctor", stored, "--read", "--fix", "--json")
    told = json.loads(out)
    assert err == ""
    assert [(found["index"], found["read_back"]) for found in told["snapshots"]] == [(7, True), (8, True)]
    assert told["strangers"] == ["stranger"]
    assert len(told["fixed"]["removed"]) == 1
    assert told["room"]["size"] >= told["room"]["free"]
    assert {found["kind"] for found in told["findings"]} >= {"strangers"}
    assert all(found["means"] and found["advice"] for found in told["findings"])
    assert (code == ExitCode.DONE) == all(found["level"] == "hint" for found in told["findings"])


def test_a_terminal_gets_it_too(stored):
    (stored / "stranger").touch()
    seen, code = on_terminal("doctor", stored, "--read")
    assert code in (ExitCode.DONE, ExitCode.OUTCOME_BAD)
    assert "0000000000000007.db" in seen
    assert "stranger" in seen


def test_people_read_all_that_is_known_of_a_snapshot(stored):
    os.utime(stored / disk.snapshot_name(7), (0, 86399))
    code, out, err = snapstore("explain", stored, 7)
    with SnapshotDir(stored) as directory:
        saved = directory.stat(7)
    assert (code, err) == (ExitCode.DONE, "")
    assert [" ".join(line.split()) for line in out.splitlines()] == [
        "index 7 (0x0000000000000007)",
        "term 3",
        "members voters 1, 2, 3; learners 9; it leaves the joint configuration by itself",
        'data 8 B of json: {"a": 1}',
        "chunks 4 of 4.0 KiB",
        f"digest {saved.digest}",
        f"size 12.0 KiB ({len(CONTENT)} bytes)",
        "saved 1970-01-01 23:59:59 UTC",
        f"file {saved.path}, mode 0600, user {os.geteuid()}",
        "store of no known kind: not LMDB, SQLite or bbolt",
        "read back not now; --read does, and `snapstore verify DIR INDEX`",
        "state ok",
    ]


def test_a_clock_that_was_wrong_is_no_reason_to_fail(stored, monkeypatch):
    monkeypatch.setattr("snapstore.doctor.explanation.disk.regular_status", lambda *_: Dated(1e14))
    code, out, _ = snapstore("explain", stored, 7)
    assert (code, row_of(out, "saved")) == (
        ExitCode.DONE,
        "saved 100000000000000 s after 1970, by a clock that was wrong",
    )


def test_words_that_would_play_with_the_terminal_are_told_in_plain_letters(stored):
    (stored / ".poisoned-0000000000000000").write_bytes(b"\x1b[2Ja\nb")
    out = snapstore("doctor", stored)[1]
    assert " problem ?[2Ja?b. It means: " in row_of(out, ".poisoned-0000000000000000")
    assert all(line.isprintable() for line in out.splitlines())


def test_a_place_where_this_user_may_not_look_is_not_told_to_be_empty(stored, monkeypatch):
    def refuse(path, **options):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)

    monkeypatch.setattr("snapstore.cli.doctor.os.stat", refuse)
    code, _, err = snapstore("doctor", stored)
    assert (code, "Permission denied" in err) == (ExitCode.SYSTEM, True)


def test_explaining_reads_when_told_to_and_the_exit_code_tells(stored):
    code, out, err = snapstore("explain", stored, 8, "--read")
    assert (code, row_of(out, "read back")) == (0, "read back every byte, and it is what was saved")
    assert (row_of(out, "members"), row_of(out, "data")) == ("members not told", "data none")
    assert err.splitlines()[0] == "read back 8"
    rot(stored / disk.snapshot_name(8), bit=80)
    code, out, _ = snapstore("explain", stored, 8, "--read")
    assert (code, row_of(out, "read back")) == (ExitCode.OUTCOME_BAD, "read back it is not what was saved")
    assert row_of(out, "state").startswith("state the digest of chunk 0 ")


def test_a_snapshot_without_a_manifest_is_explained_without_what_only_that_knows(stored):
    (stored / disk.manifest_name(8)).unlink()
    code, out, _ = snapstore("explain", stored, "0x8")
    assert code == ExitCode.OUTCOME_BAD
    assert "it has no manifest" in row_of(out, "state")
    assert not [line for line in out.splitlines() if line.startswith(("digest", "term", "members", "chunks"))]


def test_a_store_is_named_in_words(stored, tmp_path):
    import lmdb

    with lmdb.open(str(tmp_path / "kv")) as env, env.begin(write=True) as txn:
        txn.put(b"key", b"value")
    assert snapstore("save", f"lmdb:{tmp_path / 'kv'}", "--dir", stored, "--index", 9)[0] == 0
    words = row_of(snapstore("explain", stored, 9)[1], "store")
    assert words.startswith("store lmdb, data format ")
    assert words.endswith(" bytes, transaction 1, 1 entries in its main database")
    told = json.loads(snapstore("explain", stored, 9, "--json")[1])
    assert (told["index"], told["image"]["store"], told["read_back"]) == (9, "lmdb", None)


@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        ("doctor {stored}/nowhere", ExitCode.NOT_FOUND, "no directory of snapshots"),
        ("doctor {stored}/nowhere --fix", ExitCode.NOT_FOUND, "no directory of snapshots"),
        ("explain {stored}/nowhere 7", ExitCode.NOT_FOUND, "no directory of snapshots"),
        ("explain {stored} 9", ExitCode.NOT_FOUND, "no snapshot of index 9"),
        ("explain {stored} nine", ExitCode.USAGE, "decimal or 0x"),
        ("doctor", ExitCode.USAGE, "DIR"),
    ],
)
def test_what_goes_wrong_has_its_exit_code_and_makes_nothing(stored, command, code, words):
    before = names(stored)
    found, out, err = snapstore(*command.format(stored=stored).split())
    assert (found, out) == (code, "")
    assert words in err
    assert names(stored) == before


@pytest.mark.parametrize(
    ("age_s", "words"),
    [(0, "0 s"), (59, "59 s"), (60, "1 min"), (3599, "60 min"), (3600, "1 h"), (86400 * 9, "9 d")],
)
def test_an_age_is_said_in_the_unit_that_fits(age_s, words):
    assert format_age(age_s) == words
