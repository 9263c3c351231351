"""The pure parts of the power cut: logs, crash states and images. No root, no devices."""

from __future__ import annotations

import contextlib
import itertools
import os
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapstore.testing.power_cut import PowerCut, log
from snapstore.testing.power_cut.image import BLOCK_SIZE, CrashImages, copy_sparse
from snapstore.testing.power_cut.log import Flush, Mark, Write
from snapstore.testing.power_cut.saved_files import content_of, problems_of_files
from snapstore.testing.power_cut.states import ALL_ARRIVE, CrashState, Timeline

SIZE = 16 * BLOCK_SIZE

RECORDS = st.lists(
    st.one_of(
        st.builds(Write, st.integers(0, SIZE - 1), st.binary(max_size=3 * BLOCK_SIZE)),
        st.just(Flush()),
        st.builds(Mark, st.sampled_from(log.VERBS), st.integers(0, 2**64 - 1)),
    ),
    max_size=20,
)


def write(block, letter):
    return Write(block * BLOCK_SIZE, letter * BLOCK_SIZE)


@given(RECORDS)
def test_a_log_says_what_was_written_to_it(records):
    assert log.from_bytes(b"".join(map(log.to_bytes, records))) == records


def test_a_log_that_ends_within_a_record_is_refused():
    whole = b"".join(map(log.to_bytes, [Write(5, b"abc"), Mark("ok", 7)]))
    first = len(log.to_bytes(Write(5, b"abc")))
    for end in range(len(whole) + 1):
        if end in (0, first, len(whole)):
            log.from_bytes(whole[:end])
        else:
            with pytest.raises(ValueError, match="ends within"):
                log.from_bytes(whole[:end])


@pytest.mark.parametrize(
    "data",
    [b"X" + bytes(12), b"F" + bytes(8) + b"\1\0\0\0.", b"", b"ok", b"ok 01", b"lost 1", b"ok -", b"\xff"],
)
def test_what_is_no_record_is_refused(data):
    with pytest.raises(ValueError, match=r".*"):
        log.from_bytes(data) if len(data) > 10 else Mark.from_bytes(data)


def test_a_flush_covers_what_came_before_it_and_nothing_after():
    a, b, c = write(0, b"a"), write(1, b"b"), write(2, b"c")
    timeline = Timeline([a, b, Flush(), c])
    assert [timeline.unflushed(cut) for cut in range(5)] == [[], [a], [a, b], [], [c]]
    assert [timeline.flushed(cut) for cut in range(5)] == [0, 0, 0, 3, 3]


def test_what_was_said_before_the_cut_counts():
    timeline = Timeline([Mark("begin", 1), Mark("ok", 1), Mark("begin", 2), Mark("gone", 1)])
    assert [timeline.said(cut) for cut in range(5)] == [
        (set(), set()), ({1}, set()), ({1}, {1}), ({1, 2}, {1}), ({1, 2}, set())
    ]  # fmt: skip


def test_every_subset_and_every_torn_part_is_drawn_and_nothing_else():
    """Two writes of two atoms each: what can arrive is any part of both, but one torn at most."""
    timeline = Timeline([Write(0, b"aabb"), Write(4, b"ccdd")])
    seen = set()
    for seed in range(2000):
        arrived = timeline.arrived(CrashState(2, seed, atom_size=2))
        seen.add(b"".join(part.data for part in arrived))
        for part in arrived:
            assert b"aabbccdd"[part.offset : part.offset + len(part.data)] == part.data
    halves = {b"".join(parts) for parts in itertools.product([b"", b"aa", b"bb", b"aabb"], [b"", b"ccdd"])}
    halves |= {b"".join(parts) for parts in itertools.product([b"", b"aabb"], [b"", b"cc", b"dd", b"ccdd"])}
    assert seen == halves


def test_atoms_lie_where_the_disk_has_them():
    timeline = Timeline([Write(3, b"abcdef")])
    parts = {
        (part.offset, part.data)
        for seed in range(500)
        for part in timeline.arrived(CrashState(1, seed, atom_size=4))
    }
    assert parts == {(3, b"abcdef"), (3, b"a"), (4, b"bcde"), (8, b"f")}


def test_states_are_drawn_alike_from_one_seed_and_are_what_they_were_by_their_text():
    timeline = Timeline([write(0, b"a"), Flush(), write(1, b"b"), write(2, b"c")])
    drawn = [list(itertools.islice(timeline.draw(random.Random(5), atom_size=512), 300)) for _ in range(2)]
    assert drawn[0] == drawn[1]
    assert {state.cut for state in drawn[0]} == set(range(5))
    for state in drawn[0]:
        again = CrashState.from_text(str(state))
        assert again == state
        assert timeline.arrived(again) == timeline.arrived(state)


@contextlib.contextmanager
def memory_files(count):
    """Descriptors of empty files that are nowhere."""
    descriptors = [os.memfd_create(str(number)) for number in range(count)]
    try:
        yield descriptors
    finally:
        for fd in descriptors:
            os.close(fd)


@given(data=st.data(), records=RECORDS)
def test_an_image_has_what_was_flushed_and_what_arrived(data, records):
    timeline = Timeline([record for record in records if not isinstance(record, Write) or fits(record)])
    cut = data.draw(st.integers(0, timeline.cuts))
    expected = bytearray(SIZE)
    for part in timeline.writes(0, cut):
        expected[part.offset : part.offset + len(part.data)] = part.data
    with memory_files(3) as (origin, durable, target):
        os.ftruncate(origin, SIZE)
        images = CrashImages(origin, durable, target)
        images.flush(timeline.writes(0, timeline.flushed(cut)))
        assert images.make(timeline.arrived(CrashState(cut, ALL_ARRIVE, atom_size=512)), set(), None)
        assert os.pread(target, SIZE + 1, 0) == expected


def fits(record):
    return record.offset + len(record.data) <= SIZE


def test_images_are_the_same_when_their_bytes_are():
    with memory_files(3) as (origin, durable, target):
        os.ftruncate(origin, SIZE)
        os.pwrite(origin, b"o" * 100, 2 * BLOCK_SIZE)
        images, seen = CrashImages(origin, durable, target), set()
        assert images.make([], seen, None)
        assert images.make([write(1, b"x")], seen, None)
        assert not images.make([write(1, b"y"), write(1, b"x")], seen, None)
        assert not images.make([write(3, b"\0")], seen, None)
        assert images.make([write(1, b"x")], seen, "something else was said")
        images.flush([write(1, b"x")])
        assert not images.make([], seen, None)
        assert not images.make([write(1, b"\0")], seen, None)
        images.rewind()
        assert not images.make([], seen, None)
        assert images.make([], set(), None)
        assert os.pread(target, SIZE, 0) == os.pread(origin, SIZE, 0)


def test_a_sparse_copy_is_the_same_and_sparse():
    size = 64 * 2**20
    with memory_files(2) as (source, target):
        os.ftruncate(source, size)
        os.pwrite(source, b"end", size - 3)
        os.pwrite(source, bytes(2**20), 0)
        os.pwrite(source, b"middle", 2**24)
        os.pwrite(target, b"old", 2**22)
        copy_sparse(source, target, size)
        assert os.pread(source, size, 0) == os.pread(target, size, 0)
        assert os.fstat(target).st_blocks * 512 < 4 * 2**20


def test_files_are_right_lost_wrong_or_unbegun(tmp_path):
    for index in (1, 2, 3):
        (tmp_path / f"{index:016x}.db").write_bytes(content_of(index))
    assert problems_of_files(tmp_path, {1, 2, 3, 4}, {1}) == []
    (tmp_path / f"{2:016x}.db").write_bytes(content_of(2)[:-1] + b"?")
    problems = problems_of_files(tmp_path, {1, 2, 4}, {1, 4})
    assert [problem.split(" ", 1)[0] for problem in problems] == ["3", "4", "2"]
    assert problems_of_files(tmp_path / "missing", {1}, {1}) == ["1 was reported, and is lost"]


def test_a_file_system_or_an_atom_that_is_none_is_refused():
    with pytest.raises(ValueError, match="is none of ext4, xfs, btrfs"):
        PowerCut("vfat")
    with pytest.raises(ValueError, match="atom_size"):
        PowerCut(atom_size=0)
