"""An LMDB store with a content that can be verified key by key, in the store or in an image of it."""

from __future__ import annotations

import os
import random
import struct
from pathlib import Path

import lmdb

#: Four pages, but for their header: some leaf pages, and many that the values lie in by themselves.
VALUE_SIZE = 4 * 4096 - 32

#: Values put by one transaction.
_STEP = 256

_KEY = struct.Struct(">Q")


class LmdbContent:
    """A new environment at `path` of about `size` bytes."""

    def __init__(self, path: Path, size: int) -> None:
        """Fill it, and sync it."""
        self.path = path
        #: With room for what a test may write besides.
        self.map_size = 2 * size + 64 * 1024 * 1024
        self._noise = random.Random(2015).randbytes(VALUE_SIZE)
        self._count = max(1, size // (VALUE_SIZE + 32))
        with lmdb.open(os.fspath(path), map_size=self.map_size, sync=False) as env:
            for first in range(0, self._count, _STEP):
                with env.begin(write=True) as txn:
                    for number in range(first, min(first + _STEP, self._count)):
                        txn.put(_KEY.pack(number), self._value(number), append=True)
            env.sync(True)

    def _value(self, number: int) -> bytes:
        return _KEY.pack(number) + self._noise[_KEY.size :]

    def check(self, image: str | os.PathLike[str]) -> None:
        """Raise ValueError where the image of the store does not have every key and value, and no more."""
        with (
            lmdb.open(os.fspath(image), subdir=False, readonly=True, lock=False) as env,
            env.begin() as txn,
        ):
            count = 0
            for key, value in txn.cursor():
                if key != _KEY.pack(count) or value != self._value(count):
                    raise ValueError(f"{os.fspath(image)}: entry {count} is not what was put")
                count += 1
        if count != self._count:
            raise ValueError(f"{os.fspath(image)} has {count} entries of {self._count}")
