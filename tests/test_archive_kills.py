"""Pushes and pulls that are killed, or met by Ctrl-C, as a shell starts them: the next one goes on."""

from __future__ import annotations

import os
import signal
import subprocess

import pytest

from archive_places import archived, stored
from archive_server import part_puts
from command_line import END_S_MAX, spawn
from nodes import stored_names
from snapstore.archive import Archive
from snapstore.archive.layout import PART_SIZE_DEFAULT, PART_SIZE_MIN
from snapstore.cli import ExitCode

pytestmark = pytest.mark.slow

#: Five of the smallest parts that there are, for a process that knows no smaller ones.
SOME = os.urandom(1024**2) * 21

#: Seven parts as the command line cuts them.
MANY = os.urandom(1024**2) * 97


def ended(command, reached, signal_number):
    """Start a command, send it a signal when it has come so far; its exit code and what it said."""
    with spawn(*command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        assert reached.wait(END_S_MAX), child.communicate(timeout=END_S_MAX)
        child.send_signal(signal_number)
        _, err = child.communicate(timeout=END_S_MAX)
    return child.returncode, err


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_push_that_was_killed_is_gone_on_with(server, tmp_path, target, number):
    # In parts as the command line cuts them; four may be under way, so the first came to its end.
    parts = [f"part-{number:05d}" for number in range(7)]
    with stored(tmp_path / "d", MANY) as snapshot:
        reached, release = server.hold("part-00005")
        command = ("push", tmp_path / "d", 7, server.url, "--endpoint", server.endpoint)
        code, err = ended(command, reached, number)
        if number == signal.SIGINT:
            assert (code, "interrupted" in err) == (ExitCode.INTERRUPTED, True), err
        release.set()
        archive = Archive(server.url, endpoint=server.endpoint)
        assert archive.list() == []
        arrived = server.whole_parts(PART_SIZE_DEFAULT)
        server.forget()
        archive.push(snapshot)
    again = part_puts(server.requests)
    assert archive.pull(7, target).path.read_bytes() == MANY
    assert "part-00000" in arrived
    assert "part-00005" in again
    assert not arrived & set(again)
    assert arrived | set(again) <= set(parts)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_pull_that_was_killed_is_gone_on_with(tmp_path, target, number):
    with archived(tmp_path / "d", SOME, part_size=PART_SIZE_MIN) as server:
        reached, release = server.hold("part-00004")
        command = ("pull", server.url, "--dir", target.path, "--endpoint", server.endpoint)
        code, err = ended(command, reached, number)
        if number == signal.SIGINT:
            assert (code, "interrupted" in err) == (ExitCode.INTERRUPTED, True), err
        release.set()
        assert stored_names(target.path) == []
        archive = Archive(server.url, endpoint=server.endpoint)
        assert archive.pull(7, target).path.read_bytes() == SOME
