"""Which snapshot a node starts from: the one behind its ticket, or what can stand in for it.

Decides once, before PySyncObj runs, and makes the dump file agree. Afterwards PySyncObj loads that
dump and applies its journal on top, which it keeps only where it begins at the same entry.

    the dump file has        and its snapshot is         then
    nothing                                              begin empty
    our own last ticket      here, and verifies          that one
                             gone or broken              a peer's, not older than that; none:
                                                         SnapshotNotFound, for a person to decide
    a leader's, for later    here, and verifies          that one
    a leader's, or rubbish   anything else: on its way,  our own last ticket's, as above; there never
                             lost, or long behind us     was one: begin empty, as the log does
"""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING

from snapstore.errors import SnapshotCorrupt, SnapshotExists, SnapshotNotFound, SnapstoreError
from snapstore.raft.pysyncobj.ticket import Ticket, TicketMalformed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from snapstore.directory import SnapshotDir
    from snapstore.raft.pysyncobj.dump_file import DumpFile
    from snapstore.stored import StoredSnapshot
    from snapstore.transport.http_client import SnapshotClient

logger = logging.getLogger("snapstore.raft")


def open_start(
    dump_file: DumpFile, directory: SnapshotDir, client: SnapshotClient, url: str, peers: Sequence[str]
) -> StoredSnapshot | None:
    """Open the snapshot to start from, verified; None to begin with nothing. The dump file agrees then.

    Raises SnapshotNotFound where what the journal goes on from is lost, and nobody has another one.
    """
    if not dump_file.exists:
        dump_file.remove()  # The ticket of our own is of another life, then.
        return None
    own = dump_file.read_own()
    stored = None
    try:
        ticket = dump_file.read()
        if own is None or ticket.index > own.index:
            stored = _open_sound(directory, ticket.index, ticket.term)
    except TicketMalformed as error:
        logger.warning("%s: %s", dump_file.path, error)
    if stored is None and own is not None:
        stored = _open_sound(directory, own.index, own.term) or _open_from_peers(
            own.index, directory, client, peers
        )
    if stored is None:
        dump_file.remove()
        return None
    try:
        dump_file.replace(Ticket.for_saved(stored.saved, url))
    except BaseException:
        stored.close()
        raise
    return stored


def _open_sound(directory: SnapshotDir, index: int, term: int) -> StoredSnapshot | None:
    try:
        stored = directory.open(index)
    except SnapshotNotFound:
        return None
    except SnapshotCorrupt as error:
        logger.warning("the snapshot behind the dump is broken: %s", error)
        return None
    if stored.meta.term == term:
        return stored
    stored.close()
    logger.warning("%s is of term %d, the ticket of term %d", stored.path, stored.meta.term, term)
    return None


def _open_from_peers(
    index_min: int, directory: SnapshotDir, client: SnapshotClient, peers: Sequence[str]
) -> StoredSnapshot:
    """Fetch a peer's newest snapshot that is not older than `index_min`."""
    for peer in peers:
        try:
            found = [entry.get("index") for entry in client.list(peer) if not entry.get("problem")]
            index = max((index for index in found if isinstance(index, int)), default=0)
            if index < index_min:
                logger.warning("%s has nothing as new as %d", peer, index_min)
                continue
            with contextlib.suppress(SnapshotExists):
                client.fetch(peer, index, directory)
            return directory.open(index)
        except (SnapstoreError, OSError) as error:
            logger.warning("nothing to be had from %s: %s", peer, error)
    raise SnapshotNotFound(
        f"the snapshot that this node's log goes on from (index {index_min}) is not sound in"
        f" {directory.path}, and none of {len(peers)} peers gave one; start again when a peer runs, or"
        " remove this node's dump file and journal and let it join as a new one"
    )
