"""What is told to be left over is what `--fix` removes, and nothing else, whatever lies there."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from looked_at import fingerprint, held, looked
from snapstore import disk, reception
from snapstore.broken import broken_manifest_name, broken_name
from snapstore.directory import SnapshotDir
from snapstore.doctor import treat

DAY_S = reception.PARTIAL_AGE_MAX_S

#: How long ago each file of a partial may have been written.
AGES_S = {"young": 60.0, "younger": 30.0, "stale": DAY_S + 60.0}


#: What may lie under an index, as what makes it; each is drawn or not, on its own.
KINDS = ("sound", "bare", "manifest", "temp", "held temp", "broken", "part", "held part", "note")


@st.composite
def litter(draw):
    """What lies in a directory: a kind, an index, and what else is drawn of it."""
    return [
        (kind, index, draw(st.sampled_from([0, 4])), draw(st.sampled_from(sorted(AGES_S))))
        for index in range(4)
        for kind in KINDS
        if draw(st.integers(0, 2)) == 0
    ]


def names_of(kind, index):
    return {
        "sound": (disk.snapshot_name(index), disk.manifest_name(index)),
        "bare": (disk.snapshot_name(index),),
        "manifest": (disk.manifest_name(index),),
        "temp": (disk.temp_name(index),),
        "held temp": (disk.temp_name(index),),
        "broken": (broken_name(index, index + 1), broken_manifest_name(index, index + 1)),
        "part": (reception.partial_name(index),),
        "held part": (reception.partial_name(index),),
        "note": (reception.note_name(index),),
    }[kind]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Sound snapshots to copy from."""
    path = tmp_path_factory.mktemp("models") / "snap"
    with SnapshotDir(path) as directory:
        for index in range(4):
            directory.save_from(b"sound", index)
    return path


def strew(path, models, drawn, stack):
    """Put it all there; what is there already stays."""
    for kind, index, size, age in drawn:
        for name in names_of(kind, index):
            if (path / name).exists():
                continue
            if kind == "sound":
                shutil.copy(models / name, path / name)
            else:
                (path / name).write_bytes(bytes(size))
            then_s = time.time() - AGES_S[age]
            os.utime(path / name, (then_s, then_s))
            if kind.startswith("held"):
                stack.enter_context(held(path / name))


def noted(index, size, age):
    return [("part", index, size, age), ("note", index, 4, age)]


@settings(max_examples=20, deadline=None)
@given(litter())
@example([*noted(0, 4, "young"), *noted(1, 4, "younger"), *noted(2, 4, "young")])
@example([*noted(0, 4, "young"), *noted(1, 0, "younger"), *noted(2, 0, "younger"), *noted(3, 4, "young")])
@example([*noted(0, 4, "young"), ("held part", 1, 4, "younger"), *noted(2, 4, "younger")])
def test_fixing_removes_exactly_what_was_told_to_be_left_over(models, drawn):
    fix_exactly(models, drawn)


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(litter())
def test_fixing_removes_exactly_that_of_much_more(models, drawn):
    fix_exactly(models, drawn)


def fix_exactly(models, drawn):
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as stack:
        path = Path(scratch) / "snap"
        path.mkdir(mode=0o700)
        (path / "stranger").write_bytes(b"not ours")
        strew(path, models, drawn, stack)
        before = fingerprint(path)
        told = [left for left in looked(path).leftovers if left.why]
        assert fingerprint(path) == before
        treatment = treat(path)
        assert treatment.refused is None
        expected = {left.name for left in told} | {left.note for left in told if left.note}
        assert set(treatment.removed) == expected
        after = fingerprint(path)
        del before["."], after["."]
        assert after == {name: found for name, found in before.items() if name not in expected}
        assert not [name for name in expected if name.endswith(".db") or ".broken-" in name]
        assert [left for left in looked(path).leftovers if left.why] == []


def kept_files(path, ages_s):
    """What was kept of transfers of these indexes, that long ago; negative: dated ahead by a wrong clock."""
    path.mkdir(mode=0o700)
    for index, age_s in ages_s.items():
        for name in (reception.partial_name(index), reception.note_name(index)):
            (path / name).write_bytes(b"kept")
            os.utime(path / name, (time.time() - age_s,) * 2)
    return path


def stale(path, lowest=0, coming=None):
    fd = os.open(path, os.O_RDONLY)
    try:
        return set(reception.stale_partials(fd, os.listdir(path), lowest, time.time(), coming))
    finally:
        os.close(fd)


@pytest.mark.parametrize("age_s", [DAY_S + 60, -DAY_S - 60], ids=["old", "ahead"])
def test_kept_chunks_of_another_day_go_and_do_not_crowd_out_those_of_today(tmp_path, age_s):
    path = kept_files(tmp_path / "snap", {1: 60, 2: age_s, 3: 30, 4: age_s})
    assert stale(path) == {2, 4}
    assert len(treat(path).removed) == 4


def test_of_the_rest_the_youngest_stay_and_what_comes_is_never_too_low(tmp_path):
    path = kept_files(tmp_path / "snap", {1: 60, 2: 30, 3: 90, 4: 120, 5: -60})
    assert stale(path) == {1, 3, 4}
    assert stale(path, lowest=5) == {1, 2, 3, 4}
    assert stale(path, lowest=5, coming=4) == {1, 2, 3}
    (path / reception.note_name(5)).unlink()
    assert stale(path) == {3, 4, 5}
    (path / reception.partial_name(2)).write_bytes(b"")
    assert stale(path) == {2, 4, 5}
