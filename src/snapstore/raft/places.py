"""Where a node's LMDB environments lie when snapshots replace them: each at a place of its own.

For nodes whose log and snapshots are what lasts, and whose KV is made from them at each start: what an
earlier process left here is removed, and an environment that is closed goes with its files. So nothing
of it needs an fsync (`sync=False`).
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import shutil
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snapstore.disk import make_directories
from snapstore.errors import ForkedProcess, SnapshotBusy, SnapstoreError, StoreClosed
from snapstore.kv.copy_in import copy_in
from snapstore.kv.lmdb import LmdbKV
from snapstore.kv.lmdb_file import check_data_file

if TYPE_CHECKING:
    from snapstore._fastpipe import Throttle
    from snapstore.stored import SavedSnapshot

logger = logging.getLogger("snapstore.raft")

_PLACE_NAME = re.compile(r"kv-[0-9]{8}\Z")


class LmdbPlaces:
    """Makes a node's LMDB environments below `path`, with `open_options` (those of `lmdb.open`).

    Call it with a saved snapshot for one with its content, with None for an empty one: the `open_kv` of
    `Exchange` and of `pysyncobj.TicketDumps`. `path` is made where it is missing, and belongs to one
    process: SnapshotBusy while another has it. A snapshot is copied as fast as `throttle` lets it, the
    node's own. From any thread; not after a fork.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, throttle: Throttle | None = None, **open_options: Any
    ) -> None:
        self._path = Path(path)
        self._throttle = throttle
        self._options = open_options
        self._lock = threading.Lock()
        self._count = 0
        self._pid = os.getpid()
        make_directories(self._path, 0o700)
        self._fd = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._take()
        except BaseException:
            os.close(self._fd)
            raise

    def _take(self) -> None:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SnapshotBusy(f"{self._path} belongs to another node that runs") from None
        for name in os.listdir(self._path):
            if _PLACE_NAME.match(name):
                shutil.rmtree(self._path / name)

    def __call__(self, saved: SavedSnapshot | None) -> LmdbKV:
        """Make an environment; what failed leaves nothing.

        Raises SnapshotCorrupt and SnapshotTruncated for what is no LMDB data file, SnapstoreError where
        the map has no room beyond the snapshot, what `lmdb.open` raises, OSError, ForkedProcess, and
        StoreClosed after `close`.
        """
        place = self._new_place()
        try:
            return self._filled(place, saved)
        except BaseException:
            _remove(place)
            raise

    def _new_place(self) -> Path:
        if os.getpid() != self._pid:
            raise ForkedProcess(f"{self._path} belongs to the process that forked this one")
        with self._lock:
            if self._fd < 0:
                raise StoreClosed(f"{self._path} was given up, and may be another node's")
            self._count += 1
            place = self._path / f"kv-{self._count:08d}"
            place.mkdir(mode=0o700)
        return place

    def _filled(self, place: Path, saved: SavedSnapshot | None) -> LmdbKV:
        if saved is None:
            return _PlacedKV(place, **self._options)
        size = _copy(saved.path, place / "data.mdb", self._throttle)
        options = dict(self._options)
        options.pop("lib_version", None)  # The file's own format decides which LMDB opens it.
        kv = _PlacedKV(place, **options)
        map_size = kv.env.info()["map_size"]
        if map_size <= size:
            kv.close()
            raise SnapstoreError(
                f"snapshot {saved.index} fills {size} bytes, so that nothing could be written to it with a"
                f" map_size of {self._options.get('map_size', map_size)}: give LmdbPlaces a larger one"
            )
        return kv

    def close(self) -> None:
        """Let another process have the directory. Close the environments first. May come twice."""
        with self._lock:
            fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class _PlacedKV(LmdbKV):
    """An environment whose files go when it is closed."""

    def __init__(self, place: Path, **open_options: Any) -> None:
        super().__init__(place, **open_options)
        self._place = place

    def close(self) -> None:
        super().close()
        if os.getpid() == self._pid:  # A forked child's copy is closed, too, by whoever clears up there.
            _remove(self._place)


def _copy(source: Path, target: Path, throttle: Throttle | None) -> int:
    """Copy an LMDB data file and check it; how many bytes its pages take."""
    fd = os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        copy_in(source, fd, throttle=throttle)
        return check_data_file(fd, str(target)).size
    finally:
        os.close(fd)


def _remove(place: Path) -> None:
    try:
        shutil.rmtree(place)
    except FileNotFoundError:
        pass  # Closed twice.
    except OSError:
        logger.exception("removing %s failed; the next start of the node tries again", place)
