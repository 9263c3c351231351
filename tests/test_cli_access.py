"""Certificates and tokens on the command line: who comes in, who does not, and what the operator is told."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess

import lmdb
import pytest

from certificates import Authority
from command_line import END_S_MAX, snapstore, spawn
from snapstore.cli import ExitCode
from snapstore.cli.access import TOKEN_VARIABLE
from snapstore.directory import SnapshotDir

TOKEN = "a-Token.of~the+Cluster/0123="


@pytest.fixture
def kv(tmp_path):
    with lmdb.open(str(tmp_path / "kv")) as env, env.begin(write=True) as txn:
        txn.put(b"key", b"value")
    return f"lmdb:{tmp_path / 'kv'}"


@pytest.fixture
def token_file(tmp_path):
    (tmp_path / "token").write_text(TOKEN + "\n")
    return tmp_path / "token"


def tls_options(node):
    return ("--tls-cert", node.cert, "--tls-key", node.key, "--tls-ca", node.ca)


@contextlib.contextmanager
def serving(tmp_path, *options):
    """What a server says first, and its notes once it has ended."""
    command = ("serve", "--dir", tmp_path / "stored", *options)
    with spawn(*command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        notes = []
        try:
            yield child.stdout.readline().rstrip("\n"), notes
        finally:
            child.send_signal(signal.SIGTERM)
            notes += child.communicate(timeout=END_S_MAX)[1].splitlines()
    assert child.returncode == ExitCode.DONE, notes


def test_a_store_goes_through_tls_and_token_both_ways(tmp_path, node, kv, token_file):
    access = (*tls_options(node), "--token-file", token_file)
    with serving(tmp_path, *access) as (first, _):
        url = first.removeprefix("listening on ")
        assert url.startswith("https://127.0.0.1:")
        code, out, err = snapstore("send", "--kv", kv, "--index", 9, "--term", 2, *access, url)
        assert (code, out.startswith("the peer saved snapshot 9")) == (0, True), err
        code, _, err = snapstore("fetch", url, 9, "--dir", tmp_path / "fetched", *access)
        assert code == 0, err
    with SnapshotDir(tmp_path / "fetched") as fetched:
        assert fetched.verify(9).meta.term == 2


def test_who_has_not_is_refused_with_words_and_the_exit_code_of_peers(
    tmp_path, authority, node, kv, token_file
):
    stranger = Authority(tmp_path / "strangers").issue("127.0.0.1", trusting=authority.file)
    with serving(tmp_path, *tls_options(node), "--token-file", token_file) as (first, notes):
        url = first.removeprefix("listening on ")
        send = ("send", "--kv", kv, "--index", 9, "--term", 2)
        for options, words in (
            ((*tls_options(stranger), "--token-file", token_file), "unknown ca"),
            (tls_options(node), "show the bearer token (HTTP status 401)"),
        ):
            code, out, err = snapstore(*send, *options, url)
            assert (code, out) == (ExitCode.PEER, "")
            assert words in err
            assert err.count("error:") == 1
    assert [note.startswith("refused 127.0.0.1:") for note in notes[1:]] == [True, True]
    assert TOKEN not in "".join(notes)
    with SnapshotDir(tmp_path / "stored") as stored:
        assert stored.list() == []


def test_the_token_is_taken_from_the_environment_and_the_file_comes_first(tmp_path, token_file, monkeypatch):
    with serving(tmp_path, "--token-file", token_file) as (first, _):
        url = first.removeprefix("listening on ")
        monkeypatch.setenv(TOKEN_VARIABLE, TOKEN)
        assert (
            snapstore("fetch", url, 9, "--dir", tmp_path / "fetched")[2].count("no snapshot of index 9") == 1
        )
        monkeypatch.setenv(TOKEN_VARIABLE, TOKEN[::-1])
        assert "the bearer token is wrong" in snapstore("fetch", url, 9, "--dir", tmp_path / "fetched")[2]
        code, _, err = snapstore("fetch", url, 9, "--dir", tmp_path / "fetched", "--token-file", token_file)
        assert (code, "no snapshot of index 9" in err) == (ExitCode.PEER, True)
    with serving(tmp_path) as (first, _):  # The variable reaches the server's process, too.
        assert "show" in snapstore_without_token(monkeypatch, first.removeprefix("listening on "), tmp_path)


def snapstore_without_token(monkeypatch, url, tmp_path):
    monkeypatch.delenv(TOKEN_VARIABLE)
    return snapstore("fetch", url, 9, "--dir", tmp_path / "fetched")[2]


@pytest.mark.parametrize(
    ("listen", "options", "note"),
    [
        ((), (), "open to this machine only"),
        (("--listen", "unix:{tmp}/s"), (), "open to processes of this user only"),
        (("--listen", "0.0.0.0:0"), (), "WARNING: whoever reaches 0.0.0.0:"),
        (("--listen", "0.0.0.0:0"), ("token",), "WARNING: without TLS everybody on the way to 0.0.0.0:"),
        pytest.param(
            ("--listen", "0.0.0.0:0"), ("tls",), "open to who has a certificate", marks=pytest.mark.slow
        ),
        (("--listen", "0.0.0.0:0"), ("tls", "token"), "open to who has a certificate"),
    ],
)
def test_a_server_says_to_whom_it_is_open_and_warns_where_that_is_everybody(
    tmp_path, node, token_file, listen, options, note
):
    known = {"tls": tls_options(node), "token": ("--token-file", token_file)}
    arguments = [word.format(tmp=tmp_path) for word in listen]
    arguments += [word for option in options for word in known[option]]
    with serving(tmp_path, *arguments) as (first, notes):
        assert first.startswith("listening on http")
    assert [said.startswith(note) for said in notes] == [True]
    with serving(tmp_path, *arguments, "--json") as (first, _):
        told = json.loads(first)
    assert (told["warning"] or f"open {told['reach']}").startswith(note)


def mistakes(tmp_path, node):
    """Command lines that are wrong, and the words that say why."""
    serve, fetch = ("serve", "--dir", tmp_path / "d"), ("fetch", "--dir", tmp_path / "d")
    cert, key, ca = tls_options(node)[:2], tls_options(node)[2:4], tls_options(node)[4:]
    short, empty = tmp_path / "short", tmp_path / "empty"
    short.write_text("secret")
    empty.touch()
    local, away = ("http://127.0.0.1:1", 7), ("http://192.0.2.1:1", 7)
    return [
        ((*serve, *cert), "go together"),
        ((*serve, *cert, *key), "go together"),
        ((*serve, *ca), "go together"),
        ((*fetch, *local, *key, *ca), "go together"),
        ((*serve, "--tls-cert", empty, *key, *ca), "empty and "),
        ((*serve, *tls_options(node), "--listen", f"unix:{tmp_path}/s"), "TLS needs HOST:PORT"),
        ((*serve, "--token-file", short), "short: a token has 16 to"),
        ((*serve, "--token-file", empty), "empty: a token has 16 to"),
        ((*fetch, "https://127.0.0.1:1", 7), "needs tls="),
        ((*fetch, *away, *tls_options(node)), "should it be https://"),
    ]


def test_a_wrong_command_line_is_told_before_anything_happens(tmp_path, node, token_file, monkeypatch):
    for arguments, words in mistakes(tmp_path, node):
        code, out, err = snapstore(*arguments)
        assert (code, out, words in err) == (ExitCode.USAGE, "", True), (arguments, err)
        assert "secret" not in err
    code, _, err = snapstore("serve", "--dir", tmp_path / "d", "--token-file", tmp_path / "missing")
    assert (code, "missing: No such file" in err) == (ExitCode.NOT_FOUND, True)
    monkeypatch.setenv(TOKEN_VARIABLE, "")  # Somebody meant to set one: nobody comes in by mistake.
    code, _, err = snapstore("serve", "--dir", tmp_path / "d")
    assert (code, TOKEN_VARIABLE in err) == (ExitCode.USAGE, True)
    assert not (tmp_path / "d").exists()


def test_a_token_goes_into_the_clear_only_when_told_to(tmp_path, token_file):
    fetch = ("fetch", "http://192.0.2.1:1", 7, "--dir", tmp_path / "d", "--token-file", token_file)
    code, _, err = snapstore(*fetch)
    assert (code, "could read the token" in err, "--token-in-clear" in err) == (ExitCode.USAGE, True, True)


def test_no_option_takes_a_token_itself():
    for command in ("serve", "send", "fetch"):
        with contextlib.redirect_stdout(None):
            code, _, err = snapstore(command, "--token", TOKEN)
        assert code == ExitCode.USAGE
        assert "--token" in err
