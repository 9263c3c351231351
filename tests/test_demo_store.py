"""The demo's store: filled as asked, written to by its apply loop, and digested down to each byte."""

from __future__ import annotations

import threading

import pytest

from snapstore.capture import CaptureQueue
from snapstore.cli.demo_machine import MemoryWatch
from snapstore.cli.demo_store import ACCOUNTS, DOCUMENTS, ApplyLoop, content_of, fill, open_store
from snapstore.errors import StoreClosed

SIZE = 8 * 2**20


@pytest.fixture
def env(tmp_path):
    fill(str(tmp_path / "store"), SIZE, lambda _done: None)
    with open_store(str(tmp_path / "store"), SIZE) as env:
        yield env


def digest(env):
    with env.begin() as txn:
        return content_of(env, txn, lambda _done: None)


def test_it_is_filled_to_about_the_size_with_small_and_large_values(tmp_path):
    told = []
    size = fill(str(tmp_path / "store"), SIZE, told.append)
    assert SIZE <= size < 1.5 * SIZE
    assert told == sorted(told)
    assert told[-1] == SIZE
    with open_store(str(tmp_path / "store"), SIZE) as env, env.begin() as txn:
        assert txn.stat(env.open_db(ACCOUNTS, txn=txn))["entries"] > 1000
        assert txn.stat(env.open_db(DOCUMENTS, txn=txn))["overflow_pages"] > 100


def test_the_same_content_has_the_same_digest_and_one_byte_more_another(env):
    before = digest(env)
    assert digest(env) == before
    documents = env.open_db(DOCUMENTS)
    with env.begin(write=True, db=documents) as txn:
        key, value = next(iter(txn.cursor()))
        txn.put(key, value[:-1] + bytes([value[-1] ^ 1]))
    after = digest(env)
    assert (after.keys, after.size) == (before.keys, before.size)
    assert after.digest != before.digest


def test_the_apply_loop_commits_and_serves_captures_between_two_entries(env):
    captures = CaptureQueue()
    before = digest(env)
    with ApplyLoop(env, captures) as loop:
        first, _ = captures.capture(lambda: None)
        second, applied = captures.capture(lambda: loop.applied)
    assert 1 <= first.index < second.index == applied <= loop.applied
    assert second.term == 1
    assert digest(env).keys == before.keys
    assert digest(env).digest != before.digest


def test_an_apply_loop_that_fails_says_so_and_ends_the_captures(env):
    captures = CaptureQueue()
    with env.begin(write=True) as txn:
        txn.drop(env.open_db(ACCOUNTS, txn=txn), delete=False)
    loop = ApplyLoop(env, captures)
    with pytest.raises(StoreClosed):
        captures.capture(lambda: None)
    with pytest.raises(ValueError, match="empty range"):
        loop.stop()


def test_memory_taken_meanwhile_is_seen():
    watch = MemoryWatch()
    taken = bytearray(64 * 2**20)
    taken[::4096] = b"x" * len(taken[::4096])
    memory = watch.stop()
    assert memory.anonymous_growth > 60 * 2**20
    assert memory.resident_peak > memory.anonymous_growth
    del taken


def test_no_thread_of_a_watch_stays():
    MemoryWatch().stop()
    assert not any(thread.name == "demo-memory" for thread in threading.enumerate())
