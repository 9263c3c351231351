"""What a server tells its operators: /metrics in Prometheus' own format, and /v1/transfers."""

from __future__ import annotations

import json
import os

import pytest

from cutting_line import CuttingLine
from exposition import parse
from nodes import CONTENT, META, UNIT, ImagedSnapshot, RawPeer, push, wait_until, written
from snapstore.directory import SnapshotDir
from snapstore.disk import snapshot_name, temp_name
from snapstore.errors import PeerRejected, PeerUnreachable, SnapshotCorrupt, SnapshotTruncated
from snapstore.metrics import CONTENT_TYPE, Counter, Histogram, Page
from snapstore.reception import partial_name
from snapstore.stream import SnapshotStream
from snapstore.transfer import Direction, State
from snapstore.transport.http import SnapshotClient, SnapshotServer

TOKEN = "a-token-of-sixteen"


def ask(url, target, method="GET", more=""):
    with RawPeer(url) as peer:
        peer.say(f"{method} {target} HTTP/1.1\r\nHost: x\r\n{more}\r\n".encode())
        return peer.hear(method)


def scrape(url):
    """The samples of a server: {name, or name and its labels: value}."""
    status, headers, body = ask(url, "/metrics")
    assert (status, headers["Content-Type"]) == (200, CONTENT_TYPE)
    return {(name, *sorted(dict(labels).items())): value for (name, labels), value in parse(body).items()}


def ways(samples, name):
    return [samples[name, ("direction", way)] for way in ("in", "out")]


def ended(samples, way, outcome):
    return samples["snapstore_transfer_seconds_count", ("direction", way), ("outcome", outcome)]


# The format.


def test_a_page_says_what_it_was_told_whatever_words_there_are():
    page = Page()
    words = 'back\\slash, "quotes"\nand a line'
    page.gauge("snapstore_a", words + ".", [({"label": words, "other": ""}, 1.5), ({}, 2)])
    page.counter("snapstore_b_total", "Counted.", [({}, 2**53 + 1)])
    assert parse(page.encode()) == {
        ("snapstore_a", frozenset({("label", words), ("other", "")})): 1.5,
        ("snapstore_a", frozenset()): 2.0,
        ("snapstore_b_total", frozenset()): 2.0**53,
    }
    assert f"snapstore_b_total {2**53 + 1}\n" in page.encode().decode()


def test_a_histogram_counts_each_value_once_and_a_bound_is_inside():
    histogram = Histogram((0.1, 1.0))
    for value in (0.05, 0.1, 0.5, 1.0, 3.0):
        histogram.observe(value)
    assert histogram.read() == ([2, 4, 5], pytest.approx(4.65))
    page = Page()
    page.histogram("snapstore_h_seconds", "Seconds.", [({"a": "b"}, histogram)])
    samples = parse(page.encode())
    assert samples["snapstore_h_seconds_bucket", frozenset({("a", "b"), ("le", "+Inf")})] == 5


@pytest.mark.parametrize(
    "page",
    [
        b"snapstore_a 1\n",
        b"# HELP snapstore_a Words.\n# TYPE snapstore_a gauge\nsnapstore_a 1",
        b"# HELP snapstore_a Words.\n# TYPE snapstore_a counter\nsnapstore_a 1\n",
        b"# HELP snapstore_a Words.\n# TYPE snapstore_a gauge\nsnapstore_a 1\nsnapstore_a 2\n",
        b'# HELP snapstore_a Words.\n# TYPE snapstore_a gauge\nsnapstore_a{b="c\\d"} 1\n',
        b"# HELP snapstore_h_bytes A.\n# TYPE snapstore_h_bytes histogram\nsnapstore_h_bytes_sum 1\n",
    ],
    ids=["no head", "no end", "no total", "twice", "escape", "no count"],
)
def test_the_judge_lets_no_bad_page_through(page):
    with pytest.raises((AssertionError, KeyError)):
        parse(page)


def test_a_counter_counts():
    counter = Counter()
    counter.add()
    counter.add(3)
    assert counter.value == 4


# What is counted.


def test_a_new_server_has_every_metric_at_nothing(follower):
    samples = scrape(follower.url)
    assert {name for name, *_ in samples} == {
        "snapstore_transfer_bytes_total",
        "snapstore_transfers_in_flight",
        *(f"snapstore_transfer_seconds_{part}" for part in ("bucket", "sum", "count")),
        *(f"snapstore_fsync_seconds_{part}" for part in ("bucket", "sum", "count")),
        "snapstore_pinned_age_seconds",
        "snapstore_pinned_bytes",
        "snapstore_leases",
        "snapstore_leases_overdue",
        "snapstore_stored_snapshots",
        "snapstore_stored_bytes",
        "snapstore_leftovers_swept_total",
        "snapstore_digest_failures_total",
    }
    assert not any(samples.values())


def test_a_push_and_a_fetch_are_counted_in_bytes_and_by_outcome(follower, tmp_path):
    for _ in range(2):
        push(follower, written())
    with pytest.raises(PeerRejected):
        push(follower, written(meta=1))
    with SnapshotDir(tmp_path / "other") as other:
        SnapshotClient().fetch(follower.url, META.index, other)
    samples = scrape(follower.url)
    assert ways(samples, "snapstore_transfer_bytes_total") == [len(CONTENT)] * 2
    assert ways(samples, "snapstore_transfers_in_flight") == [0, 0]
    outcomes = [ended(samples, "in", outcome) for outcome in ("done", "existed", "refused", "failed")]
    assert outcomes == [1, 1, 1, 0]
    assert ended(samples, "out", "done") == 1
    assert samples["snapstore_stored_snapshots",] == 1
    assert samples["snapstore_stored_bytes",] == len(CONTENT)
    assert samples["snapstore_fsync_seconds_count",] == 1
    assert samples["snapstore_fsync_seconds_sum",] > 0


def test_one_under_way_is_in_flight(follower):
    with follower.server.registry.watch(Direction.OUT, "peer", 1):
        assert ways(scrape(follower.url), "snapstore_transfers_in_flight") == [0, 1]


def test_leftovers_that_are_swept_are_counted(tmp_path):
    SnapshotDir(tmp_path).close()
    for turn in range(3):
        (tmp_path / temp_name(turn)).write_bytes(b"left")
    (tmp_path / partial_name(9)).write_bytes(b"of a transfer, without its note")
    with SnapshotDir(tmp_path) as directory:
        assert directory.counts.leftovers_swept.value == 4


def test_wrong_bytes_are_counted_and_missing_ones_are_not(tmp_path):
    with SnapshotDir(tmp_path) as directory:
        manifest = directory.save_from(CONTENT, 1).manifest
        with pytest.raises(SnapshotTruncated):
            directory.save_from(CONTENT[:-1], 2, size=len(CONTENT))
        assert directory.counts.digest_failures.value == 0
        with pytest.raises(SnapshotCorrupt):
            directory.save_from(bytes(len(CONTENT)), 2, expected=manifest)
        assert directory.counts.digest_failures.value == 1
        with open(tmp_path / snapshot_name(1), "r+b") as file:
            file.write(bytes([CONTENT[0] ^ 1]))
            os.fsync(file.fileno())
        with pytest.raises(SnapshotCorrupt):
            directory.verify(1)
        assert directory.counts.digest_failures.value == 2
        assert directory.counts.fsync.read()[0][-1] == 1


def test_what_was_kept_of_another_leaders_pin_is_no_wrong_digest(follower, tmp_path):
    (tmp_path / "image").write_bytes(CONTENT)
    (tmp_path / "other").write_bytes(os.urandom(len(CONTENT)))
    with CuttingLine(follower.url) as line:
        line.cut_after(2 * UNIT)
        with (
            SnapshotStream(META, ImagedSnapshot(tmp_path / "image")) as stream,
            pytest.raises(PeerUnreachable),
        ):
            SnapshotClient().send_snapshot(line.url, stream, chunk_size=UNIT)
    wait_until(lambda: not follower.server.registry.in_flight()[Direction.IN])
    with SnapshotStream(META, ImagedSnapshot(tmp_path / "other")) as stream:
        SnapshotClient().send_snapshot(follower.url, stream, chunk_size=UNIT)
    states = [transfer.state for transfer in follower.server.registry.transfers()]
    assert states == [State.DONE, State.FAILED, State.FAILED]  # The second one found what was kept.
    assert follower.directory.counts.digest_failures.value == 0


# The routes.


def test_the_list_of_transfers_is_json(follower):
    push(follower, written())
    status, headers, body = ask(follower.url, "/v1/transfers?all")
    assert (status, headers["Content-Type"]) == (200, "application/json")
    (told,) = json.loads(body)["transfers"]
    assert told == follower.server.registry.transfers()[0].to_json()
    assert (told["direction"], told["index"], told["state"]) == ("in", META.index, "done")
    assert told["bytes"] == told["total"] == len(CONTENT)


@pytest.mark.parametrize("target", ["/metrics", "/v1/transfers", "/v1/leases"])
def test_the_token_is_asked_for(tmp_path, target):
    with SnapshotDir(tmp_path) as directory, SnapshotServer(directory, "127.0.0.1:0", token=TOKEN) as server:
        assert ask(server.url, target)[0] == 401
        assert ask(server.url, target, more=f"Authorization: Bearer {TOKEN}\r\n")[0] == 200


@pytest.mark.parametrize("target", ["/metrics", "/v1/transfers", "/v1/leases"])
def test_only_what_makes_sense_is_answered(follower, target):
    assert ask(follower.url, target, "HEAD")[2] == b""
    assert ask(follower.url, f"{target}/more")[0] == 404
    assert ask(follower.url, target, "DELETE")[0] == 405
    assert ask(follower.url, target, more="Content-Length: 3\r\n")[0] == 400
