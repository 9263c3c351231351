"""What a power cut may leave of operations, as values: no process is traced and no file written."""

from __future__ import annotations

import pytest

from snapstore.testing.disk_model import ROOT, SECTOR_SIZE, Names, Resize, Sync, Write, crash

FILE, OTHER = 1, 2


def left(operations, policy, seed="0"):
    """Names and contents behind all of `operations`."""
    contents = crash(operations, frozenset({ROOT}), policy, seed)
    return {name: contents.content(node) for name, node in contents.tree().items()}


def named(name, node=FILE):
    return Names(((ROOT, name, node),))


WRITTEN = [named("file"), Write(FILE, 0, b"bytes")]


@pytest.mark.parametrize(
    ("policy", "expected"),
    [("strict", {}), ("names", {"file": b""}), ("bytes", {}), ("all", {"file": b"bytes"})],
)
def test_nothing_was_synced(policy, expected):
    assert left(WRITTEN, policy) == expected


def test_a_file_and_its_name_last_by_a_sync_of_their_own():
    assert left([*WRITTEN, Sync(FILE, 2)], "strict") == {}
    assert left([*WRITTEN, Sync(FILE, 2)], "names") == {"file": b"bytes"}
    assert left([*WRITTEN, Sync(ROOT, 2)], "strict") == {"file": b""}
    assert left([*WRITTEN, Sync(FILE, 2), Sync(ROOT, 3)], "strict") == {"file": b"bytes"}
    assert left([*WRITTEN, Sync(None, 2)], "strict") == {"file": b"bytes"}


def test_a_sync_takes_what_was_done_before_it_began():
    late = [*WRITTEN, Write(FILE, 5, b" more"), Sync(FILE, 2), Sync(ROOT, 3)]
    assert left(late, "strict") == {"file": b"bytes"}


def test_a_rename_is_made_as_a_whole_or_not_at_all():
    rename = Names(((ROOT, "old", None), (ROOT, "new", FILE)))
    operations = [named("old"), Sync(ROOT, 1), rename]
    assert left(operations, "strict") == {"old": b""}
    assert left(operations, "names") == {"new": b""}
    assert {tuple(left(operations, "random", str(seed))) for seed in range(50)} == {("old",), ("new",)}


def test_names_of_a_directory_survive_in_their_order():
    operations = [named(str(number), number + 1) for number in range(4)]
    found = {tuple(left(operations, "random", str(seed))) for seed in range(200)}
    assert found == {("0", "1", "2", "3")[:count] for count in range(5)}


def test_a_write_survives_whole_or_torn_between_sectors_or_as_a_length_or_not():
    size = 4 * SECTOR_SIZE
    operations = [named("file"), Sync(ROOT, 1), Write(FILE, 0, b"x" * size)]
    found = {left(operations, "random", str(seed))["file"] for seed in range(400)}
    assert {b"", b"x" * size, bytes(size)} < found
    for content in found - {b""}:
        sectors = [content[at : at + SECTOR_SIZE] for at in range(0, size, SECTOR_SIZE)]
        assert set(sectors) <= {b"x" * SECTOR_SIZE, bytes(SECTOR_SIZE)}
    assert len(found) == 2**4 + 1  # Every part of the four sectors, and nothing at all.


def test_a_write_in_place_leaves_old_bytes_where_it_is_lost():
    size = 2 * SECTOR_SIZE
    operations = [named("file"), Write(FILE, 0, b"o" * size), Sync(FILE, 2), Sync(ROOT, 3)]
    operations.append(Write(FILE, 0, b"n" * size))
    found = {left(operations, "random", str(seed))["file"] for seed in range(100)}
    halves = (b"o" * SECTOR_SIZE, b"n" * SECTOR_SIZE)
    assert found == {first + second for first in halves for second in halves}


def test_a_file_may_be_cut_or_not():
    operations = [*WRITTEN, Sync(FILE, 2), Sync(ROOT, 3), Resize(FILE, 2)]
    assert left(operations, "strict") == {"file": b"bytes"}
    assert left(operations, "all") == {"file": b"by"}
    assert {left(operations, "random", str(seed))["file"] for seed in range(50)} == {b"bytes", b"by"}
    assert left([named("file"), Resize(FILE, 3)], "all") == {"file": bytes(3)}


def test_what_is_below_a_directory_needs_the_directory():
    contents = crash(
        [Names(((ROOT, "new", OTHER),)), Names(((OTHER, "file", FILE),)), Sync(OTHER, 2)],
        frozenset({ROOT, OTHER}),
        "strict",
        "0",
    )
    assert contents.tree() == {}


def test_the_same_seed_gives_the_same_state():
    operations = [named("file"), Write(FILE, 0, bytes(range(256)) * 64)]
    states = [left(operations, "random", str(seed)) for seed in range(30)]
    assert states == [left(operations, "random", str(seed)) for seed in range(30)]


def test_operations_say_what_they_are():
    texts = [str(operation) for operation in (*WRITTEN, Resize(1, 2), Sync(1, 0), Sync(None, 0))]
    assert texts == [
        "name: file in 0 is 1",
        "write 5 bytes at 0 of file 1",
        "resize file 1 to 2 bytes",
        "sync 1",
        "sync everything",
    ]
