"""A disk with a cache, as operations on numbered files and directories: what a power cut may leave.

Values only: no system calls, no real files. Names and bytes are apart, as on a real disk, and each
becomes lasting by its own fsync: a file's of its bytes and its length, a directory's of its names.

Plan: the operations; `crash`, which decides for each one not synced whether it survived; `Contents`,
what the survivors make when applied in order. What survives is a policy's choice:

    strict   what was synced, and nothing else
    names    all names and only synced bytes: names overtake bytes, as where another file's fsync
             commits the journal (a raft log on the same ext4)
    bytes    all bytes and only synced names
    all      everything, as after a kill without a power cut
    random   of each directory's names a beginning, of the bytes any part, down to torn sectors
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

POLICIES = ("strict", "names", "bytes", "all")
RANDOM = "random"

#: The directory that is recorded; it lasts as it is.
ROOT = 0

#: What a disk writes as a whole, in bytes; a write of more may be torn between.
SECTOR_SIZE = 512


@dataclass(frozen=True)
class Write:
    """Bytes put into a file."""

    file: int
    offset: int
    data: bytes

    def __str__(self) -> str:
        return f"write {len(self.data)} bytes at {self.offset} of file {self.file}"


@dataclass(frozen=True)
class Resize:
    """A file cut, or grown by zeros, to `size` bytes."""

    file: int
    size: int

    def __str__(self) -> str:
        return f"resize file {self.file} to {self.size} bytes"


@dataclass(frozen=True)
class Names:
    """Names given and taken at once: directory, name, and the file or directory, or None."""

    changes: tuple[tuple[int, str, int | None], ...]

    def __str__(self) -> str:
        parts = (
            f"{name} in {at} {'goes' if node is None else f'is {node}'}" for at, name, node in self.changes
        )
        return f"name: {', '.join(parts)}"


@dataclass(frozen=True)
class Sync:
    """What `node` (None: everything) had when the first `begun` operations were done, lasts."""

    node: int | None
    begun: int

    def __str__(self) -> str:
        return f"sync {'everything' if self.node is None else self.node}"


@dataclass(frozen=True)
class Mark:
    """What the workload says at this place: a verb and an index."""

    verb: str
    index: int

    def __str__(self) -> str:
        return f"{self.verb} {self.index}"


Operation = Write | Resize | Names | Sync | Mark


@dataclass
class Contents:
    """A tree of directories as it is found: which names each has, and what the files hold."""

    #: What is known to be a directory; all else is a file.
    directories: frozenset[int]
    names: dict[int, dict[str, int]] = field(default_factory=dict)
    data: dict[int, bytearray] = field(default_factory=dict)

    def tree(self) -> dict[str, int]:
        """Relative paths of all that can be reached from the root, each directory before its own."""
        found: dict[str, int] = {}
        waiting = [("", ROOT)]
        while waiting:
            prefix, directory = waiting.pop()
            for name, node in sorted(self.names.get(directory, {}).items()):
                found[prefix + name] = node
                if node in self.directories:
                    waiting.append((f"{prefix}{name}/", node))
        return found

    def content(self, node: int) -> bytes:
        """The bytes of a file."""
        return bytes(self.data.get(node, b""))

    def put(self, file: int, offset: int, data: bytes, keeps: Callable[[], bool] | None = None) -> None:
        """Write; with `keeps`, sector by sector where it says so, while the length grows anyhow."""
        content = self.data.setdefault(file, bytearray())
        content.extend(bytes(max(offset + len(data) - len(content), 0)))
        begin = 0
        while begin < len(data):
            end = min(begin + SECTOR_SIZE - (offset + begin) % SECTOR_SIZE, len(data))
            if keeps is None:
                end = len(data)
            if keeps is None or keeps():
                content[offset + begin : offset + end] = data[begin:end]
            begin = end

    def resize(self, file: int, size: int) -> None:
        """Cut the file, or let it grow by zeros."""
        content = self.data.setdefault(file, bytearray())
        del content[size:]
        content.extend(bytes(size - len(content)))

    def change_names(self, operation: Names) -> None:
        """Give and take names."""
        for directory, name, node in operation.changes:
            names = self.names.setdefault(directory, {})
            if node is None:
                names.pop(name, None)
            else:
                names[name] = node


def crash(operations: Sequence[Operation], directories: frozenset[int], policy: str, seed: str) -> Contents:
    """What is found after a power cut behind the last of `operations`. Same seed, same state."""
    lasting = _synced(operations)
    chance = random.Random(seed)
    surviving_names = _surviving_names(operations, lasting, policy, chance)
    contents = Contents(directories)
    for number, operation in enumerate(operations):
        if isinstance(operation, Names):
            if number in surviving_names:
                contents.change_names(operation)
        elif isinstance(operation, (Write, Resize)):
            if number in lasting or policy in ("bytes", "all"):
                _apply(contents, operation)
            elif policy == RANDOM:
                _apply_in_part(contents, operation, chance)
    return contents


def _synced(operations: Sequence[Operation]) -> set[int]:
    """The numbers of the operations that an fsync made lasting."""
    lasting = set()
    for sync in operations:
        if isinstance(sync, Sync):
            for number, operation in enumerate(operations[: sync.begun]):
                if sync.node is None or sync.node in _touched(operation):
                    lasting.add(number)
    return lasting


def _touched(operation: Operation) -> set[int]:
    if isinstance(operation, (Write, Resize)):
        return {operation.file}
    if isinstance(operation, Names):
        return {directory for directory, _, _ in operation.changes}
    return set()


def _surviving_names(
    operations: Sequence[Operation], lasting: set[int], policy: str, chance: random.Random
) -> set[int]:
    """Names change in order within a directory: every journaling file system keeps that."""
    changes = [number for number, operation in enumerate(operations) if isinstance(operation, Names)]
    if policy in ("names", "all"):
        return set(changes)
    pending = [number for number in changes if number not in lasting]
    if policy == RANDOM:
        ends: dict[int, int] = {}
        for directory in sorted({at for number in pending for at in _touched(operations[number])}):
            ends[directory] = chance.choice([*pending, len(operations)])
        lasting |= {
            number for number in pending if all(number < ends[at] for at in _touched(operations[number]))
        }
    return lasting & set(changes)


def _apply(contents: Contents, operation: Write | Resize) -> None:
    if isinstance(operation, Write):
        contents.put(operation.file, operation.offset, operation.data)
    else:
        contents.resize(operation.file, operation.size)


def _apply_in_part(contents: Contents, operation: Write | Resize, chance: random.Random) -> None:
    """Written, lost, nothing but the length, or some sectors only."""
    fate = chance.choice(["whole", "lost", "length", "torn"])
    if fate == "whole":
        _apply(contents, operation)
    elif fate != "lost" and isinstance(operation, Write):
        keeps = (lambda: False) if fate == "length" else (lambda: chance.random() < 0.5)
        contents.put(operation.file, operation.offset, operation.data, keeps)
