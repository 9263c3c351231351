"""The same with curl, which shares no code with us: it fetches, goes on where it stopped, and pushes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess

import pytest

from nodes import CONTENT, META, UNIT, WAIT_S, Follower, frames
from snapstore.wire import Offer

CURL = shutil.which("curl")

pytestmark = [
    pytest.mark.usefixtures("nothing_lost"),
    pytest.mark.skipif(CURL is None, reason="CURL IS NOT TESTED: it is not installed"),
]


@pytest.fixture
def stored(follower):
    follower.directory.save_from(CONTENT, META)
    return follower


@pytest.fixture
def curl(tmp_path):
    (tmp_path / "curl").mkdir()

    def run(*arguments):
        """What curl puts out, run in a directory of its own, without the user's settings or proxies."""
        done = subprocess.run(
            [CURL, "-q", "-sS", "--noproxy", "*", "--max-time", str(WAIT_S), *arguments],
            cwd=tmp_path / "curl",
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_curl_fetches_a_snapshot_under_its_index(stored, curl, tmp_path):
    curl("-O", f"{stored.url}/v1/snapshots/7")
    assert (tmp_path / "curl" / "7").read_bytes() == CONTENT


def test_curl_fetches_a_range(stored, curl):
    assert curl("-r", "100-199", f"{stored.url}/v1/snapshots/7") == CONTENT[100:200]
    assert curl("-r", "-5", f"{stored.url}/v1/snapshots/7") == CONTENT[-5:]


def test_curl_goes_on_where_a_fetch_stopped(stored, curl, tmp_path):
    (tmp_path / "curl" / "part").write_bytes(CONTENT[:5000])
    curl("-C", "-", "-o", "part", f"{stored.url}/v1/snapshots/7")
    assert (tmp_path / "curl" / "part").read_bytes() == CONTENT


def test_curl_lists_and_asks_for_health_on_one_line(stored, curl):
    said = curl("-f", f"{stored.url}/healthz", f"{stored.url}/v1/snapshots", f"{stored.url}/healthz")
    health, listed, again = said.splitlines()
    assert (health, again) == (b"ok", b"ok")
    assert json.loads(listed)["snapshots"][0]["index"] == 7


def test_curl_reads_the_head_of_what_is_there_and_of_what_is_not(stored, curl):
    assert b"200 OK" in curl("-I", f"{stored.url}/v1/snapshots/7")
    assert b"404 Not Found" in curl("-I", f"{stored.url}/v1/snapshots/8")


@pytest.mark.parametrize("kind", ["ipv6", "unix"])
def test_curl_reaches_other_kinds_of_addresses(tmp_path, curl, kind):
    if kind == "unix":
        with Follower(tmp_path / "follower", f"unix:{tmp_path}/node.sock"):
            assert curl("--unix-socket", f"{tmp_path}/node.sock", "http://localhost/healthz") == b"ok\n"
        return
    try:
        follower = Follower(tmp_path / "follower", "[::1]:0")
    except OSError as error:
        pytest.skip(f"IPv6 IS NOT TESTED: this machine has none ({error})")
    with follower:
        assert follower.url.startswith("http://[::1]:")
        assert curl("-g", f"{follower.url}/healthz") == b"ok\n"


def offer_options(size, **fields):
    """The offer's headers as options of curl, which finds the length of the body by itself."""
    offer = Offer(META, size, UNIT, **fields)
    own = {"Content-Length", "Transfer-Encoding"}
    return [part for name, value in offer.headers() if name not in own for part in ("-H", f"{name}: {value}")]


@pytest.mark.parametrize("expect", ["Expect: 100-continue", "Expect:"], ids=["expect", "no expect"])
def test_curl_pushes_a_snapshot(follower, curl, tmp_path, expect):
    (tmp_path / "curl" / "body").write_bytes(frames())
    options = [*offer_options(len(CONTENT)), "-H", expect, "-w", "%{http_code}"]
    said = curl("-T", "body", *options, f"{follower.url}/v1/snapshots/7")
    assert said.endswith(b"201")
    assert follower.directory.verify(7).path.read_bytes() == CONTENT
    assert follower.directory.stat(7).meta == META
    assert curl("-T", "body", *options, f"{follower.url}/v1/snapshots/7").endswith(b"200")
    assert follower.saved == [7, 7]


def test_curl_pushes_a_stream_whose_length_nobody_knows(follower, curl, tmp_path):
    content = os.urandom(1024 * 1024)
    (tmp_path / "curl" / "body").write_bytes(frames(content))
    options = [*offer_options(None), "-H", "Transfer-Encoding: chunked"]
    said = curl("-T", "body", *options, f"{follower.url}/v1/snapshots/7")
    assert json.loads(said)["size"] == len(content)
    assert follower.directory.verify(7).path.read_bytes() == content


def test_curl_is_told_why_a_push_is_refused(stored, curl, tmp_path):
    (tmp_path / "curl" / "body").write_bytes(frames(CONTENT[1:]))
    said = curl("-T", "body", *offer_options(len(CONTENT) - 1), f"{stored.url}/v1/snapshots/7")
    assert json.loads(said) == {"error": "a different snapshot of this index is stored"}
