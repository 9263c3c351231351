"""Prometheus' text format 0.0.4, read as strictly as `promtool check metrics` does: the tests' judge."""

from __future__ import annotations

import re
from itertools import pairwise

_NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
_LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\[\\n"])*)"(,|$)')
_HELP = re.compile(rf"# HELP ({_NAME}) ((?:[^\\]|\\[\\n])+)")
_TYPE = re.compile(rf"# TYPE ({_NAME}) (counter|gauge|histogram)")
_SAMPLE = re.compile(rf"({_NAME})(?:\{{(.*)\}})? ([0-9.e+-]+|\+Inf)")

_UNESCAPED = {r"\\": "\\", r"\n": "\n", r"\"": '"'}


def parse(page):
    """The samples of a page, as {(name, labels): value}; AssertionError for what is not as it should be."""
    text = page.decode("utf-8")
    assert text.endswith("\n")
    samples, families = {}, {}
    family = None
    lines = text.splitlines()
    place = 0
    while place < len(lines):
        found = _HELP.fullmatch(lines[place])
        if found:
            family = found[1]
            typed = _TYPE.fullmatch(lines[place + 1])
            assert typed, lines[place + 1]
            assert typed[1] == family
            assert family not in families, f"{family} comes twice"
            assert found[2].endswith("."), "a help is a sentence"
            families[family] = typed[2]
            _check_name(family, typed[2])
            place += 2
            continue
        found = _SAMPLE.fullmatch(lines[place])
        assert found, lines[place]
        name, labels = found[1], _labels(found[2] or "")
        assert _family_of(name, families.get(family)) == family, f"{name} stands below {family}"
        assert (name, labels) not in samples, f"{name}{dict(labels)} comes twice"
        samples[name, labels] = float(found[3])
        place += 1
    for name, kind in families.items():
        if kind == "histogram":
            _check_histogram(name, samples)
    return samples


def _family_of(name, kind):
    return re.sub("_(bucket|sum|count)$", "", name) if kind == "histogram" else name


def _check_name(name, kind):
    assert name.startswith("snapstore_")
    assert name.endswith("_total") == (kind == "counter"), f"{name} is a {kind}"
    assert kind != "histogram" or name.endswith(("_seconds", "_bytes")), f"{name} has no unit"


def _labels(text):
    labels, position = [], 0
    while position < len(text):
        found = _LABEL.match(text, position)
        assert found, text[position:]
        labels.append((found[1], re.sub(r"\\.", lambda escape: _UNESCAPED[escape[0]], found[2])))
        position = found.end()
    assert len(dict(labels)) == len(labels), f"a label twice: {text}"
    return frozenset(labels)


def _check_histogram(name, samples):
    series = {}
    for (sample, labels), value in samples.items():
        if sample == f"{name}_bucket":
            told = dict(labels)
            bound = float(told.pop("le"))
            series.setdefault(frozenset(told.items()), []).append((bound, value))
    counted = {labels for sample, labels in samples if sample == f"{name}_count"}
    assert set(series) == counted == {labels for sample, labels in samples if sample == f"{name}_sum"}
    for labels, buckets in series.items():
        assert all(low < high and below <= at for (low, below), (high, at) in pairwise(buckets))
        assert buckets[-1] == (float("inf"), samples[f"{name}_count", labels])
