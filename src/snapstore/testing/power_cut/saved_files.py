"""Files that are named and filled by their index alone, so that whoever finds one can tell if it is right.

Contents and comparisons; knows no saver, and nothing of power.
"""

from __future__ import annotations

import functools
import random
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet
    from pathlib import Path

#: Around a page, around what fits one request to the disk, and several of those.
SIZES = (1, 4095, 4096, 50_000, 131_073, 300_000)

_NAME = re.compile(r"([0-9a-f]{16})\.db")


@functools.lru_cache(maxsize=1024)
def content_of(index: int) -> bytes:
    """Return the bytes of the file with this index; their length comes from it, too."""
    source = random.Random(index)
    return source.randbytes(source.choice(SIZES))


def stored_indexes(directory: Path) -> set[int]:
    """Return the indexes that have a file in `directory`, which need not be there itself."""
    if not directory.is_dir():
        return set()
    return {int(found[1], 16) for file in directory.iterdir() if (found := _NAME.fullmatch(file.name))}


def problems_of_files(directory: Path, begun: AbstractSet[int], reported: AbstractSet[int]) -> list[str]:
    """Return what is wrong: a file that nobody began, one that is not right to the byte, a lost one."""
    stored = stored_indexes(directory)
    problems = [f"{index} is there, and was not begun" for index in sorted(stored - begun)]
    problems += [f"{index} was reported, and is lost" for index in sorted(reported - stored)]
    for index in sorted(stored & begun):
        found, right = (directory / f"{index:016x}.db").read_bytes(), content_of(index)
        if found != right:
            problems.append(
                f"{index} has {len(found)} bytes of {len(right)}, and they are not the right ones"
            )
    return problems
