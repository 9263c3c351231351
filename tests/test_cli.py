"""The command line: its arguments, its errors and exit codes, and what a terminal gets."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from command_line import END_S_MAX, on_terminal, snapstore, spawn
from processes import unmeasured
from residue import names
from snapstore import errors
from snapstore.cli import ExitCode
from snapstore.cli.arguments import ArgumentTypeError, parse_duration, parse_index, parse_size
from snapstore.cli.commands import COMMANDS
from snapstore.cli.commands.completion import SHELLS
from snapstore.cli.commands.peers import LISTEN_DEFAULT
from snapstore.cli.exits import exit_code_of, explain
from snapstore.cli.screen import format_size
from snapstore.directory import SnapshotDir
from snapstore.transport.address import ADDRESS_DEFAULT

CONTENT = bytes(300_000)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "image"
    path.write_bytes(CONTENT)
    return path


def test_importing_the_command_line_and_asking_for_help_brings_in_no_store_and_no_rich():
    script = (
        "import sys, contextlib, io, snapstore.cli\n"
        "with contextlib.redirect_stdout(io.StringIO()): snapstore.cli.main(['--help'])\n"
        "print(sorted({'rich', 'lmdb', 'sqlite3', 'shtab', 'h11'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=unmeasured()
    )
    assert done.stdout == "[]\n"


def test_the_help_names_every_command_and_every_exit_code():
    code, out, _ = snapstore("--help")
    assert code == 0
    assert all(f"\n    {command.name}" in out for command in COMMANDS)
    assert all(f"\n  {exit_code.value:<4} {exit_code.meaning}" in out for exit_code in ExitCode)


@pytest.mark.parametrize("command", [command.name for command in COMMANDS])
def test_every_command_has_a_help_of_its_own_and_takes_json(command):
    code, out, _ = snapstore(command, "--help")
    assert code == 0
    assert "--json" in out


def test_the_version_is_said():
    code, out, _ = snapstore("--version")
    assert code == 0
    assert out.startswith("snapstore ")


def test_the_default_address_is_the_servers():
    assert LISTEN_DEFAULT == ADDRESS_DEFAULT


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("17", 17), ("64MiB", 64 * 2**20), ("1GiB", 2**30), ("10GB", 10**10), ("1.5 kib", 1536),
     ("2b", 2), ("9007199254740993", 9007199254740993)],
)  # fmt: skip
def test_sizes_are_read_with_their_units(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "1G", "-1", "1e9", "1 GiB x", "nan"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(ArgumentTypeError, match="a size is"):
        parse_size(text)


def test_a_time_has_a_unit():
    assert [parse_duration(text) for text in ("0s", "90s", "30m", "36H", " 7d ", "2w")] == [
        0, 90, 1800, 129_600, 604_800, 1_209_600,
    ]  # fmt: skip
    for text in ("", "7", "d", "-1d", "1.5h", "1y", "1d2h", "1" * 10 + "s"):
        with pytest.raises(ArgumentTypeError, match="as 90s"):
            parse_duration(text)


def test_indexes_are_read_in_decimal_and_as_the_files_are_named():
    assert parse_index("16") == parse_index("0x0000000000000010") == 16
    for text in ("ten", "-1", str(2**64), "10.0"):
        with pytest.raises(ArgumentTypeError, match=r"2\^64-1"):
            parse_index(text)


def test_sizes_are_said_in_the_unit_that_fits():
    assert [format_size(size) for size in (0, 1023, 1024, 2**30 - 1, 3 * 2**39, 2**50)] == [
        "0 B", "1023 B", "1.0 KiB", "1.0 GiB", "1.5 TiB", "1024.0 TiB",
    ]  # fmt: skip


def test_every_error_of_the_package_has_an_exit_code():
    kinds = [
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, Exception) and kind is not errors.PeerRejected
    ]
    assert len(kinds) > 15
    for kind in kinds:
        assert exit_code_of(kind("words")) is not None
        assert explain(kind("words")).startswith("words")


def test_a_busy_peer_means_try_again_and_other_refusals_do_not():
    busy = errors.PeerRejected(503, "saving others", 2.0)
    assert exit_code_of(busy) == ExitCode.UNAVAILABLE
    assert explain(busy).endswith("try again in 2 s")
    assert exit_code_of(errors.PeerRejected(412, "wrong cluster")) == ExitCode.PEER


def test_a_fault_of_the_program_is_no_outcome(tmp_path, monkeypatch):
    monkeypatch.setattr(SnapshotDir, "list", lambda _self: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        snapstore("ls", tmp_path)


def test_ctrl_c_ends_a_save_and_leaves_nothing(tmp_path):
    command = ("save", "-", "--dir", tmp_path / "stored", "--index", 1)
    streams = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with spawn(*command, text=True, **streams) as child:
        assert child.stderr.readline() == "save 1\n"
        child.send_signal(signal.SIGINT)
        assert child.wait(END_S_MAX) == ExitCode.INTERRUPTED
        assert child.stderr.read().endswith("snapstore: error: interrupted\n")
    assert names(tmp_path / "stored") == []


def test_a_reader_that_leaves_ends_it_quietly(tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    with spawn("ls", tmp_path, stdout=writer, stderr=subprocess.PIPE) as child:
        os.close(writer)
        _, err = child.communicate(timeout=END_S_MAX)
    assert (child.returncode, err) == (ExitCode.READER_LEFT, b"")


@pytest.mark.parametrize("shell", SHELLS)
def test_completion_scripts_know_the_commands(shell):
    code, out, _ = snapstore("completion", shell)
    assert code == 0
    assert all(command.name in out for command in COMMANDS)


def test_without_shtab_completion_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "shtab", None)
    code, _, err = snapstore("completion", "bash")
    assert code == ExitCode.SYSTEM
    assert "pip install 'snapstore[cli]'" in err


def test_a_terminal_gets_a_bar_and_colours(file, tmp_path):
    seen, code = on_terminal("save", file, "--dir", tmp_path / "stored", "--index", 1)
    assert code == 0
    assert "\x1b[" in seen
    assert "━" in seen
    assert "saved snapshot 1 " in seen
    seen, code = on_terminal("ls", tmp_path / "stored")
    assert (code, "\x1b[32mok" in seen) == (0, True)


def test_without_rich_a_terminal_gets_plain_lines(file, tmp_path):
    without_rich = "sys.modules['rich'] = None"
    seen, code = on_terminal("save", file, "--dir", tmp_path / "stored", "--index", 1, before=without_rich)
    assert (code, "\x1b[" in seen) == (0, False)
    assert seen.startswith("save 1: 293.0 KiB\r\nsave 1: done, 293.0 KiB in ")


def test_a_save_from_a_terminal_is_refused(tmp_path):
    seen, code = on_terminal("save", "-", "--dir", tmp_path / "stored", "--index", 1)
    assert code == ExitCode.USAGE
    assert "standard input is a terminal" in seen
