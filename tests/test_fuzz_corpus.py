"""The fuzz targets' corpus as ordinary tests: what a fuzzer once found stays found."""

from __future__ import annotations

import importlib

import pytest

from fuzz.runs import EXPANDED_MAX, MARK, expand, pack
from fuzz.seeds import CORPUS, TARGETS

INPUTS = sorted(path.relative_to(CORPUS) for path in CORPUS.glob("*/*"))


@pytest.mark.parametrize("place", INPUTS, ids=str)
def test_an_input_holds_and_is_taken_or_not_as_its_name_says(place):
    taken = importlib.import_module(f"fuzz.{place.parent}").check((CORPUS / place).read_bytes())
    verdict = place.name.split("-")[0]
    assert verdict not in ("good", "bad") or taken == (verdict == "good")


def test_every_target_has_inputs_of_both_kinds():
    kinds = {(place.parts[0], place.name.split("-")[0]) for place in INPUTS}
    assert kinds >= {(target, kind) for target in TARGETS for kind in ("good", "bad")}


@pytest.mark.parametrize(
    "data", [b"", b"short", b"a" * 70000, MARK, MARK * 3, b"\xff" * 9 + MARK + b"\xfe" * 9]
)
def test_runs_stand_for_what_was_packed(data):
    assert expand(pack(data)) == data[:EXPANDED_MAX]


def test_no_input_grows_beyond_the_limit():
    assert len(expand((MARK + b"a\xff\xff") * 100)) == EXPANDED_MAX
