"""A binary reader drawn as a string: each letter says how one read goes (borg tests its chunkers so).

    LetterReader(content, "rrrrErr")      # the fifth read fails, and the next would go on behind it

Knows nothing of who reads it. The letters:

    r  all that was asked for             E  OSError(EIO): the disk behind it is bad
    s  half of that, one byte at least    i  InterruptedError
    1  one byte                           t  TimeoutError
    e  nothing: the end, or so it says    w  None: nothing yet, as a file that does not wait
                                          x  one byte more than was asked for, which nobody may give

Behind the last letter it goes on as with "r". A read that fails takes nothing of the content away.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from snapstore.protocols import Writer

#: How much of what was asked for each letter gives.
_GIVEN: dict[str, Callable[[int], int]] = {
    "r": lambda size: size,
    "s": lambda size: max(size // 2, 1),
    "1": lambda size: min(size, 1),
    "e": lambda size: 0,
    "x": lambda size: size + 1,
}

_RAISED: dict[str, Callable[[], OSError]] = {
    "E": lambda: OSError(errno.EIO, os.strerror(errno.EIO)),
    "i": lambda: InterruptedError(errno.EINTR, os.strerror(errno.EINTR)),
    "t": lambda: TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT)),
}

_NOTHING_YET = "w"

#: What `write_to` reads at a time, in bytes, where nothing else is said.
BLOCK_SIZE = 64 * 1024


class LetterReader:
    """A source for `save_from`, for `KV.restore`, and a KV's `Snapshot`. One thread at a time.

    `content` is what it gives, `letters` how; ValueError for a letter that is none. `size` is the
    length of the content in bytes, whatever the letters make of it.
    """

    def __init__(self, content: bytes, letters: str = "", *, block_size: int = BLOCK_SIZE) -> None:
        for letter in letters:
            if letter not in _GIVEN and letter not in _RAISED and letter != _NOTHING_YET:
                raise ValueError(f"no read goes like {letter!r} in {letters!r}")
        self.letters = letters
        self.size = len(content)
        #: How often it was read.
        self.reads = 0
        #: `close` was called.
        self.closed = False
        self._content = memoryview(content)
        self._block_size = block_size

    def read(self, size: int = -1, /) -> bytes | None:
        """Read as the next letter says; at most `size` bytes, all that is left where it is negative."""
        if self.closed:
            raise ValueError("read of a closed reader")
        letter = self.letters[self.reads] if self.reads < len(self.letters) else "r"
        self.reads += 1
        if letter in _RAISED:
            raise _RAISED[letter]()
        if letter == _NOTHING_YET:
            return None
        given = _GIVEN[letter](len(self._content) if size < 0 else size)
        data, self._content = bytes(self._content[:given]), self._content[given:]
        return data

    def write_to(self, writer: Writer, /) -> int:
        """Write what the letters give in blocks, to the first empty read; how many bytes."""
        count = 0
        while data := self.read(self._block_size):
            writer.write(data)
            count += len(data)
        return count

    def close(self) -> None:
        """Read no more. May come twice."""
        self.closed = True

    def __repr__(self) -> str:
        return f"<LetterReader {self.letters!r} after {self.reads} reads, {len(self._content)} bytes left>"
