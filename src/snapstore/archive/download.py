"""A pull: the parts of an archive, in order, into a pipe that a SnapshotDir saves from.

A few reads are under way at a time, and the C core takes the bytes from the pipe, compares them with
the manifest and writes them. So memory is the reads' and the pipe's, whatever the snapshot's size.
"""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING

from snapstore import _fastpipe
from snapstore.archive.errand import Errand, in_order
from snapstore.errors import SnapshotCorrupt

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from snapstore._fastpipe import PipeWriter
    from snapstore.archive.bucket import Bucket
    from snapstore.archive.layout import Inventory, Read
    from snapstore.directory import SnapshotDir
    from snapstore.stored import SavedSnapshot
    from snapstore.transfer import Transfer

#: As many as parts in a push, for the same reason; each has `layout.READ_SIZE_MAX` bytes at most.
READS_AT_ONCE = 4

#: The slots of the pipe, in bytes: the reads are the buffer, this only hands them over.
_SLOT_SIZE = 1024 * 1024
_SLOTS = 4


def download(
    bucket: Bucket, inventory: Inventory, directory: SnapshotDir, transfer: Transfer
) -> SavedSnapshot:
    """Save the snapshot, behind what an earlier attempt kept of it; each chunk is compared.

    Raises what `SnapshotDir.receive` and `Reception.save` raise, and what `bucket` does. None of it
    leaves anything that counts as a snapshot; what was verified is kept, where the line broke.
    """
    manifest = inventory.manifest
    with directory.receive(
        manifest.meta,
        size=manifest.size,
        chunk_size=manifest.chunk_size,
        data_size=len(manifest.meta.data),
    ) as reception:
        reception.check(manifest, transfer.progress)
        transfer.begin_attempt(reception.kept)
        reader, writer = _fastpipe.pipe(chunk_size=_SLOT_SIZE, chunks=_SLOTS)
        # The pipe's end first, on the way out: whoever waits for room in it is let go.
        with Errand(_fill(bucket, inventory, reception.kept, writer)), reader:
            try:
                return reception.save(reader, manifest.meta, expected=manifest, progress=transfer.progress)
            except SnapshotCorrupt as error:
                words = f"{bucket.place}, index {inventory.index}: {error}"
                raise type(error)(words, error.chunk) from error


async def _fill(bucket: Bucket, inventory: Inventory, start: int, writer: PipeWriter) -> None:
    """Write all bytes from `start` on into the pipe; what fails is raised by whoever reads it."""

    async def ask(read: Read) -> Buffer:
        return await bucket.read_range(read.part.name, read.start, read.size)

    try:
        async with aclosing(in_order(map(ask, inventory.reads(start)), READS_AT_ONCE)) as pieces:
            async for piece in pieces:
                writer.write(piece)
    except BaseException as error:
        writer.close(error)
        raise
    writer.close()
