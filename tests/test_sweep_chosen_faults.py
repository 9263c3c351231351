"""Faults at chosen moments of longer stories: what is poisoned, what is kept, who is in the way.

Each story runs in a traced child, for nameless and named files, small and large; the faults are its
tracer's, which stands beside it and may use the same directory meanwhile.
"""

from __future__ import annotations

import errno
import fcntl
import os

import pytest

from fresh_process import in_a_fresh_process
from residue import names
from snapstore import disk
from snapstore.directory import SnapshotDir
from snapstore.errors import DirectoryPoisoned, SnapshotExists, SnapshotNotDurable, SnapshotNotFound
from snapstore.testing.call import KILL, Fail
from snapstore.testing.tracer import trace

CHUNK_SIZE = 256 * 1024
CONTENTS = (b"small" * 1000, os.urandom(1024) * 1100)

EIO = Fail(errno.EIO)


class Strike:
    """An `on_call`: `what(call)` says what becomes of the `nth` call of a name, counted from `begin`."""

    def __init__(self, name, nth, what):
        self.name, self.nth, self.what = name, nth, what
        self.count = 0

    def __call__(self, call):
        self.count += call.name == self.name
        return self.what(call) if (call.name, self.count) == (self.name, self.nth) else None


def every_way(tmp_path, *, ways=(True, False)):
    """A new directory, how to open it, and a content, for each way to save."""
    for nameless in ways:
        for content in CONTENTS:
            path = tmp_path / f"{nameless}-{len(content)}"
            path.mkdir()
            yield path, lambda path=path, nameless=nameless: opened(path, nameless), content


def opened(path, nameless):
    return SnapshotDir(path, nameless=nameless, chunk_size=CHUNK_SIZE)


def told(story, on_call):
    """Run a story in a traced child; its assertions are this process's, and the fault must have struck."""
    ended = trace(story, on_call)
    assert ended.returned, ended.raised or ended
    assert on_call.count >= on_call.nth
    return on_call


@in_a_fresh_process
def test_an_fsync_of_the_file_that_failed_ends_the_save_and_is_not_tried_again(tmp_path):
    for path, open_it, content in every_way(tmp_path):

        def story(child, path=path, open_it=open_it, content=content):
            with open_it() as directory:
                child.begin()
                with pytest.raises(OSError, match=f"{1:016x}.db") as caught:
                    directory.save_from(content, 1)
                assert caught.value.errno == errno.EIO
                assert names(path) == []
                child.mark("failed")
                # A new attempt writes a new file, and may well succeed.
                assert directory.save_from(content, 1).size == len(content)

        class Counted(Strike):
            def __call__(self, call):
                if call.name == "mark" and call.mark_text == "failed":
                    assert self.count == 1
                return super().__call__(call)

        told(story, Counted("fsync", 1, lambda call: EIO))


@in_a_fresh_process
def test_an_fsync_of_the_directory_that_failed_poisons_and_a_new_opening_looks_for_itself(tmp_path):
    for path, open_it, content in every_way(tmp_path):

        def story(child, open_it=open_it, content=content):
            directory = open_it()
            child.begin()
            with pytest.raises(SnapshotNotDurable) as caught:
                directory.save_from(content, 1)
            assert caught.value.__cause__.errno == errno.EIO
            for index in (1, 2):
                with pytest.raises(DirectoryPoisoned):
                    directory.save_from(content, index)
            assert directory.verify(1).size == len(content)
            directory.close()

        assert told(story, Strike("fsync", 3, lambda call: EIO)).count == 3
        with SnapshotDir(path) as again:
            with pytest.raises(SnapshotExists):
                again.save_from(content, 1)
            assert again.save_from(content, 2).size == len(content)


@in_a_fresh_process
def test_that_a_snapshot_exists_is_no_news_that_lasts_unless_the_directory_can_be_synced(tmp_path):
    for path, open_it, content in every_way(tmp_path):

        def story(child, path=path, open_it=open_it, content=content):
            with open_it() as directory:
                directory.save_from(content, 1)
                child.begin()
                with pytest.raises(SnapshotNotDurable) as caught:
                    directory.save_from(content, 1)
                assert caught.value.__cause__.filename == str(path)
                with pytest.raises(DirectoryPoisoned):
                    directory.save_from(content, 1)

        told(story, Strike("fsync", 1, lambda call: EIO))


@in_a_fresh_process
def test_the_kernel_tells_of_a_failed_fsync_once_so_whoever_hears_of_it_poisons_for_all(tmp_path):
    for _, open_it, content in every_way(tmp_path):

        def story(child, open_it=open_it, content=content):
            with open_it() as directory:
                directory.save_from(content, 1)
                directory.save_from(content, 2)
                child.begin()
                with pytest.raises(OSError, match="Input/output error") as caught:
                    directory.purge(keep=1)
                assert caught.value.errno == errno.EIO
                child.mark("purged")
                with pytest.raises(DirectoryPoisoned):
                    directory.save_from(content, 3)

        told(story, Strike("fsync", 1, lambda call: EIO))


@in_a_fresh_process
def test_a_directory_whose_fsync_fails_is_not_opened_and_no_descriptor_stays(tmp_path):
    def story(child):
        child.begin()
        with pytest.raises(OSError, match="Input/output error") as caught:
            opened(tmp_path, nameless=True)
        assert caught.value.errno == errno.EIO

    strike = Strike("fsync", 1, lambda call: EIO)
    ended = trace(story, strike)
    assert ended.returned, ended.raised
    assert ended.descriptors_left == []
    assert strike.count == 1


@in_a_fresh_process
def test_a_cleaner_that_takes_a_new_file_before_its_saver_has_locked_it_costs_the_saver_nothing(tmp_path):
    for path, open_it, content in every_way(tmp_path, ways=(False,)):  # What has no name cannot be taken.
        removed = []

        def story(child, path=path, open_it=open_it, content=content):
            with open_it() as directory:
                child.begin()
                assert directory.save_from(content, 1).size == len(content)
                assert len(names(path)) == 2

        def clean(call, path=path, removed=removed):
            before = set(names(path))
            SnapshotDir(path).close()
            removed += before - set(names(path))

        told(story, Strike("flock", 1, clean))
        assert len(removed) == 1


@in_a_fresh_process
def test_nor_does_a_cleaner_that_has_the_lock_and_has_not_removed_the_file_yet(tmp_path):
    for path, open_it, content in every_way(tmp_path, ways=(False,)):
        held = []

        def clean_slowly(call, path=path, held=held):
            (name,) = names(path)
            held.append(os.open(path / name, os.O_RDONLY))
            fcntl.flock(held[0], fcntl.LOCK_EX)

        def story(child, path=path, open_it=open_it, content=content):
            with open_it() as directory:
                child.begin()
                assert directory.save_from(content, 1).size == len(content)
                assert len(names(path)) == 2

        class Cleaner(Strike):
            """Has the lock when the saver asks the first time, and is done when it asks again."""

            def __call__(self, call, path=path, held=held):
                if (call.name, self.count) == ("flock", 1):
                    (path / names(path)[0]).unlink()
                    os.close(held[0])
                return super().__call__(call)

        told(story, Cleaner("flock", 1, clean_slowly))


@in_a_fresh_process
def test_a_look_that_fails_before_the_naming_costs_a_stored_snapshot_nothing(tmp_path):
    """Somebody else saved the same index meanwhile, and the disk cannot tell us so."""
    for path, open_it, content in every_way(tmp_path):

        def story(child, path=path, open_it=open_it, content=content):
            with open_it() as directory:
                child.begin()
                with pytest.raises((OSError, SnapshotExists)):
                    directory.save_from(content, 1)

        class Blind(Strike):
            """Saves the same when the file is written, and from then on no look at the name succeeds."""

            def __call__(self, call, path=path):
                if call.name == "newfstatat" and self.count and call.text(1) == disk.snapshot_name(1):
                    return EIO
                return super().__call__(call)

        def save_the_same(call, path=path):
            with SnapshotDir(path) as other:
                other.save_from(b"theirs", 1)

        told(story, Blind("fsync", 1, save_the_same))
        with SnapshotDir(path) as directory:
            assert directory.verify(1).path.read_bytes() == b"theirs"


@in_a_fresh_process
def test_a_saver_that_is_killed_while_another_stored_the_same_harms_nobody(tmp_path):
    """At each call from then on: the other's snapshot stays whole, and nothing of the killed one."""
    for nth in range(1, 100):
        path = tmp_path / str(nth)
        path.mkdir()

        def story(child, path=path):
            with opened(path, nameless=False) as directory:
                child.begin()
                with pytest.raises(SnapshotExists):
                    directory.save_from(CONTENTS[0], 1)

        calls = []

        def on_call(call, path=path, nth=nth, calls=calls):
            if not calls and call.name != "fsync":
                return None
            if not calls:
                with SnapshotDir(path) as other:
                    other.save_from(b"theirs", 1)
            calls.append(call.name)
            return KILL if len(calls) == nth else None

        ended = trace(story, on_call)
        with SnapshotDir(path) as directory:
            assert directory.verify(1).path.read_bytes() == b"theirs"
            assert len(names(path)) == 2
            with pytest.raises(SnapshotNotFound):
                directory.stat(2)
        if len(calls) < nth:
            assert ended.returned, ended.raised
            break
    assert nth > 15
