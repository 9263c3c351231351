"""`snapstore serve --etcd-cluster-id`: a learner from the command line."""

import re
import signal
import subprocess

import etcd_peers as etcd
from command_line import END_S_MAX, snapstore, spawn
from nodes import RawPeer
from snapstore.cli.exits import ExitCode


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
