"""An examination that is killed, or met by a fault, at each of its system calls: nothing of it stays.

It reads nothing here: what a verifying read does in a fault is swept elsewhere, with the saves.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fresh_process import in_a_fresh_process
from residue import names
from snapstore import disk, reception
from snapstore.directory import SnapshotDir
from snapstore.doctor import examine, pace, probes
from snapstore.testing import syscall_sweep

CONTENT = b"small" * 1000


def littered(path):
    """A snapshot, and something of each kind that a sweep removes."""
    snap = path / "snap"
    with SnapshotDir(snap) as directory:
        directory.save_from(CONTENT, 7)
    for name in (disk.temp_name(9), disk.manifest_name(6), reception.partial_name(5), reception.note_name(5)):
        (snap / name).write_bytes(b"left")
    return snap


def content_of(snap):
    return {name: ((snap / name).read_bytes(), os.stat(snap / name).st_mtime_ns) for name in names(snap)}


def examined(snap, **options):
    """Quickly: each point has a run of its own, and what repeats needs no more than a few."""
    pace._PIECE_SIZE = 64 * 1024
    probes.PROBE_SIZE = pace.PROBE_SIZE = 2 * pace._PIECE_SIZE
    pace.SYNCS_MAX = 2
    return examine(snap, **options)


def swept(story, check, tmp_path):
    result = syscall_sweep(story, check, scratch=tmp_path, prepare=littered)
    print(result)
    assert not result.violations, "\n".join(map(str, result.violations))
    assert result.points.total() > 200


@pytest.mark.slow
@in_a_fresh_process(measured=False)
def test_a_look_leaves_no_name_no_byte_and_no_descriptor_whatever_fails(tmp_path):
    def story(snap):
        before = content_of(snap), os.stat(snap).st_mtime_ns
        Path(f"{snap}.before").write_text(repr(before))
        examined(snap)

    def check(path, run):
        snap, before = path / "snap", path / "snap.before"
        assert not run.descriptors_left, run.descriptors_left
        assert not run.raised or run.raised.is_a(OSError), run.raised
        if before.exists() and (told := before.read_text()):
            assert repr((content_of(snap), os.stat(snap).st_mtime_ns)) == told

    swept(story, check, tmp_path)


@pytest.mark.slow
@in_a_fresh_process(measured=False)
def test_fixing_costs_no_snapshot_whatever_fails_and_can_be_done_again(tmp_path):
    def check(path, run):
        snap = path / "snap"
        assert not run.descriptors_left, run.descriptors_left
        assert not run.raised or run.raised.is_a(OSError), run.raised
        assert examined(snap, fix=True, read=True).treatment.refused is None
        assert names(snap) == [disk.snapshot_name(7), disk.manifest_name(7)]
        assert (snap / disk.snapshot_name(7)).read_bytes() == CONTENT

    swept(lambda snap: examined(snap, fix=True), check, tmp_path)
