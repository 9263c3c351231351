"""What an archive gives up: old snapshots, and parts of pushes that nobody will finish.

Decides by names, sizes and inventories, and removes; reads no parts. An inventory goes first: from then
on the snapshot is none, and parts that stay behind when this is killed are leftovers for the next time.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from snapstore.archive.layout import folder_index, folder_name, inventory_index, inventory_name

if TYPE_CHECKING:
    from snapstore.archive.bucket import Bucket, Found
    from snapstore.archive.layout import Inventory

#: Parts without an inventory belong to a push that is under way, or that may be tried again; after a day
#: without a new one they do not. By the server's clock against ours: S3 refuses who is 15 minutes off.
LEFTOVER_AGE_MIN_S = 24 * 3600


async def purge(
    bucket: Bucket, sound: Sequence[Inventory], keep: int, now_s: float | None = None
) -> list[int]:
    """Remove what is older than the `keep` newest of `sound`; the indexes that are gone, ascending.

    `sound` are the inventories that can be read. Only those whose parts are all there count as kept.
    `now_s` is in seconds of the epoch, None for now.
    """
    before_s = (time.time() if now_s is None else now_s) - LEFTOVER_AGE_MIN_S
    kept: list[int] = []
    for inventory in sorted(sound, key=lambda found: found.index, reverse=True):
        if len(kept) < keep and await _is_whole(bucket, inventory, before_s):
            kept.append(inventory.index)
    names, folders = await bucket.look_around()
    stored = {index for name in names if (index := inventory_index(name)) is not None}
    gone = sorted(index for index in stored if len(kept) == keep and index < kept[-1])
    for index in gone:
        await bucket.delete([inventory_name(index)])
        await _remove(bucket, await bucket.list(folder_name(index)))
    unlisted = {index for name in folders if (index := folder_index(name)) is not None} - stored
    for index in sorted(unlisted):
        await _remove_unfinished(bucket, index, before_s)
    return gone


async def _is_whole(bucket: Bucket, inventory: Inventory, before_s: float) -> bool:
    """Whether all parts are there; what others have left beside them is removed."""
    found = await bucket.list(folder_name(inventory.index))
    ours = {part.name for part in inventory.parts}
    others = [part for part in found if part.name not in ours]
    if _is_old(others, before_s):
        await _remove(bucket, others)
    return not inventory.missing({part.name: part.size for part in found})


async def _remove_unfinished(bucket: Bucket, index: int, before_s: float) -> None:
    parts = await bucket.list(folder_name(index))
    if not _is_old(parts, before_s):
        return
    names, _ = await bucket.look_around()
    if inventory_name(index) not in names:  # A push that had only that to send may be done by now.
        await _remove(bucket, parts)


def _is_old(parts: Sequence[Found], before_s: float) -> bool:
    return all(part.changed.timestamp() < before_s for part in parts)


async def _remove(bucket: Bucket, parts: Sequence[Found]) -> None:
    await bucket.delete([part.name for part in parts])
