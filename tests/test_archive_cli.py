"""`snapstore push`, `pull` and `ls` of an archive: what they do, say, and refuse."""

from __future__ import annotations

import json

import pytest

from archive_places import CONTENT
from command_line import snapstore
from snapstore.cli import ExitCode
from snapstore.directory import SnapshotDir


@pytest.fixture
def directory(tmp_path):
    """The path of one with the snapshots 7 and 8."""
    with SnapshotDir(tmp_path / "d") as directory:
        for index in (7, 8):
            directory.save_from(CONTENT, index)
    return tmp_path / "d"


def run(server, *arguments):
    return snapstore(*arguments, "--endpoint", server.endpoint)


def test_a_push_a_list_and_a_pull(server, directory, tmp_path):
    code, out, err = run(server, "push", directory, 7, server.url)
    assert (code, out.startswith("archived snapshot 7 (324.0 KiB, crc32c:")) == (ExitCode.DONE, True), err
    assert "push 7: done, 324.0 KiB in" in err
    code, out, _ = run(server, "ls", server.url)
    assert (code, [line.split()[0] for line in out.splitlines()]) == (ExitCode.DONE, ["INDEX", "7"])
    code, out, err = run(server, "pull", server.url, "--dir", tmp_path / "e")
    assert (code, out.startswith("saved snapshot 7 (324.0 KiB, crc32c:")) == (ExitCode.DONE, True), err
    assert snapstore("verify", tmp_path / "e", 7)[0] == ExitCode.DONE
    assert run(server, "pull", server.url, 7, "--dir", tmp_path / "e")[0] == ExitCode.EXISTS


def test_the_newest_and_what_stays(server, directory):
    assert run(server, "push", directory, 7, server.url)[0] == ExitCode.DONE
    said = json.loads(run(server, "push", directory, "newest", server.url, "--keep", 1, "--json")[1])
    assert said.pop("digest").startswith("crc32c:")
    size = len(CONTENT)
    assert said == {"index": 8, "size": size, "sent": size, "existed": False, "removed": [7]}
    code, out, _ = run(server, "push", directory, "0x8", server.url)
    assert (code, out.startswith("the archive had snapshot 8")) == (ExitCode.DONE, True)
    listed = json.loads(run(server, "ls", server.url, "--json")[1])["snapshots"]
    assert [(found["index"], found["problem"]) for found in listed] == [(8, None)]


def test_a_push_that_may_remove_nothing_says_that_it_was_done(server, directory):
    assert run(server, "push", directory, 7, server.url)[0] == ExitCode.DONE
    server.fault = lambda request: "403 AccessDenied" if request.is_removal else None
    code, out, err = run(server, "push", directory, 8, server.url, "--keep", 1)
    assert (code, out) == (ExitCode.PEER, "")
    assert "archived snapshot 8 (324.0 KiB, " in err
    assert "what is older was not all removed" in err
    assert "a removal: AccessDenied" in err


def test_the_endpoint_may_stand_in_the_environment(server, directory, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint)
    assert snapstore("push", directory, 7, server.url)[0] == ExitCode.DONE
    assert "7" in snapstore("ls", server.url)[1]


def test_what_cannot_be_done_has_its_exit_code(server, directory, tmp_path):
    assert run(server, "pull", server.url, "--dir", tmp_path / "e")[0] == ExitCode.NOT_FOUND
    assert run(server, "push", tmp_path / "nothing", 7, server.url)[0] == ExitCode.NOT_FOUND
    assert run(server, "push", directory, 9, server.url)[0] == ExitCode.NOT_FOUND
    assert not (tmp_path / "nothing").exists()
    code, _, err = run(server, "ls", "s3://no-such-bucket/x")
    assert (code, "NoSuchBucket" in err, len(err.splitlines())) == (ExitCode.PEER, True, 1)
    with SnapshotDir(tmp_path / "other") as other:
        other.save_from(b"other", 7)
    assert run(server, "push", directory, 7, server.url)[0] == ExitCode.DONE
    assert run(server, "push", tmp_path / "other", 7, server.url)[0] == ExitCode.EXISTS


USAGE = [
    ("ls {d} --endpoint http://127.0.0.1:1", "--endpoint is for archives"),
    ("ls http://127.0.0.1:1", "an archive is s3://"),
    ("push {d} 7 /tmp", "an archive is s3://"),
    ("push {d} oldest s3://b", "give a number"),
    ("push {d} 7 s3://b --keep 0", "give a number, 1 or more"),
    ("push {d} s3://b", "argument INDEX: give a number"),
    ("pull s3://b?x --dir {d}", "no query"),
    ("ls s3://b --endpoint localhost:9000", "an archive's endpoint is http"),
    ("push {d} 7 s3://b --endpoint=", "an archive's endpoint is http"),
]


@pytest.mark.parametrize(("line", "words"), USAGE)
def test_what_cannot_be_asked_for(directory, line, words):
    code, _, err = snapstore(*line.format(d=directory).split())
    assert (code, words in err) == (ExitCode.USAGE, True), err


def test_a_directory_is_listed_as_ever(directory):
    assert [line.split()[0] for line in snapstore("ls", directory)[1].splitlines()] == ["INDEX", "7", "8"]
