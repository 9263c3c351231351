"""What an archive gives up: old snapshots, and parts of pushes that nobody will finish.

Decides by names and inventories, and removes; reads no parts. An inventory goes first: from then on the
snapshot is none, and parts that stay behind when this is killed are leftovers for the next time.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from snapstore.archive.layout import folder_index, folder_name, inventory_index, inventory_name

if TYPE_CHECKING:
    from snapstore.archive.bucket import Bucket

#: Parts without an inventory belong to a push that is under way, or that may be tried again; after a day
#: without a new one they do not. By the server's clock against ours, which differ by less.
LEFTOVER_AGE_MIN_S = 24 * 3600


async def purge(bucket: Bucket, sound: Sequence[int], keep: int, now_s: float | None = None) -> list[int]:
    """Remove what is older than the `keep` newest of `sound`; the indexes that are gone, ascending.

    `sound` are the indexes whose inventories can be read; what is broken never counts as kept. `now_s`
    is in seconds of the epoch, None for now.
    """
    names, folders = await bucket.look_around()
    stored = {index for name in names if (index := inventory_index(name)) is not None}
    kept = sorted(sound)[-keep:]
    gone = sorted(index for index in stored if len(kept) == keep and index < kept[0])
    for index in gone:
        await bucket.delete([inventory_name(index)])
        await _remove_parts(bucket, index)
    unlisted = {index for name in folders if (index := folder_index(name)) is not None} - stored
    for index in sorted(unlisted):
        await _remove_parts(bucket, index, before_s=(now_s or time.time()) - LEFTOVER_AGE_MIN_S)
    return gone


async def _remove_parts(bucket: Bucket, index: int, before_s: float | None = None) -> None:
    """Remove all parts of `index`; with `before_s` only where all were written before that."""
    parts = await bucket.list(folder_name(index))
    if before_s is None or all(part.changed.timestamp() < before_s for part in parts):
        await bucket.delete([part.name for part in parts])
