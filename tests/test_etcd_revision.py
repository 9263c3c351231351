"""The revision of an etcd database, read out of its pages; and pages that lie."""

import contextlib
import os
import struct

import pytest

from etcd_databases import PAGE_SIZE, ROOT, branch, bucket, database, leaf, meta, page, revision_key, store
from snapstore import _fastpipe
from snapstore.errors import SnapshotCorrupt, SnapshotTruncated
from snapstore.etcd.revision import read_revision

KEYS = ROOT + 1
NOTHING = bucket(b"meta", leaf(0))


@contextlib.contextmanager
def memory_file(content):
    with open(os.memfd_create("database"), "wb") as file:
        file.write(content)
        file.flush()
        yield file.fileno()


def read(content, size=None):
    with memory_file(content) as fd, _fastpipe.Image(fd, len(content), close_fd=False) as image:
        return read_revision(image, len(content) if size is None else size)


def keyed(*pages, notes=()):
    """A database whose bucket of keys has its root in the first of `pages`."""
    return database(leaf(ROOT, bucket(b"key", KEYS), bucket(b"meta", leaf(0, *notes))), *pages)


def test_the_newest_change_is_the_revision():
    assert read(store(7)) == 7
    assert read(store(2**63 - 1)) == 2**63 - 1


def test_a_store_without_a_change_stands_at_1():
    assert read(keyed(leaf(KEYS))) == 1
    assert read(database(leaf(ROOT, bucket(b"key", leaf(0)), NOTHING))) == 1


def test_of_one_change_with_many_keys_all_have_one_revision():
    changes = [(revision_key(5, place), b"v") for place in range(9)]
    assert read(keyed(leaf(KEYS, *changes))) == 5


def test_a_removal_counts():
    assert read(keyed(leaf(KEYS, (revision_key(4), b"v"), (revision_key(9, tombstone=True), b"")))) == 9


def test_branches_lead_to_the_last_leaf_and_old_pages_do_not_count():
    pages = (
        branch(KEYS, (revision_key(1), KEYS + 1), (revision_key(50), KEYS + 2)),
        branch(KEYS + 1, (revision_key(1), KEYS + 3)),
        branch(KEYS + 2, (revision_key(50), KEYS + 4), (revision_key(70), KEYS + 5)),
        leaf(KEYS + 3, (revision_key(1), b"a")),
        leaf(KEYS + 4, (revision_key(50), b"b")),
        leaf(KEYS + 5, (revision_key(70), b"c"), (revision_key(71), b"d")),
        leaf(KEYS + 6, (revision_key(99), b"of a transaction that was never finished")),
    )
    assert read(keyed(*pages)) == 71


def test_the_key_may_stand_behind_a_value_of_many_pages():
    long = leaf(KEYS, (revision_key(2), bytes(5 * PAGE_SIZE)), (revision_key(3), b"v"))
    assert read(keyed(long)) == 3


@pytest.mark.parametrize("name", [b"scheduledCompactRev", b"finishedCompactRev"])
def test_what_compaction_took_counts_by_its_note(name):
    notes = [(b"consistent_index", struct.pack(">Q", 99)), (name, revision_key(12))]
    assert read(keyed(leaf(KEYS, (revision_key(9), b"v")), notes=sorted(notes))) == 12
    assert read(keyed(leaf(KEYS, (revision_key(20), b"v")), notes=sorted(notes))) == 20


def test_buckets_are_found_among_many():
    names = [b"alarm", b"auth", b"cluster", b"key", b"lease", b"members", b"meta"]
    assert (
        read(database(leaf(ROOT, *(bucket(name, leaf(0, (revision_key(3), b"v"))) for name in names)))) == 3
    )


def test_the_root_bucket_may_have_branches():
    pages = (
        branch(ROOT, (b"alarm", ROOT + 1), (b"meta", ROOT + 2)),
        leaf(ROOT + 1, bucket(b"key", leaf(0, (revision_key(8), b"")))),
        leaf(ROOT + 2, NOTHING),
    )
    assert read(database(*pages)) == 8


def test_a_trailer_behind_the_database_is_not_its_own():
    content = store(7)
    assert read(content + bytes(32), len(content)) == 7
    with pytest.raises(SnapshotCorrupt, match="32 more than its pages"):
        read(content + bytes(32))


@pytest.mark.parametrize("size", [0, 1, PAGE_SIZE, PAGE_SIZE + 80, 4 * PAGE_SIZE, 5 * PAGE_SIZE - 1])
def test_a_cut_database_is_refused(size):
    content = store(7)
    assert len(content) == 5 * PAGE_SIZE
    with pytest.raises(SnapshotTruncated):
        read(content[:size])


LIES = {
    "another program's database": (database(leaf(ROOT, bucket(b"mine", leaf(0)))), "not etcd's"),
    "a key where the bucket should be": (database(leaf(ROOT, (b"key", b"v"), NOTHING)), "not etcd's"),
    "a bucket without a page": (database(leaf(ROOT, (b"key", b"short", 1), NOTHING)), "is cut"),
    "a key that is no revision": (keyed(leaf(KEYS, (b"0123456789", b"v"))), "no revision"),
    "a short key": (keyed(leaf(KEYS, (b"short", b"v"))), "no revision"),
    "a short note": (keyed(leaf(KEYS), notes=[(b"finishedCompactRev", b"12")]), "no revision"),
    "a circle": (keyed(branch(KEYS, (b"", KEYS))), "circle"),
    "a page beyond the end": (keyed(branch(KEYS, (b"", KEYS + 1))), "does not have"),
    "a page beyond all numbers": (keyed(branch(KEYS, (b"", 2**64 - 1))), "does not have"),
    "a page of another number": (keyed(branch(KEYS, (b"", KEYS + 1)), leaf(9)), "calls itself 9"),
    "a meta page within the tree": (keyed(branch(KEYS, (b"", 0))), "wrong kind 0x4"),
    "a value beyond its page": (
        keyed(page(KEYS, 2, 1, struct.pack("<IIII", 0, 16, 2**31, 0))),
        "points out of itself",
    ),
    "a key beyond its page": (
        keyed(page(KEYS, 2, 1, struct.pack("<IIII", 0, PAGE_SIZE, 17, 0))),
        "points out of itself",
    ),
    "more elements than there is room": (keyed(page(KEYS, 2, 65535, b"")), "points out of itself"),
}  # fmt: skip


@pytest.mark.parametrize(("content", "words"), LIES.values(), ids=LIES.keys())
def test_lies_are_refused(content, words):
    with pytest.raises(SnapshotCorrupt, match=words):
        read(content)


def test_a_page_that_goes_on_behind_the_end_is_refused():
    content = bytearray(store(7))
    struct.pack_into("<I", content, KEYS * PAGE_SIZE + 12, 2**32 - 1)
    with pytest.raises(SnapshotCorrupt, match="goes on behind its end"):
        read(bytes(content))


def test_a_root_outside_is_refused():
    content = store(7)
    metas = [meta(number, 5, 8 - number, root=9).ljust(PAGE_SIZE, b"\0") for number in (0, 1)]
    with pytest.raises(SnapshotCorrupt):
        read(b"".join(metas) + content[2 * PAGE_SIZE :])


@pytest.mark.slow
def test_no_change_of_one_byte_is_more_than_a_refusal():
    """Whatever stands in any byte: a number or an error of ours comes, and soon."""
    content = keyed(
        branch(KEYS, (revision_key(1), KEYS + 1), (revision_key(5), KEYS + 2)),
        leaf(KEYS + 1, (revision_key(1), b"a")),
        leaf(KEYS + 2, (revision_key(5), b"b"), (revision_key(6), b"c")),
        notes=[(b"finishedCompactRev", revision_key(3))],
    )
    refused = 0
    with memory_file(content) as fd, _fastpipe.Image(fd, len(content), close_fd=False) as image:
        for at, byte in enumerate(content):
            for other in {0, 0xFF, byte ^ 1, byte ^ 0x80} - {byte}:
                os.pwrite(fd, bytes([other]), at)
                try:
                    assert 1 <= read_revision(image, len(content)) < 2**64
                except SnapshotCorrupt:
                    refused += 1
            os.pwrite(fd, bytes([byte]), at)
        assert read_revision(image, len(content)) == 6
    assert refused > 200
