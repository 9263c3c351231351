"""All that is known of one stored snapshot, for whoever wonders what it is. Changes nothing.

Told by its manifest, by the file's status, and by the first bytes; with `read`, by all of them.
"""

from __future__ import annotations

import json
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snapstore import disk
from snapstore.doctor.image_kind import describe_image
from snapstore.errors import SnapshotCorrupt, SnapshotNotFound
from snapstore.stored import SavedSnapshot, open_stored

if TYPE_CHECKING:
    from snapstore._fastpipe import Progress

#: So many letters of an engine's data show what it is.
_DATA_SHOWN_MAX = 60


@dataclass(frozen=True, slots=True)
class Explanation:
    """A snapshot, explained. `image` is what `describe_image` returns; times in seconds of the epoch.

    `read_back`: whether every byte was read from the disk now and was right; None where none was read.
    `problem` is what is wrong with it, None where nothing is known to be.
    """

    saved: SavedSnapshot
    image: dict[str, Any]
    saved_at_s: float
    mode: int
    user: int
    read_back: bool | None
    problem: str | None

    def to_json(self) -> dict[str, Any]:
        """Return everything for machines; sizes in bytes."""
        manifest, meta = self.saved.manifest, self.saved.meta
        return {
            **self.saved.to_json(),
            "path": str(self.saved.path),
            "conf_state": meta.conf_state.to_json(),
            "data_size": len(meta.data),
            "data_kind": kind_of_data(meta.data),
            "chunk_size": manifest.chunk_size if manifest else None,
            "chunks": len(manifest.chunk_digests) if manifest else None,
            "saved_at_s": self.saved_at_s,
            "mode": f"{self.mode:04o}",
            "user": self.user,
            "image": self.image,
            "read_back": self.read_back,
            "problem": self.problem,
        }


def explain(
    path: str | os.PathLike[str], index: int, *, read: bool = False, progress: Progress | None = None
) -> Explanation:
    """Explain the snapshot of `index` in the existing directory at `path`; it is leased meanwhile.

    Nothing is swept or set aside. With `read` every byte is read back, and `progress` counts them. Raises
    SnapshotNotFound, and OSError where something cannot be read.
    """
    place = Path(path)
    directory = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        name = disk.snapshot_name(index)
        with open_stored(directory, place / name, index, from_disk=read) as stored:
            saved, read_back, problem = stored.saved, None, stored.saved.problem
            status = disk.regular_status(directory, name)
            if status is None:  # The lease keeps purges off; a node may still find it broken meanwhile.
                raise SnapshotNotFound(f"{saved.path} was set aside just now")
            if read:
                try:
                    stored.verify(progress)
                    read_back = True
                except SnapshotCorrupt as error:
                    read_back, problem = False, problem or str(error).removeprefix(f"{saved.path}: ")
            return Explanation(
                saved,
                describe_image(stored.image()),
                status.st_mtime,
                stat.S_IMODE(status.st_mode),
                status.st_uid,
                read_back,
                problem,
            )
    finally:
        os.close(directory)


def kind_of_data(data: bytes) -> str | None:
    """Return "json", "text" or "binary"; None where there is none."""
    if not data:
        return None
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        return "binary"
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return "text" if all(letter.isprintable() or letter in "\t\r\n" for letter in text) else "binary"
    return "json"


def data_shown(data: bytes) -> str:
    """Return the beginning of an engine's data, safe on any terminal."""
    if kind_of_data(data) == "binary":
        shown = data[:_DATA_SHOWN_MAX].hex()
    else:
        text = data.decode("utf-8")[: _DATA_SHOWN_MAX + 1]
        shown = "".join(letter if letter.isprintable() else " " for letter in text)
    return f"{shown[:_DATA_SHOWN_MAX]}..." if len(shown) > _DATA_SHOWN_MAX else shown
