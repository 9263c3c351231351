"""A push: a snapshot's bytes, verified as they are read, into the parts of an archive.

Sends what is missing there, a few parts at a time, and reports when all parts are listed. Which
snapshot, and when the inventory follows, is archive.py's.

A part is read as fast as the node's throttle lets it go, and then sent whole: obstore takes no piece of
one. So the pace is kept over some parts, and the line sees them in bursts.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING

from snapstore import _fastpipe
from snapstore._fastpipe import Progress
from snapstore.archive.errand import in_order
from snapstore.archive.layout import Inventory, Part, folder_name
from snapstore.errors import SnapshotCorrupt, SnapshotTruncated, TransportError

if TYPE_CHECKING:
    from snapstore._fastpipe import Image, Throttle
    from snapstore.archive.bucket import Bucket

#: One request waits for its answer while others fill the line; more win nothing within a region.
PARTS_AT_ONCE = 4

#: In bytes: with larger parts fewer are under way, one at least. A node has other uses for its memory.
MEMORY_MAX = 256 * 1024 * 1024


async def upload(
    bucket: Bucket,
    inventory: Inventory,
    image: Image,
    progress: Progress | None = None,
    throttle: Throttle | None = None,
) -> int:
    """Send the parts that the archive lacks; how many bytes. All of the image is read and compared.

    What is sent keeps to `throttle`, and is not urgent. The archive is behind any follower in need.

    Raises SnapshotCorrupt, which names the first bad chunk, and SnapshotTruncated; nothing of that part
    was sent then. What `bucket` raises leaves the parts that arrived: the next push goes on with them.
    """
    missing = set(inventory.missing(await sizes(bucket, inventory)))
    # Of its own, since an error ends it, which is not what the caller's would be cancelled for.
    reading = Progress(progress)

    async def send(part: Part) -> None:
        pace = throttle if part in missing else None
        # On another thread: one that waits for its turn must not keep the others' answers waiting.
        data, digest = await asyncio.to_thread(_read, image, inventory, part, reading, pace)
        if part in missing:
            await bucket.put(part.name, data, {"crc32c": f"{digest:08x}"})

    at_once = max(1, min(PARTS_AT_ONCE, MEMORY_MAX // inventory.part_size))
    try:
        async with aclosing(in_order(map(send, inventory.parts), at_once)) as sent:
            async for _ in sent:
                pass
    except BaseException:
        reading.cancel()  # Whoever still reads, or waits for its turn, ends at once.
        raise
    # Also where nothing was missing: a purge may have taken old parts while all of them were compared.
    if lost := inventory.missing(await sizes(bucket, inventory)):
        raise TransportError(f"{bucket.place} had {lost[0].name} and does not list it: push again")
    return sum(part.size for part in missing)


async def sizes(bucket: Bucket, inventory: Inventory) -> dict[str, int]:
    """Return the names and sizes, in bytes, of what the archive has for this index."""
    return {found.name: found.size for found in await bucket.list(folder_name(inventory.index))}


def _read(
    image: Image, inventory: Inventory, part: Part, progress: Progress, throttle: Throttle | None
) -> tuple[bytearray, int]:
    """Read one part and compare it with the manifest; its bytes and their digest."""
    manifest, data = inventory.manifest, bytearray(part.size)
    view, done = memoryview(data), 0
    first = part.offset // manifest.chunk_size
    while done < part.size:
        count = image.readinto(view[done:], part.offset + done)
        if count == 0:
            raise SnapshotTruncated(f"the snapshot ended after {part.offset + done} bytes", first)
        done += count
    expected = manifest.chunk_digests[first : first - (-part.size // manifest.chunk_size)]
    try:
        copied = _fastpipe.digest(
            data,
            size=part.size,
            chunk_size=manifest.chunk_size,
            expected=expected,
            progress=progress,
            throttle=throttle,
            urgent=False,
        )
    except SnapshotCorrupt as error:
        chunk = first + (error.chunk or 0)
        raise SnapshotCorrupt(
            f"the digest of chunk {chunk} is wrong; nothing of it was sent", chunk
        ) from error
    return data, copied.digest
