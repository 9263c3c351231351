"""The tracer itself: what it sees of a child, what it does to it, and how it tells of its end."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import types

import pytest

import snapstore.testing
from fresh_process import in_a_fresh_process
from processes import unmeasured
from snapstore.testing import machine
from snapstore.testing.call import KILL, Fail, Shorten
from snapstore.testing.tracer import trace


def seen(act, verdict=lambda call: None):
    """The calls that `act` makes, and how it ended."""
    calls = []

    def on_call(call):
        calls.append(call.name)
        return verdict(call)

    return calls, trace(act, on_call)


@in_a_fresh_process
def test_calls_are_seen_from_the_beginning_that_the_child_says_to_its_end(tmp_path):
    def act(child):
        os.mkdir(tmp_path / "before")
        child.begin()
        fd = os.open(tmp_path / "file", os.O_CREAT | os.O_WRONLY)
        os.pwrite(fd, b"content", 3)
        child.mark("half")
        os.fsync(fd)
        os.close(fd)

    told = []

    def on_call(call):
        if call.name == "openat":
            told.append(call.path(0, 1))
        elif call.name == "pwrite64":
            told.append((call.data, call.arguments[3], os.readlink(call.descriptor(0))))
        elif call.name == "mark":
            told.append(call.mark_text)
        elif call.name == "close":
            told.append((call.descriptor_state(0)[0], call.identity(0) is not None))

    results = []
    ended = trace(act, on_call, lambda call, result: results.append((call.name, result)))
    assert told == [
        str(tmp_path / "file"),
        (b"content", 3, str(tmp_path / "file")),
        "half",
        (0, True),
        "returned",
    ]
    assert [result for name, result in results if name in ("pwrite64", "fsync")] == [7, 0]
    assert (ended.returned, ended.raised, ended.hung, ended.died) == (True, None, False, False)
    assert ended.descriptors_left == []


@in_a_fresh_process
def test_a_failed_call_is_not_made_except_for_one_that_is_made_first(tmp_path):
    def act(child):
        child.begin()
        with pytest.raises(OSError, match="No space"):
            os.mkdir(tmp_path / "new")
        fd = os.open(tmp_path, os.O_RDONLY)
        with pytest.raises(OSError, match="Input/output"):
            os.close(fd)

    def verdict(call):
        if call.name in ("mkdir", "mkdirat"):
            return Fail(errno.ENOSPC)
        return Fail(errno.EIO, made=True) if call.name == "close" else None

    _, ended = seen(act, verdict)
    assert ended.returned, ended.raised
    assert ended.descriptors_left == []
    assert os.listdir(tmp_path) == []


@in_a_fresh_process
def test_a_write_is_cut_short(tmp_path):
    def act(child):
        child.begin()
        with open(tmp_path / "file", "wb", buffering=0) as file:
            assert [file.write(b"content"), file.write(b"content")] == [2, 7]

    left = [Shorten(2)]
    _, ended = seen(act, lambda call: left.pop() if call.name == "write" and left else None)
    assert ended.returned, ended.raised
    assert (tmp_path / "file").read_bytes() == b"cocontent"


@in_a_fresh_process
def test_a_kill_comes_before_the_call(tmp_path):
    def act(child):
        child.begin()
        os.mkdir(tmp_path / "first")
        os.mkdir(tmp_path / "second")

    made = []

    def verdict(call):
        if call.name in ("mkdir", "mkdirat"):
            made.append(call.text(0 if call.name == "mkdir" else 1))
        return KILL if len(made) == 2 else None

    _, ended = seen(act, verdict)
    assert os.listdir(tmp_path) == ["first"]
    assert (ended.returned, ended.died, ended.hung) == (False, False, False)


@in_a_fresh_process
def test_threads_and_children_are_followed(tmp_path):
    def act(child):
        child.begin()
        thread = threading.Thread(target=os.mkdir, args=(tmp_path / "thread",))
        thread.start()
        thread.join()
        forked = os.fork()
        if forked == 0:
            os.mkdir(tmp_path / "fork")
            os.kill(os.getpid(), signal.SIGKILL)
        os.waitpid(forked, 0)

    tids = set()

    def on_call(call):
        if call.name in ("mkdir", "mkdirat"):
            tids.add(call.tid)

    ended = trace(act, on_call)
    assert ended.returned, ended.raised
    assert len(tids) == 2
    assert sorted(os.listdir(tmp_path)) == ["fork", "thread"]


@in_a_fresh_process
def test_every_end_is_told_from_every_other():
    def raising(child):
        child.begin()
        os.open("/dev/null", os.O_RDONLY)
        try:
            raise ValueError("first")
        except ValueError as error:
            raise FileNotFoundError(errno.ENOENT, "no such", "name") from error

    def hanging(child):
        child.begin()
        signal.pause()

    def dying(child):
        child.begin()
        os._exit(3)

    def early(child):
        raise KeyError("before the beginning")

    ended = trace(raising)
    assert ended.raised.is_a(OSError)
    assert (ended.raised.errno, ended.raised.filename, ended.raised.cause.text) == (2, "name", "first")
    assert "in raising" in str(ended.raised)
    assert ended.descriptors_left == ["/dev/null"]
    ended = trace(hanging, timeout_s=0.05)
    assert (ended.hung, ended.returned, ended.died) == (True, False, False)
    ended = trace(dying)
    assert (ended.hung, ended.returned, ended.died) == (False, False, True)
    ended = trace(early)
    assert (ended.returned, ended.died, ended.raised.kinds[0]) == (False, False, "KeyError")
    assert trace(lambda child: None).returned


@in_a_fresh_process
def test_what_the_tester_raises_ends_the_child_and_passes_on(tmp_path):
    children = []

    def act(child):
        child.begin()
        os.mkdir(tmp_path / "new")

    def on_call(call):
        children.append(call.pid)
        raise LookupError("the tester's")

    with pytest.raises(LookupError, match="the tester's"):
        trace(act, on_call)
    assert os.listdir(tmp_path) == []
    assert not os.path.exists(f"/proc/{children[0]}")


@in_a_fresh_process
def test_a_process_with_other_threads_is_refused_and_none_of_its_own_children_is_waited_for():
    bystander = subprocess.Popen([sys.executable, "-c", ""], env=unmeasured())
    assert trace(lambda child: child.begin()).returned
    assert bystander.wait() == 0
    go_on = threading.Event()
    thread = threading.Thread(target=go_on.wait)
    thread.start()
    try:
        with pytest.raises(RuntimeError, match="other threads"):
            trace(lambda child: None)
    finally:
        go_on.set()
        thread.join()


def test_a_machine_that_is_not_known_is_refused_by_name(monkeypatch):
    monkeypatch.setattr(machine.os, "uname", lambda: types.SimpleNamespace(machine="riscv64"))
    with pytest.raises(NotImplementedError, match="x86_64 and aarch64; this machine is riscv64"):
        machine.this_machine()


def test_both_machines_know_the_calls_of_a_save():
    wanted = {"openat", "write", "pwrite64", "fsync", "renameat2", "linkat", "unlinkat", "close", "futex"}
    assert all(wanted <= set(known.names.values()) for known in machine._MACHINES.values())
    numbers = [
        {name: number for number, name in machine._MACHINES[kind].names.items()}
        for kind in ("x86_64", "aarch64")
    ]
    # From the kernel's tables: asm/unistd_64.h and asm-generic/unistd.h.
    assert [known["fsync"] for known in numbers] == [74, 82]
    assert [known["renameat2"] for known in numbers] == [316, 276]
    assert [known["linkat"] for known in numbers] == [265, 37]
    assert [known["clone3"] for known in numbers] == [435, 435]


def test_what_the_package_offers_is_there_and_nothing_else():
    for name in snapstore.testing.__all__:
        assert getattr(snapstore.testing, name).__name__ == name
    with pytest.raises(AttributeError, match="nothing"):
        snapstore.testing.nothing  # noqa: B018


def test_importing_it_loads_no_tracer():
    code = (
        "import sys, snapstore.testing; print([n for n in sys.modules if n.startswith('snapstore.testing.')])"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, env=unmeasured()
    ).stdout
    assert "tracer" not in loaded
    assert "clock" in loaded
