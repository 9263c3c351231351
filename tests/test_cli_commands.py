"""The commands, one by one: what each does, says to people and machines, and refuses."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import time

import lmdb
import pytest

from command_line import END_S_MAX, snapstore, spawn
from residue import names
from snapstore.cli import ExitCode
from snapstore.directory import SnapshotDir
from snapstore.errors import PeerRejected
from snapstore.transport.http import SnapshotClient, SnapshotServer

CONTENT = os.urandom(300_000)


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


def test_a_saved_file_is_listed_found_verified_and_restored(file, tmp_path):
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


def test_machines_get_one_json_object_from_each_command(file, tmp_path):
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


def test_an_lmdb_store_is_saved_and_restored(lmdb_path, tmp_path):
    directory, target = tmp_path / "stored", tmp_path / "restored"
    assert snapstore("save", f"lmdb:{lmdb_path}", "--dir", directory, "--index", 5)[0] == 0
    assert snapstore("restore", directory, 5, f"lmdb:{target}")[0] == 0
    with lmdb.open(str(target), readonly=True) as env, env.begin() as txn:
        assert txn.get(b"key") == b"value"


def test_a_sqlite_store_is_saved_and_restored(sqlite_path, tmp_path):
    directory, target = tmp_path / "stored", tmp_path / "restored.sqlite"
    assert snapstore("save", f"sqlite:{sqlite_path}", "--dir", directory, "--index", 5)[0] == 0
    assert snapstore("restore", directory, 5, f"sqlite:{target}")[0] == 0
    database = sqlite3.connect(target)
    assert database.execute("SELECT v FROM t").fetchall() == [("value",)]
    database.close()


def test_a_store_that_exists_is_replaced_only_when_told_to(lmdb_path, tmp_path):
    directory = tmp_path / "stored"
    snapstore("save", f"lmdb:{lmdb_path}", "--dir", directory, "--index", 5)
    code, _, err = snapstore("restore", directory, 5, f"lmdb:{lmdb_path}")
    assert (code, "--replace" in err) == (ExitCode.EXISTS, True)
    assert snapstore("restore", directory, 5, f"lmdb:{lmdb_path}", "--replace")[0] == 0


def test_a_damaged_snapshot_is_named_and_the_exit_code_tells(stored, tmp_path):
    with open(stored / "0000000000000007.db", "r+b") as image:
        image.write(b"damage")
    code, out, _ = snapstore("verify", stored)
    assert code == ExitCode.OUTCOME_BAD
    assert "digest of chunk 0" in out.splitlines()[1]
    assert out.splitlines()[2].split() == ["8", "ok"]
    with open(stored / "0000000000000008.db", "r+b") as image:
        image.write(b"damage")
    code, _, err = snapstore("restore", stored, 8, tmp_path / "copy")
    assert code == ExitCode.OUTCOME_BAD
    assert err.splitlines()[-1].startswith(f"snapstore: error: {stored}/0000000000000008.db: the digest")
    assert names(tmp_path) == ["stored"]


def test_purge_keeps_the_newest(stored):
    assert snapstore("purge", stored, "--keep", 1)[:2] == (0, "removed 7\n")
    assert snapstore("purge", stored, "--keep", 1)[:2] == (0, "nothing to remove\n")


def test_purge_by_age_and_by_size(stored):
    assert snapstore("purge", stored, "--older-than", "1h")[:2] == (0, "nothing to remove\n")
    assert snapstore("purge", stored, "--max-size", "1TiB")[:2] == (0, "nothing to remove\n")
    assert snapstore("purge", stored, "--keep", 2, "--max-size", 0)[:2] == (0, "nothing to remove\n")
    hours_ago = time.time() - 2 * 3600
    os.utime(stored / "0000000000000007.db", (hours_ago, hours_ago))
    assert snapstore("purge", stored, "--older-than", "3h")[:2] == (0, "nothing to remove\n")
    assert snapstore("purge", stored, "--older-than", "90m")[:2] == (0, "removed 7\n")
    assert snapstore("purge", stored, "--max-size", 0)[:2] == (0, "nothing to remove\n")  # The last one.


@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        ("path {stored} 9", ExitCode.NOT_FOUND, "no snapshot of index 9"),
        ("ls {stored}/nowhere", ExitCode.NOT_FOUND, "no directory of snapshots"),
        ("save {stored}/nothing --dir {stored} --index 9", ExitCode.NOT_FOUND, "check the path"),
        ("save lmdb:{stored}/nothing --dir {stored} --index 9", ExitCode.NOT_FOUND, "no lmdb store"),
        ("restore {stored} 7 {stored}/no/copy", ExitCode.NOT_FOUND, "no such directory"),
        ("save {file} --dir {stored} --index 7", ExitCode.EXISTS, "it was kept"),
        ("restore {stored} 7 {file}", ExitCode.EXISTS, "never replaced"),
        ("save {file} --dir {file} --index 7", ExitCode.SYSTEM, "Not a directory"),
        ("save lmdb:{file} --dir {stored} --index 9", ExitCode.OUTCOME_BAD, "cannot be read"),
        ("save sqlite:{file} --dir {stored} --index 9", ExitCode.OUTCOME_BAD, "not a database"),
        ("fetch http://127.0.0.1:1 7 --dir {stored} --attempts 1", ExitCode.PEER, "is it running there"),
        ("fetch http://127.0.0.1:1 --dir {stored} --attempts 1 7", ExitCode.PEER, "is it running there"),
        ("nonsense", ExitCode.USAGE, "invalid choice"),
        ("purge {stored} --keep 0", ExitCode.USAGE, "1 or more"),
        ("purge {stored}", ExitCode.USAGE, "which ones stay"),
        ("purge {stored} --older-than 7", ExitCode.USAGE, "as 90s, 30m"),
        ("purge {stored} --max-size much", ExitCode.USAGE, "as 1GiB"),
        ("send --kv etcd:x --index 1 --term 1 http://a:1", ExitCode.USAGE, "lmdb:PATH"),
        ("send --kv lmdb:x --index 1 --term 1 --cluster é http://a:1", ExitCode.USAGE, "printable"),
        ("fetch ftp://a 7 --dir {stored}", ExitCode.USAGE, "http[s]://HOST:PORT"),
        ("serve --dir {stored} --listen 80", ExitCode.USAGE, "HOST:PORT"),
    ],
)
def test_what_goes_wrong_has_its_exit_code_and_says_what_to_do(stored, file, command, code, words):
    command = command.format(stored=stored, file=file).split()
    before = names(stored)
    found, out, err = snapstore(*command)
    assert (found, out) == (code, "")
    assert any(line.startswith("snapstore: error: ") and words in line for line in err.splitlines())
    found, out, err = snapstore(*command, "--json")
    assert (found, err) == (code, "")
    assert json.loads(out).keys() == {"error", "message"}
    assert words in json.loads(out)["message"]
    assert names(stored) == before


@pytest.fixture
def server(tmp_path):
    with SnapshotDir(tmp_path / "peer") as directory, SnapshotServer(directory, cluster="blue") as server:
        yield server


@pytest.mark.parametrize("kind", ["lmdb", "sqlite"])
def test_a_store_is_sent_and_fetched_back(server, lmdb_path, sqlite_path, tmp_path, kind):
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


def test_a_peer_of_another_cluster_refuses(server, lmdb_path):
    code, _, err = snapstore("send", "--kv", f"lmdb:{lmdb_path}", "--index", 9, "--term", 2, server.url)
    assert code == ExitCode.PEER
    assert "the peer refused: this node belongs to cluster 'blue'" in err


def test_a_peer_that_is_busy_is_asked_again_unless_told_otherwise(tmp_path, lmdb_path):
    refusals = [PeerRejected(503, "restoring"), PeerRejected(503, "restoring")]

    def on_offer(offer):
        if refusals:
            raise refusals.pop()

    offer = ("send", "--kv", f"lmdb:{lmdb_path}", "--index", 9, "--term", 2)
    with SnapshotDir(tmp_path / "there") as there, SnapshotServer(there, on_offer=on_offer) as server:
        assert snapstore(*offer, "--attempts", 1, server.url)[0] == ExitCode.UNAVAILABLE
        code, out, err = snapstore(*offer, server.url)
    assert (code, out.startswith("the peer saved snapshot 9 (")) == (0, True)
    assert "goes on in" in err


def test_a_snapshot_that_the_peer_has_not_is_refused(server, tmp_path):
    code, _, err = snapstore("fetch", server.url, 9, "--dir", tmp_path / "fetched")
    assert (code, "no snapshot of index 9" in err) == (ExitCode.PEER, True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_server_says_where_it_listens_names_each_save_and_ends_on_a_signal(stored, lmdb_path, number):
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
