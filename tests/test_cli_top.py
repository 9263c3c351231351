"""`snapstore top`: the transfers of a server, for people, for pipes and for machines."""

from __future__ import annotations

import json
import signal
import subprocess

import pytest

from command_line import END_S_MAX, on_terminal, snapstore, spawn
from nodes import META, push, written
from snapstore.cli import ExitCode
from snapstore.cli.top import COLUMNS, ENDED_SHOWN_MAX, LEASE_COLUMNS, lease_rows_of, rows_of
from snapstore.transfer import Direction


@pytest.fixture
def busy(follower):
    """The URL of a server that has taken a snapshot and gives another."""
    push(follower, written())
    with follower.server.registry.watch(Direction.OUT, "10.0.0.7:4000", 8, total=2048):
        yield follower.url


def test_machines_get_all_there_is_once(busy):
    code, out, _ = snapstore("top", busy, "--json")
    given, taken = json.loads(out)["transfers"]
    assert code == ExitCode.DONE
    assert (given["peer"], given["state"], given["total"]) == ("10.0.0.7:4000", "offered", 2048)
    assert (taken["index"], taken["state"]) == (META.index, "done")


def test_a_pipe_gets_plain_lines_at_each_look(busy):
    code, out, _ = snapstore("top", busy, "--count", 2, "--interval", 0.001)
    assert code == ExitCode.DONE
    lines = out.splitlines()
    assert len(lines) == 6
    assert lines[0].split() == list(COLUMNS)
    assert lines[1].split()[:6] == ["8", "out", "10.0.0.7:4000", "offered", "0", "B"]
    assert "2.0 KiB" in lines[1]
    assert lines[2].split()[0] == str(META.index)
    assert "done" in lines[2]


def test_who_holds_what_is_shown_to_machines_and_people(busy, follower):
    with follower.directory.open(META.index, owner="applier", ttl_s=3600):
        code, out, _ = snapstore("top", busy, "--leases", "--json")
        (told,) = json.loads(out)["leases"]
        assert code == ExitCode.DONE
        assert (told["index"], told["owner"], told["overdue"]) == (META.index, "applier", False)
        heads, row = snapstore("top", busy, "--leases", "--count", 1)[1].splitlines()
    assert heads.split() == " ".join(LEASE_COLUMNS).split()
    assert row.split()[:4] == [str(META.index), "stored", "applier", "held"]
    assert "test_cli_top.py:" in row


def test_a_terminal_gets_a_table_that_is_drawn_again_in_its_place(busy):
    shown, code = on_terminal("top", busy, "--count", 3, "--interval", 0.001)
    assert code == ExitCode.DONE
    assert "10.0.0.7:4000" in shown
    assert "\x1b[1A" in shown  # Back up, to draw over what was there.


def test_without_rich_a_terminal_gets_plain_lines(busy):
    shown, code = on_terminal("top", busy, "--count", 1, before="sys.modules['rich'] = None")
    assert code == ExitCode.DONE
    assert "10.0.0.7:4000" in shown
    assert "\x1b" not in shown


def test_nothing_is_said_too(follower):
    assert snapstore("top", follower.url, "--count", 1)[1] == "nothing to show\n"


def test_ctrl_c_ends_it_well(busy):
    with spawn("top", busy, "--interval", 3600, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdout.readline().split()[0] == b"INDEX"
        child.send_signal(signal.SIGINT)
        _, err = child.communicate(timeout=END_S_MAX)
    assert (child.returncode, err) == (ExitCode.DONE, b"")


def test_a_server_that_is_gone_is_an_error(follower):
    follower.server.close()
    assert snapstore("top", follower.url, "--attempts", 1)[0] == ExitCode.PEER


def test_that_a_server_does_not_answer_is_said_while_it_is_tried_again(follower):
    follower.server.close()
    code, out, err = snapstore("top", follower.url, "--attempts", 2)
    assert (code, out) == (ExitCode.PEER, "")
    assert err.count(" goes on in ") == 1


@pytest.mark.parametrize("interval", ["0", "-1", "nan", "inf", "3601", "soon"])
def test_an_interval_is_seconds(interval):
    assert snapstore("top", "http://127.0.0.1:1", "--interval", interval)[0] == ExitCode.USAGE


@pytest.mark.parametrize("bad", [None, [], {}, "\x1b[2J\n" * 100, -1, True, 10**400, 1e300, float("nan")])
def test_whatever_a_peer_says_is_shown_as_text(bad):
    names = ("direction", "peer", "index", "bytes", "total", "rate", "eta_s", "stalled", "state", "error")
    (row,) = rows_of([dict.fromkeys(names, bad)])
    assert len(row) == len(COLUMNS)
    names = ("index", "kind", "owner", "age_s", "left_s", "bytes_held", "overdue", "taken_at")
    (lease_row,) = lease_rows_of([dict.fromkeys(names, bad)])
    assert len(lease_row) == len(LEASE_COLUMNS)
    assert all(cell.isprintable() and cell.isascii() and 0 < len(cell) < 60 for cell in row + lease_row)


@pytest.mark.parametrize(
    ("left_s", "shown"),
    [(0.2, "0 s"), (59.4, "59 s"), (60, "1:00"), (3599.6, "1:00:00"), (90061, "25:01:01")],
)
def test_the_time_left_is_read_at_a_glance(left_s, shown):
    (row,) = rows_of([{"state": "moving", "eta_s": left_s}])
    assert row[COLUMNS.index("LEFT")] == shown


def test_all_under_way_are_shown_and_of_the_ended_the_last_few():
    ended = [{"index": place, "state": "done"} for place in range(50)]
    live = [{"index": place, "state": "moving", "stalled": place == 0} for place in range(50)]
    rows = rows_of(ended + live)
    assert len(rows) == 50 + ENDED_SHOWN_MAX
    assert rows[0][3] == "stalled"
    assert rows[-1][0] == str(ENDED_SHOWN_MAX - 1)
