"""Snapshots in an object store: pushed from a directory, pulled into one, listed, given up.

Decides what is in the archive, when, and what is refused; the names are layout.py's, the bytes move in
upload.py and download.py. Blocking calls for any thread, each with connections of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import aclosing, contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from snapstore.archive import retention
from snapstore.archive.bucket import Bucket, check_url, find_endpoint, open_store
from snapstore.archive.download import READS_AT_ONCE, download
from snapstore.archive.errand import do, in_order
from snapstore.archive.layout import (
    INVENTORY_SIZE_MAX,
    PART_SIZE_DEFAULT,
    READ_SIZE_MAX,
    Inventory,
    inventory_index,
    inventory_name,
    part_size_for,
)
from snapstore.archive.upload import sizes, upload
from snapstore.errors import (
    SnapshotBusy,
    SnapshotCorrupt,
    SnapshotExists,
    SnapshotNotFound,
    TransportError,
)
from snapstore.manifest import digest_text
from snapstore.meta import check_index
from snapstore.transfer import Direction
from snapstore.transfers import TransferRegistry

if TYPE_CHECKING:
    from collections.abc import Sequence

    from snapstore._fastpipe import Progress, Throttle
    from snapstore.directory import SnapshotDir
    from snapstore.stored import SavedSnapshot, StoredSnapshot


@dataclass(frozen=True, slots=True)
class ArchivedSnapshot:
    """A snapshot in an archive. `inventory` is None, and `problem` says why, where it cannot be read."""

    index: int
    inventory: Inventory | None
    problem: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return what is told of it to machines, as `SavedSnapshot.to_json` does; `size` in bytes."""
        manifest = self.inventory.manifest if self.inventory else None
        return {
            "index": self.index,
            "term": manifest.meta.term if manifest else 0,
            "size": manifest.size if manifest else 0,
            "digest": digest_text(manifest.digest) if manifest else None,
            "problem": self.problem,
        }


@dataclass(frozen=True, slots=True)
class PushedSnapshot:
    """What came of a push. `size` and `sent` in bytes: `sent` went over the line this time.

    `existed` tells that the archive had all of it before.
    """

    index: int
    size: int
    digest: str
    sent: int
    existed: bool


class Archive:
    """An archive of snapshots. Safe to use from any thread; not across a fork, as obstore is not.

    `url` is s3://BUCKET/PREFIX, or file:///PATH for a mounted one (nothing is synced there), or a store
    that obstore made, of whatever kind. `endpoint` is the URL of a server that speaks S3 and is not
    AWS's. Credentials come from the environment, as for AWS's own tools. `part_size` in bytes: what a
    break can cost, and PARTS_AT_ONCE times that is a push's memory; it grows where a snapshot needs it.
    `throttle` says how fast a push may go beside what else the node sends, which comes first; a pull
    keeps to its directory's. `registry`, the node's, shows its pushes and pulls; None: one of its own.

    Raises ValueError for what is no archive's URL, or no endpoint's. Every call raises PeerRejected with
    the store's reason and what to do, PeerUnreachable where nobody answers, and TransportError without
    credentials.
    """

    def __init__(
        self,
        url: str | Any,
        *,
        endpoint: str | None = None,
        part_size: int = PART_SIZE_DEFAULT,
        throttle: Throttle | None = None,
        registry: TransferRegistry | None = None,
    ) -> None:
        self._url = check_url(url) if isinstance(url, str) else url
        self.registry = registry or TransferRegistry()
        self._endpoint = find_endpoint(endpoint)
        self._part_size = part_size
        self._throttle = throttle

    def push(self, stored: StoredSnapshot, *, progress: Progress | None = None) -> PushedSnapshot:
        """Put `stored` into the archive; it is there when this returned, and before that it is not.

        All of it is read and compared with its manifest on the way: SnapshotCorrupt names the first bad
        chunk. `progress` counts what was read; some parts of it may be on their way still. After a
        break, push again: parts that arrived are not sent twice. An archive that has the snapshot is
        checked for missing parts, and mended. Raises SnapshotExists where it has another one of that
        index, which is kept.
        """
        manifest = stored.saved.manifest
        if manifest is None:
            raise SnapshotCorrupt(f"{stored.path}: {stored.saved.problem}")
        ours = Inventory(manifest, part_size_for(manifest.size, manifest.chunk_size, self._part_size))
        watched = self.registry.watch(
            Direction.OUT, self._place, ours.index, total=manifest.size, progress=progress
        )
        with watched as transfer, _naming(str(stored.path)):
            bucket = self._open(ours.part_size, make=True)
            pushed = do(self._push(bucket, ours, stored, transfer.progress))
            transfer.existed = pushed.existed
            return pushed

    async def _push(
        self, bucket: Bucket, ours: Inventory, stored: StoredSnapshot, progress: Progress | None
    ) -> PushedSnapshot:
        theirs = await _find_same(bucket, ours)
        wanted = theirs or ours
        if theirs is not None and not theirs.missing(await sizes(bucket, theirs)):
            return _pushed(ours, 0, existed=True)
        sent = await upload(bucket, wanted, stored.image(), progress, self._throttle)
        # Also where there was one that lacked parts: a purge may have taken it meanwhile.
        if not await bucket.create(inventory_name(ours.index), wanted.to_bytes()):
            await _give_way(bucket, wanted)
        return _pushed(ours, sent, existed=False)

    def pull(
        self, index: int | None, directory: SnapshotDir, *, progress: Progress | None = None
    ) -> SavedSnapshot:
        """Save the snapshot of `index`, or the newest, in `directory`, compared chunk by chunk.

        Raises SnapshotNotFound, SnapshotCorrupt and SnapshotTruncated for what is not as its manifest
        says, and what `SnapshotDir.save_from` raises; nothing is stored then. After a break, pull
        again: it goes on behind what was verified and kept.
        """
        with self.registry.watch(Direction.IN, self._place, index or 0, progress=progress) as transfer:
            bucket = self._open(READ_SIZE_MAX)
            inventory = do(_find(bucket, index))
            transfer.index, transfer.total = inventory.index, inventory.manifest.size
            return download(bucket, inventory, directory, transfer)

    def find(self, index: int | None) -> Inventory:
        """Return what the archive has under `index`, or the newest; raises as `pull` does."""
        return do(_find(self._open(READ_SIZE_MAX), index))

    def list(self) -> Sequence[ArchivedSnapshot]:
        """Return what is in the archive, oldest index first; those with a broken inventory, too."""
        return do(_list(self._open(READ_SIZE_MAX)))

    def purge(self, *, keep: int) -> Sequence[int]:
        """Remove what is older than the `keep` newest that have all their parts; the indexes that are gone.

        Also parts that a push left which nobody went on with for a day. `keep` is 1 or more.
        """
        if isinstance(keep, bool) or not isinstance(keep, int) or keep < 1:
            raise ValueError(f"keep must be 1 or more, not {keep!r}")
        bucket = self._open(READ_SIZE_MAX)
        sound = [found.inventory for found in do(_list(bucket)) if found.inventory is not None]
        return do(retention.purge(bucket, sound, keep))

    @property
    def _place(self) -> str:
        return self._url if isinstance(self._url, str) else repr(self._url)

    def _open(self, request_size: int, *, make: bool = False) -> Bucket:
        store = self._url
        if isinstance(store, str):
            store = open_store(store, self._endpoint, request_size, make=make)
        return Bucket(store, self._place)

    def __repr__(self) -> str:
        return f"Archive({self._url!r})"


def _pushed(inventory: Inventory, sent: int, *, existed: bool) -> PushedSnapshot:
    manifest = inventory.manifest
    return PushedSnapshot(inventory.index, manifest.size, digest_text(manifest.digest), sent, existed)


async def _read(bucket: Bucket, index: int) -> Inventory | None:
    """None where there is none; SnapshotCorrupt where it is no inventory of this index."""
    try:
        data = await bucket.read(inventory_name(index), INVENTORY_SIZE_MAX)
        return None if data is None else Inventory.from_bytes(data, index)
    except SnapshotCorrupt as error:
        raise SnapshotCorrupt(f"{bucket.place}, index {index}: {error}") from error


async def _find_same(bucket: Bucket, ours: Inventory) -> Inventory | None:
    """Return the archive's own inventory of our snapshot; SnapshotExists where it has another one."""
    theirs = await _read(bucket, ours.index)
    if theirs is not None and not theirs.is_same(ours):
        manifest = theirs.manifest
        raise SnapshotExists(
            f"{bucket.place} has another snapshot of index {ours.index}: term {manifest.meta.term},"
            f" {manifest.size} bytes, {digest_text(manifest.digest)}; it was kept"
        )
    return theirs


async def _give_way(bucket: Bucket, ours: Inventory) -> None:
    """Somebody's inventory came first: the same snapshot is as good as ours, another one stays.

    Our parts go only where it is certain that no inventory has them: this one may be our own, whose
    answer was lost.
    """
    try:
        theirs = await _find_same(bucket, ours)
    except SnapshotExists:
        await _tidy(bucket, ours)
        raise
    if theirs is None:
        raise SnapshotBusy(f"{bucket.place}: index {ours.index} was pushed by somebody else, and removed")
    if theirs != ours:
        await _tidy(bucket, ours)


async def _tidy(bucket: Bucket, ours: Inventory) -> None:
    with suppress(TransportError, OSError):  # What stays is swept by a purge.
        await bucket.delete([part.name for part in ours.parts])


async def _indexes(bucket: Bucket) -> list[int]:
    names, _ = await bucket.look_around()
    return sorted(index for name in names if (index := inventory_index(name)) is not None)


async def _find(bucket: Bucket, index: int | None) -> Inventory:
    wanted = max(await _indexes(bucket), default=None) if index is None else check_index(index)
    if wanted is None:
        raise SnapshotNotFound(f"{bucket.place} has no snapshot")
    try:
        found = await _read(bucket, wanted)
    except SnapshotCorrupt as error:
        if index is not None:
            raise
        raise SnapshotCorrupt(f"{error}; it is the newest, and an older one has to be named") from error
    if found is None:
        raise SnapshotNotFound(f"{bucket.place} has no snapshot of index {wanted}")
    return found


async def _list(bucket: Bucket) -> list[ArchivedSnapshot]:
    async def look(index: int) -> ArchivedSnapshot | None:
        try:
            inventory = await _read(bucket, index)
        except SnapshotCorrupt as error:
            return ArchivedSnapshot(index, None, str(error))
        return None if inventory is None else ArchivedSnapshot(index, inventory)

    looks = in_order(map(look, await _indexes(bucket)), READS_AT_ONCE)
    async with aclosing(looks) as found:
        return [archived async for archived in found if archived is not None]


@contextmanager
def _naming(path: str) -> Iterator[None]:
    """Let an error about bytes say whose they are; one that names the archive says so itself."""
    try:
        yield
    except SnapshotCorrupt as error:
        if error.chunk is None:
            raise
        raise type(error)(f"{path}: {error}", error.chunk) from error
