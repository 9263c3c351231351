"""The command line: what each command says and how it exits, in lines, in JSON and on a terminal."""

from __future__ import annotations

import io
import json
import os
import pty
import signal
import sqlite3
import subprocess
import sys

import lmdb
import pytest
from residue import names

from snapstore import errors
from snapstore.cli import ExitCode, main
from snapstore.cli.arguments import ArgumentTypeError, parse_index, parse_size
from snapstore.cli.commands import COMMANDS, LISTEN_DEFAULT, SHELLS
from snapstore.cli.exits import exit_code_of, explain
from snapstore.cli.screen import format_size
from snapstore.directory import SnapshotDir
from snapstore.transport.address import ADDRESS_DEFAULT
from snapstore.transport.http import SnapshotClient, SnapshotServer

CONTENT = os.urandom(300_000)

#: A command that takes so long is stuck.
END_S_MAX = 30.0


@pytest.fixture
def snapstore(capsys):
    """Run the command line in this process; its exit code, its output and its errors."""

    def run(*arguments):
        code = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "image"
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
def stored(tmp_path):
    """A directory with snapshots 7 and 8."""
    path = tmp_path / "stored"
    with SnapshotDir(path) as directory:
        for index in (7, 8):
            directory.save_from(CONTENT, index)
    return path


@pytest.fixture
def lmdb_path(tmp_path):
    path = tmp_path / "kv"
    with lmdb.open(str(path)) as env, env.begin(write=True) as txn:
        txn.put(b"key", b"value")
    return path


@pytest.fixture
def sqlite_path(tmp_path):
    path = tmp_path / "kv.sqlite"
    database = sqlite3.connect(path)
    database.executescript("PRAGMA journal_mode=WAL; CREATE TABLE t (v); INSERT INTO t VALUES ('value')")
    database.close()
    return path


def spawn(*arguments, **options):
    """Start the command line as a process of its own."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    program = [sys.executable, "-W", "error", "-m", "snapstore", *map(str, arguments)]
    return subprocess.Popen(program, env=environment, **options)


def test_importing_the_command_line_and_asking_for_help_brings_in_no_store_and_no_rich():
    script = (
        "import sys, contextlib, io, snapstore.cli\n"
        "with contextlib.redirect_stdout(io.StringIO()): snapstore.cli.main(['--help'])\n"
        "print(sorted({'rich', 'lmdb', 'sqlite3', 'shtab', 'h11'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_help_names_every_command_and_every_exit_code(snapstore):
    code, out, _ = snapstore("--help")
    assert code == 0
    assert all(f"\n    {command.name}" in out for command in COMMANDS)
    assert all(f"\n  {exit_code.value:<4} {exit_code.meaning}" in out for exit_code in ExitCode)


@pytest.mark.parametrize("command", [command.name for command in COMMANDS])
def test_every_command_has_a_help_of_its_own_and_takes_json(snapstore, command):
    code, out, _ = snapstore(command, "--help")
    assert code == 0
    assert "--json" in out


def test_the_version_is_said(snapstore):
    code, out, _ = snapstore("--version")
    assert code == 0
    assert out.startswith("snapstore ")


def test_the_default_address_is_the_servers(snapstore):
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


def test_indexes_are_read_in_decimal_and_as_the_files_are_named():
    assert parse_index("16") == parse_index("0x0000000000000010") == 16
    for text in ("ten", "-1", str(2**64), "10.0"):
        with pytest.raises(ArgumentTypeError, match=r"2\^64-1"):
            parse_index(text)


def test_sizes_are_said_in_the_unit_that_fits():
    assert [format_size(size) for size in (0, 1023, 1024, 2**30 - 1, 3 * 2**39, 2**50)] == [
        "0 B", "1023 B", "1.0 KiB", "1.0 GiB", "1.5 TiB", "1024.0 TiB",
    ]  # fmt: skip


def test_a_saved_file_is_listed_found_verified_and_restored(snapstore, file, tmp_path):
    directory, target = tmp_path / "stored", tmp_path / "copy"
    code, out, err = snapstore("save", file, "--dir", directory, "--index", "0x10", "--term", 3)
    assert (code, out.startswith("saved snapshot 16 (293.0 KiB, crc32c:")) == (0, True)
    assert err.splitlines()[0] == "save 16: 293.0 KiB"
    code, out, _ = snapstore("ls", directory)
    assert out.splitlines()[0].split() == ["INDEX", "TERM", "SIZE", "DIGEST", "STATE"]
    assert out.splitlines()[1].split()[:4] == ["16", "3", "293.0", "KiB"]
    assert snapstore("path", directory, 16)[1] == f"{directory}/0000000000000010.db\n"
    assert snapstore("verify", directory)[1].splitlines()[1].split() == ["16", "ok"]
    assert snapstore("restore", directory, 16, target)[0] == 0
    assert target.read_bytes() == CONTENT
    assert names(tmp_path) == ["copy", "image", "stored"]


def test_machines_get_one_json_object_from_each_command(snapstore, file, tmp_path):
    directory = tmp_path / "stored"
    code, out, err = snapstore("save", file, "--dir", directory, "--index", 16, "--json")
    saved = json.loads(out)
    assert (code, err, saved["index"], saved["size"]) == (0, "", 16, len(CONTENT))
    assert json.loads(snapstore("ls", directory, "--json")[1])["snapshots"][0]["digest"] == saved["digest"]
    assert json.loads(snapstore("path", directory, 16, "--json")[1])["path"] == saved["path"]
    verified = json.loads(snapstore("verify", directory, 16, "--json")[1])
    assert verified == {"snapshots": [{"index": 16, "problem": None}]}
    assert json.loads(snapstore("purge", directory, "--keep", 1, "--json")[1]) == {"removed": []}


def test_standard_input_is_saved(tmp_path):
    command = ("save", "-", "--dir", tmp_path / "stored", "--index", 1)
    with spawn(*command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        out, _ = child.communicate(CONTENT, timeout=END_S_MAX)
    assert child.returncode == 0
    assert out.startswith(b"saved snapshot 1 ")
    assert (tmp_path / "stored" / "0000000000000001.db").read_bytes() == CONTENT


def test_an_lmdb_store_is_saved_and_restored(snapstore, lmdb_path, tmp_path):
    directory, target = tmp_path / "stored", tmp_path / "restored"
    assert snapstore("save", f"lmdb:{lmdb_path}", "--dir", directory, "--index", 5)[0] == 0
    assert snapstore("restore", directory, 5, f"lmdb:{target}")[0] == 0
    with lmdb.open(str(target), readonly=True) as env, env.begin() as txn:
        assert txn.get(b"key") == b"value"


def test_a_sqlite_store_is_saved_and_restored(snapstore, sqlite_path, tmp_path):
    directory, target = tmp_path / "stored", tmp_path / "restored.sqlite"
    assert snapstore("save", f"sqlite:{sqlite_path}", "--dir", directory, "--index", 5)[0] == 0
    assert snapstore("restore", directory, 5, f"sqlite:{target}")[0] == 0
    database = sqlite3.connect(target)
    assert database.execute("SELECT v FROM t").fetchall() == [("value",)]
    database.close()


def test_a_store_that_exists_is_replaced_only_when_told_to(snapstore, lmdb_path, tmp_path):
    directory = tmp_path / "stored"
    snapstore("save", f"lmdb:{lmdb_path}", "--dir", directory, "--index", 5)
    code, _, err = snapstore("restore", directory, 5, f"lmdb:{lmdb_path}")
    assert (code, "--replace" in err) == (ExitCode.EXISTS, True)
    assert snapstore("restore", directory, 5, f"lmdb:{lmdb_path}", "--replace")[0] == 0


def test_a_damaged_snapshot_is_named_and_the_exit_code_tells(snapstore, stored, tmp_path):
    with open(stored / "0000000000000007.db", "r+b") as image:
        image.write(b"damage")
    code, out, _ = snapstore("verify", stored)
    assert code == ExitCode.OUTCOME_BAD
    assert "digest of chunk 0" in out.splitlines()[1]
    assert out.splitlines()[2].split() == ["8", "ok"]
    code, _, err = snapstore("restore", stored, 7, tmp_path / "copy")
    assert code == ExitCode.OUTCOME_BAD
    assert err.splitlines()[-1].startswith(f"snapstore: error: {stored}/0000000000000007.db: the digest")
    assert names(tmp_path) == ["stored"]


def test_purge_keeps_the_newest(snapstore, stored):
    assert snapstore("purge", stored, "--keep", 1)[:2] == (0, "removed 7\n")
    assert snapstore("purge", stored, "--keep", 1)[:2] == (0, "nothing to remove\n")


@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        (("path", "{stored}", 9), ExitCode.NOT_FOUND, "no snapshot of index 9"),
        (("ls", "{stored}/nowhere"), ExitCode.NOT_FOUND, "no directory of snapshots"),
        (("save", "{stored}/nothing", "--dir", "{stored}", "--index", 9), ExitCode.NOT_FOUND, "check the path"),
        (("save", "lmdb:{stored}/nothing", "--dir", "{stored}", "--index", 9), ExitCode.NOT_FOUND, "no lmdb store"),
        (("restore", "{stored}", 7, "{stored}/no/copy"), ExitCode.NOT_FOUND, "no such directory"),
        (("save", "{file}", "--dir", "{stored}", "--index", 7), ExitCode.EXISTS, "it was kept"),
        (("restore", "{stored}", 7, "{file}"), ExitCode.EXISTS, "never replaced"),
        (("save", "{file}", "--dir", "{file}", "--index", 7), ExitCode.EXISTS, "File exists"),
        (("save", "{file}", "--dir", "{file}/sub", "--index", 7), ExitCode.SYSTEM, "Not a directory"),
        (("save", "lmdb:{file}", "--dir", "{stored}", "--index", 9), ExitCode.OUTCOME_BAD, "cannot be read"),
        (("save", "sqlite:{file}", "--dir", "{stored}", "--index", 9), ExitCode.OUTCOME_BAD, "not a database"),
        (("fetch", "http://127.0.0.1:1", 7, "--dir", "{stored}"), ExitCode.PEER, "is `snapstore serve` running"),
        (("nonsense",), ExitCode.USAGE, "invalid choice"),
        (("purge", "{stored}", "--keep", 0), ExitCode.USAGE, "1 or more"),
        (("send", "--kv", "etcd:x", "--index", 1, "--term", 1, "http://a:1"), ExitCode.USAGE, "lmdb:PATH"),
        (("fetch", "ftp://a", 7, "--dir", "{stored}"), ExitCode.USAGE, "http://HOST:PORT"),
        (("serve", "--dir", "{stored}", "--listen", "80"), ExitCode.USAGE, "HOST:PORT"),
    ],
)  # fmt: skip
def test_what_goes_wrong_has_its_exit_code_and_says_what_to_do(snapstore, stored, file, command, code, words):
    command = [str(part).format(stored=stored, file=file) for part in command]
    before = names(stored)
    found, out, err = snapstore(*command)
    assert (found, out) == (code, "")
    assert any(line.startswith("snapstore: error: ") and words in line for line in err.splitlines())
    found, out, err = snapstore(*command, "--json")
    assert (found, err) == (code, "")
    assert json.loads(out).keys() == {"error", "message"}
    assert words in json.loads(out)["message"]
    assert names(stored) == before


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


def test_a_fault_of_the_program_is_no_outcome(snapstore, stored, monkeypatch):
    monkeypatch.setattr(SnapshotDir, "list", lambda _self: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        snapstore("ls", stored)


def test_ctrl_c_ends_a_save_and_leaves_nothing(tmp_path):
    command = ("save", "-", "--dir", tmp_path / "stored", "--index", 1)
    streams = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with spawn(*command, text=True, **streams) as child:
        assert child.stderr.readline() == "save 1\n"
        child.send_signal(signal.SIGINT)
        assert child.wait(END_S_MAX) == ExitCode.INTERRUPTED
        assert child.stderr.read().endswith("snapstore: error: interrupted\n")
    assert names(tmp_path / "stored") == []


def test_a_reader_that_leaves_ends_it_quietly(stored):
    reader, writer = os.pipe()
    os.close(reader)
    with spawn("ls", stored, stdout=writer, stderr=subprocess.PIPE) as child:
        os.close(writer)
        _, err = child.communicate(timeout=END_S_MAX)
    assert (child.returncode, err) == (ExitCode.READER_LEFT, b"")


@pytest.mark.parametrize("shell", SHELLS)
def test_completion_scripts_know_the_commands(snapstore, shell):
    code, out, _ = snapstore("completion", shell)
    assert code == 0
    assert all(command.name in out for command in COMMANDS)


def test_without_shtab_completion_names_the_extra(snapstore, monkeypatch):
    monkeypatch.setitem(sys.modules, "shtab", None)
    code, _, err = snapstore("completion", "bash")
    assert code == ExitCode.SYSTEM
    assert "pip install 'snapstore[cli]'" in err


def on_terminal(script):
    """Run Python's `script` with all its streams on a terminal; what appeared there, and the exit code."""
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    environment.pop("NO_COLOR", None)
    ours, theirs = pty.openpty()
    with (
        subprocess.Popen([sys.executable, "-c", script], stdin=theirs, stdout=theirs, stderr=theirs, env=environment) as child,
        io.FileIO(ours) as terminal,
    ):  # fmt: skip
        os.close(theirs)
        seen = b""
        while piece := _read(terminal):
            seen += piece
        return seen.decode(), child.wait(END_S_MAX)


def _read(terminal):
    try:
        return terminal.read(65536)
    except OSError:  # A terminal that nobody has open any more ends with EIO.
        return b""


SAVE_ON_TERMINAL = "import sys; {block}; from snapstore.cli import main; sys.exit(main({arguments!r}))"


def test_a_terminal_gets_a_bar_and_colours(file, tmp_path):
    arguments = ["save", str(file), "--dir", str(tmp_path / "stored"), "--index", "1"]
    seen, code = on_terminal(SAVE_ON_TERMINAL.format(block="pass", arguments=arguments))
    assert code == 0
    assert "\x1b[" in seen
    assert "━" in seen
    assert "saved snapshot 1 " in seen
    seen, code = on_terminal(SAVE_ON_TERMINAL.format(block="pass", arguments=["ls", str(tmp_path / "stored")]))
    assert (code, "\x1b[32mok" in seen) == (0, True)


def test_without_rich_a_terminal_gets_plain_lines(file, tmp_path):
    arguments = ["save", str(file), "--dir", str(tmp_path / "stored"), "--index", "1"]
    block = "sys.modules['rich'] = None"
    seen, code = on_terminal(SAVE_ON_TERMINAL.format(block=block, arguments=arguments))
    assert (code, "\x1b[" in seen) == (0, False)
    assert seen.startswith("save 1: 293.0 KiB\r\nsave 1: done, 293.0 KiB in ")


def test_a_save_from_a_terminal_is_refused(tmp_path):
    arguments = ["save", "-", "--dir", str(tmp_path / "stored"), "--index", "1"]
    seen, code = on_terminal(SAVE_ON_TERMINAL.format(block="pass", arguments=arguments))
    assert code == ExitCode.USAGE
    assert "standard input is a terminal" in seen


@pytest.fixture
def server(tmp_path):
    with SnapshotDir(tmp_path / "peer") as directory, SnapshotServer(directory, cluster="blue") as server:
        yield server


@pytest.mark.parametrize("kind", ["lmdb", "sqlite"])
def test_a_store_is_sent_and_fetched_back(snapstore, server, lmdb_path, sqlite_path, tmp_path, kind):
    path = {"lmdb": lmdb_path, "sqlite": sqlite_path}[kind]
    offer = ("send", "--kv", f"{kind}:{path}", "--index", 9, "--term", 2, "--cluster", "blue", server.url)
    code, out, err = snapstore(*offer)
    assert (code, out.startswith("the peer saved snapshot 9 (")) == (0, True)
    assert err.startswith("send 9: ")
    assert snapstore(*offer)[1].startswith("the peer had snapshot 9 (")
    assert json.loads(snapstore(*offer, "--json")[1])["existed"] is True
    assert snapstore("fetch", server.url, 9, "--dir", tmp_path / "fetched")[0] == 0
    with SnapshotDir(tmp_path / "fetched") as directory:
        assert directory.verify(9).meta.term == 2


def test_a_peer_of_another_cluster_refuses(snapstore, server, lmdb_path):
    code, _, err = snapstore("send", "--kv", f"lmdb:{lmdb_path}", "--index", 9, "--term", 2, server.url)
    assert code == ExitCode.PEER
    assert "the peer refused: this node belongs to cluster 'blue'" in err


def test_a_snapshot_that_the_peer_has_not_is_refused(snapstore, server, tmp_path):
    code, _, err = snapstore("fetch", server.url, 9, "--dir", tmp_path / "fetched")
    assert (code, "no snapshot of index 9" in err) == (ExitCode.PEER, True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_server_says_where_it_listens_names_each_save_and_ends_on_a_signal(snapstore, stored, lmdb_path, number):
    with spawn("serve", "--dir", stored, stdout=subprocess.PIPE, text=True) as child:
        first = child.stdout.readline()
        assert first.startswith("listening on http://127.0.0.1:")
        url = first.split()[-1]
        assert [entry["index"] for entry in SnapshotClient().list(url)] == [7, 8]
        assert snapstore("send", "--kv", f"lmdb:{lmdb_path}", "--index", 9, "--term", 1, url)[0] == 0
        assert child.stdout.readline().startswith("saved snapshot 9 (")
        child.send_signal(number)
        assert child.wait(END_S_MAX) == ExitCode.DONE


def test_a_server_talks_json_to_machines(stored):
    with spawn("serve", "--dir", stored, "--json", stdout=subprocess.PIPE, text=True) as child:
        told = json.loads(child.stdout.readline())
        child.send_signal(signal.SIGTERM)
        assert child.wait(END_S_MAX) == ExitCode.DONE
    assert told["event"] == "listening"
