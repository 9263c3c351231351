"""How a snapshot's bytes get into the file that is to become the store. Knows no store."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from snapstore import _fastpipe

if TYPE_CHECKING:
    from snapstore._fastpipe import Throttle
    from snapstore.protocols import Reader


def copy_in(source: str | os.PathLike[str] | Reader, fd: int, *, throttle: Throttle | None = None) -> int:
    """Write all of `source`, a file's name or an object with `read(size)`, to `fd`; how many bytes.

    From the start of the file, without the GIL where a name is given, as fast as `throttle` lets it; not
    durable without an fsync.
    """
    if not isinstance(source, (str, os.PathLike)):
        return _fastpipe.save(source, fd, throttle=throttle).size
    with open(source, "rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        return _fastpipe.save(file.fileno(), fd, size=size, throttle=throttle).size
