"""Limits on the command line: what they may be, and that the bytes keep to them. No upper bound of time."""

from __future__ import annotations

import os
import signal
import subprocess
import time

import lmdb
import pytest

from command_line import END_S_MAX, snapstore, spawn
from etcd_databases import store
from etcd_server import EtcdServer, sent
from paced import BURST_S, MIB, PIECE_SIZE
from snapstore._fastpipe import RATE_LIMIT_MIN
from snapstore.cli import ExitCode
from snapstore.cli.arguments import ArgumentTypeError, parse_throttle

#: What starting an interpreter takes does not hide the least time that this takes: 1.7 s.
RATE, SIZE = MIB, 2 * MIB
OPTION = f"{RATE // 1024}KiB/s"


@pytest.fixture
def kv(tmp_path):
    with lmdb.open(str(tmp_path / "kv")) as env, env.begin(write=True) as txn:
        txn.put(b"key", os.urandom(SIZE))
    return f"lmdb:{tmp_path / 'kv'}"


@pytest.fixture
def peer(tmp_path):
    """Starts servers; the URL of each."""
    children = []

    def start(*options):
        command = ("serve", "--dir", tmp_path / "stored", *options)
        children.append(spawn(*command, stdout=subprocess.PIPE, text=True))
        return children[-1].stdout.readline().rstrip("\n").removeprefix("listening on ")

    yield start
    for child in children:
        child.send_signal(signal.SIGTERM)
        child.communicate(timeout=END_S_MAX)
        assert child.returncode == ExitCode.DONE


def elapsed_s(*command):
    began_s = time.monotonic()
    code, _, err = snapstore(*command)
    assert code == 0, err
    return time.monotonic() - began_s


@pytest.mark.parametrize("text", ["64KiB", "65536", "50MB/s", "1.5 GiB/s", " 2MiB/s "])
def test_a_rate_is_a_size_in_a_second(text):
    assert parse_throttle(text).rate >= RATE_LIMIT_MIN


def test_a_rate_is_read_exactly():
    assert parse_throttle("50MB/s").rate == parse_throttle("50MB").rate == 50_000_000


@pytest.mark.parametrize("text", ["", "/s", "50MB/m", "fast"])
def test_what_is_no_rate_is_refused(text):
    with pytest.raises(ArgumentTypeError, match="a size is"):
        parse_throttle(text)


def test_a_rate_at_which_peers_give_up_is_told_as_a_usage_error(tmp_path):
    code, _, err = snapstore("serve", "--dir", tmp_path / "stored", "--rate-out", "1KiB/s")
    assert code == ExitCode.USAGE
    assert "--rate-out" in err
    assert "stalled" in err
    assert not (tmp_path / "stored").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("server", "client"),
    [((), ("--rate", OPTION)), (("--rate-in", OPTION), ())],
    ids=["out", "in"],
)
def test_what_is_sent_keeps_to_either_side_s_rate(peer, kv, server, client):
    url = peer(*server)
    sent_s = elapsed_s("send", "--kv", kv, "--index", 9, "--term", 2, *client, url)
    assert sent_s >= (SIZE - PIECE_SIZE) / RATE - BURST_S


@pytest.mark.slow
@pytest.mark.parametrize(
    ("server", "client"), [((), ("--rate", OPTION)), (("--rate-out", OPTION), ())], ids=["in", "out"]
)
def test_what_is_fetched_keeps_to_either_side_s_rate(tmp_path, peer, kv, server, client):
    url = peer(*server)
    elapsed_s("send", "--kv", kv, "--index", 9, "--term", 2, url)
    fetched_s = elapsed_s("fetch", url, 9, "--dir", tmp_path / "fetched", *client)
    assert fetched_s >= (SIZE - PIECE_SIZE) / RATE - BURST_S


@pytest.mark.slow
def test_what_an_etcd_gives_is_saved_at_the_rate(tmp_path):
    database = store(7, filler=bytes(SIZE))
    with EtcdServer(lambda *_: sent(database)) as server:
        fetched_s = elapsed_s("fetch", server.url, "--dir", tmp_path / "fetched", "--rate", OPTION)
    assert fetched_s >= (SIZE - PIECE_SIZE) / RATE - BURST_S
