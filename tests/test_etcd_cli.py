"""`snapstore serve --etcd-cluster-id`: a learner from the command line."""

import re
import signal
import subprocess

import pytest

import etcd_peers as etcd
from command_line import END_S_MAX, snapstore, spawn
from nodes import RawPeer
from residue import names
from snapstore.cli.exits import ExitCode

SIZE = 2**30

#: The rings of a save, and what else a process takes with its first connection.
GROWTH_MAX = 48 * 2**20


def test_a_server_takes_what_an_etcd_leader_sends(tmp_path):
    options = ("--dir", tmp_path / "stored", "--etcd-cluster-id", f"{etcd.CLUSTER:X}")
    with spawn("serve", *options, stdout=subprocess.PIPE, text=True) as child:
        url = re.search(r"http://\S+", child.stdout.readline())[0]
        body = etcd.snapshot() + etcd.database()
        with RawPeer(url) as peer:
            peer.say(etcd.head(length=len(body)), body)
            assert peer.hear("POST")[0] == 204
        assert f"{etcd.META.index}" in child.stdout.readline()
        child.send_signal(signal.SIGTERM)
        assert child.wait(END_S_MAX) == 0
    code, out, _ = snapstore("verify", tmp_path / "stored")
    assert (code, str(etcd.META.index) in out) == (0, True)


def memory_most(process):
    """The most bytes that a process had of its own at a time."""
    with open(f"/proc/{process.pid}/status") as file:
        return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", file.read())[1])


@pytest.mark.slow
def test_a_gibibyte_too_long_is_neither_kept_nor_held(tmp_path):
    """It begins as a database of that size does, and all of it comes before it shows that there is more."""
    pages, piece = {"page_size": 4096, "page_count": SIZE // 4096}, bytes(2**20)
    start = etcd.meta_page(0, txid=9, **pages) + etcd.meta_page(1, txid=8, **pages)
    options = ("--dir", tmp_path / "stored", "--etcd-cluster-id", f"{etcd.CLUSTER:x}")
    with spawn("serve", *options, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        url = re.search(r"http://\S+", child.stdout.readline())[0]
        before = memory_most(child)
        with RawPeer(url) as peer:
            peer.say(etcd.head(), etcd.piece(etcd.snapshot()), etcd.piece(start))
            for _ in range(SIZE // len(piece)):
                peer.say(etcd.piece(piece))
            peer.end()
            status, _, words = peer.hear("POST")
        assert (status, b"the source has more" in words) == (500, True)
        growth = memory_most(child) - before
        child.send_signal(signal.SIGTERM)
        assert child.communicate(timeout=END_S_MAX)[0] == ""
    assert names(tmp_path / "stored") == []
    assert growth < GROWTH_MAX


def test_what_cannot_be(tmp_path):
    serve = ("serve", "--dir", tmp_path, "--etcd-cluster-id")
    for text in ("", "0x1", "xyz", "1" * 17):
        code, _, err = snapstore(*serve, text)
        assert code == ExitCode.USAGE
        assert "1 to 16 hexadecimal digits" in err
    token = tmp_path / "token"
    token.write_text("a-token-of-sixteen-characters\n")
    code, _, err = snapstore(*serve, "1", "--token-file", token)
    assert code == ExitCode.USAGE
    assert "etcd's members show no token" in err


def test_without_it_nothing_answers_to_etcd(follower):
    with RawPeer(follower.url) as peer:
        peer.say(etcd.head("/raft/probing", "GET", length=0))
        assert peer.hear("GET")[0] == 404
