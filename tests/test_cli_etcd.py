"""`snapstore fetch etcd://...`: what it does, whom it tells the password, what it refuses."""

from __future__ import annotations

import json
import signal
import subprocess
import threading

import pytest

from certificates import Authority
from command_line import END_S_MAX, on_terminal, snapstore, spawn
from etcd_databases import store
from etcd_server import BLOB_SIZE, EtcdServer, digest, grpc, sent
from residue import names
from snapstore.cli import ExitCode

DATABASE = store(7)
LARGE = store(8, filler=bytes(3 * BLOB_SIZE))
USERS = {"root": "se:same"}


def serve(**options):
    return EtcdServer(lambda *_: sent(DATABASE), **options)


def fetch(server, path, *options):
    return snapstore("fetch", server.url, "--dir", path, *options)


def test_the_database_is_fetched_and_restored_as_etcdctl_wants_it(tmp_path):
    with serve() as server:
        code, out, err = fetch(server, tmp_path / "d")
        assert (code, out.startswith("saved snapshot 7 (5.0 KiB, crc32c:")) == (ExitCode.DONE, True)
        assert f"fetch {server.url}: done" in err
    assert snapstore("restore", tmp_path / "d", 7, tmp_path / "etcd.db")[0] == ExitCode.DONE
    assert (tmp_path / "etcd.db").read_bytes() == DATABASE + digest(DATABASE)


def test_machines_get_it_in_json(tmp_path):
    with serve() as server:
        said = json.loads(fetch(server, tmp_path / "d", "--json")[1])
    assert (said["index"], said["term"], said["size"]) == (7, 0, len(DATABASE) + 32)


def test_what_is_there_is_not_fetched_again(tmp_path):
    with serve(revision=7) as server:
        assert fetch(server, tmp_path / "d")[0] == ExitCode.DONE
        code, _, err = fetch(server, tmp_path / "d")
    assert (code, "stands at revision 7" in err) == (ExitCode.EXISTS, True)


@pytest.mark.parametrize(
    ("said", "code", "words"),
    [
        (sent(DATABASE, trailer=bytes(32)), ExitCode.OUTCOME_BAD, "do not restore from it"),
        (list(sent(DATABASE))[:-1], ExitCode.OUTCOME_BAD, "the bytes are not all here"),
    ],
)
def test_a_pull_that_failed_leaves_nothing(tmp_path, said, code, words):
    with EtcdServer(lambda *_: iter(said)) as server:
        found, _, err = fetch(server, tmp_path / "d")
    assert (found, words in err) == (code, True)
    assert names(tmp_path / "d") == []


def test_nobody_there(tmp_path):
    with serve() as server:
        pass
    code, _, err = fetch(server, tmp_path / "d")
    assert (code, "is it running there" in err) == (ExitCode.PEER, True)
    assert not (tmp_path / "d").exists()


def test_ctrl_c_ends_it_and_leaves_nothing(tmp_path):
    sending = threading.Event()

    def held(server, _context):
        yield from list(sent(LARGE))[:1]
        sending.set()
        server.hold()

    with EtcdServer(held) as server:
        command = ("fetch", server.url, "--dir", tmp_path / "d")
        with spawn(*command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
            assert sending.wait(END_S_MAX)
            child.send_signal(signal.SIGINT)
            _, err = child.communicate(timeout=END_S_MAX)
    assert (child.returncode, "interrupted" in err) == (ExitCode.INTERRUPTED, True)
    assert names(tmp_path / "d") == []


@pytest.fixture
def password_file(tmp_path):
    (tmp_path / "password").write_text("se:same\n")
    return tmp_path / "password"


def test_the_password_behind_the_name_or_in_a_file_or_in_the_environment(
    tmp_path, password_file, monkeypatch
):
    with serve(users=USERS) as server:
        assert fetch(server, tmp_path / "a", "--user", "root:se:same")[0] == ExitCode.DONE
        options = ("--user", "root", "--password-file", password_file)
        assert fetch(server, tmp_path / "b", *options)[0] == ExitCode.DONE
        monkeypatch.setenv("ETCDCTL_PASSWORD", "se:same")
        assert fetch(server, tmp_path / "c", "--user", "root")[0] == ExitCode.DONE
        code, _, err = fetch(server, tmp_path / "d", "--user", "root:wrong")
        assert (code, "authentication failed" in err, "wrong" in err) == (ExitCode.PEER, True, False)


def test_on_a_terminal_it_is_asked_for_and_not_echoed(tmp_path):
    # Whoever types is simulated where the terminal is read; that it is asked without echo is getpass's.
    typing = "import getpass; getpass.getpass = lambda prompt: (print(prompt), 'se:same')[1]"
    with serve(users=USERS) as server:
        seen, code = on_terminal(
            "fetch", server.url, "--dir", tmp_path / "d", "--user", "root", before=typing
        )
    assert (code, "password of root: " in seen, "same" in seen) == (ExitCode.DONE, True, False)


def test_tls_and_a_user(tmp_path, node):
    pair = (node.key.read_bytes(), node.cert.read_bytes())
    credentials = grpc.ssl_server_credentials([pair], node.ca.read_bytes(), True)
    with serve(credentials=credentials, users=USERS) as server:
        ca, pair = ("--cacert", node.ca), ("--cert", node.cert, "--key", node.key, "--user", "root:se:same")
        assert fetch(server, tmp_path / "d", *ca, *pair)[0] == ExitCode.DONE
        assert fetch(server, tmp_path / "e", *ca)[0] == ExitCode.PEER
        strangers = Authority(tmp_path / "strangers")
        assert fetch(server, tmp_path / "e", "--cacert", strangers.file, *pair)[0] == ExitCode.PEER
    assert not (tmp_path / "e").exists()


USAGE = [
    ("etcd://127.0.0.1:1 7", "an INDEX cannot be asked for"),
    ("etcd://127.0.0.1:1 --tls-ca x", "towards etcd the options are --cacert"),
    ("etcd://127.0.0.1:1 --token-file x", "towards etcd the options are --cacert"),
    ("etcd://127.0.0.1:1 --cert x --key y", "TLS needs --cacert"),
    ("etcd://192.0.2.1:1 --user root:sesame", "in the clear"),
    ("etcd://127.0.0.1:1 --user root", "no password for root"),
    ("etcd://127.0.0.1:1 --password-file x", "--password-file goes with --user NAME"),
    ("etcd://127.0.0.1:1 --user root:sesame --password-file x", "no password behind the name"),
    ("etcd://127.0.0.1:1/x", "an etcd endpoint ends behind the port"),
    ("etcd://", "an etcd endpoint is etcd://HOST:PORT"),
    ("http://127.0.0.1:1", "give its INDEX"),
    ("http://127.0.0.1:1 7 --cacert x", "are for etcd"),
    ("http://127.0.0.1:1 7 --user root", "are for etcd"),
]


@pytest.mark.parametrize(("line", "words"), USAGE)
def test_what_cannot_be_asked_for(tmp_path, monkeypatch, line, words):
    monkeypatch.delenv("ETCDCTL_PASSWORD", raising=False)
    monkeypatch.setattr("sys.stdin", None)
    code, _, err = snapstore("fetch", *line.split(), "--dir", tmp_path / "d")
    assert (code, words in err, "sesame" in err) == (ExitCode.USAGE, True, False), err
    assert not (tmp_path / "d").exists()
