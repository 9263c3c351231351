"""Fuzz one target: `python -m fuzz TARGET [libFuzzer's options and corpus directories]`.

Needs atheris (the extra `fuzz`). With an extension that was built for it, the core's own branches guide
the fuzzer as well; `.ci/fuzz` does that.
"""

from __future__ import annotations

import importlib
import sys

import atheris

from fuzz.seeds import CORPUS, TARGETS


def main() -> None:
    """Run libFuzzer until it finds something or its time is over."""
    if len(sys.argv) < 2 or sys.argv[1] not in TARGETS:
        sys.exit(f"usage: python -m fuzz {{{','.join(TARGETS)}}} [options of libFuzzer]")
    target = sys.argv.pop(1)
    # The target's own branches too: they tell apart what a library in C says alike.
    with atheris.instrument_imports(include=["snapstore", f"fuzz.{target}"]):
        check = importlib.import_module(f"fuzz.{target}").check

    def run(data: bytes) -> None:
        check(data)

    # New inputs go into the first directory named, so the tree's seeds come last.
    atheris.Setup([sys.argv[0], *sys.argv[1:], str(CORPUS / target)], run)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
