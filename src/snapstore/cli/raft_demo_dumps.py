"""The two ways of a raft demo's snapshots: tickets, and the dumps that PySyncObj carries itself.

What a node has around its store is made here, from its setup; the store must not know which way it is.
"""

from __future__ import annotations

import os
import pickle
import shutil
import struct
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snapstore.directory import SnapshotDir
from snapstore.kv.lmdb import LmdbKV
from snapstore.pacing import Pacer
from snapstore.raft.pysyncobj import LmdbPlaces, TicketDumps, TicketTransport
from snapstore.raft.slot import KvSlot
from snapstore.transport.http import SnapshotServer

# Behind ours, which says what is missing where it is not installed.
from pysyncobj.transport import TCPTransport  # isort: skip

if TYPE_CHECKING:
    from snapstore._fastpipe import Throttle
    from snapstore.cli.raft_demo_store import Dumps

#: PySyncObj's own way needs a connection timeout longer than its transfer: with the stock 3.5 s it does
#: not end at all, or ends with bytes missing.
OWN_CONNECTION_TIMEOUT_S = 120.0

#: Where the image ends and PySyncObj's own data begins, as the last bytes of a dump.
_IMAGE_SIZE = struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class Setup:
    """One node: its directories, its addresses and those of the others, and which way its snapshots go.

    `paced` lets its transfers yield to its ticks, `fsync_log` makes its log durable in each of them.
    """

    directory: str
    kv_directory: str
    address: str
    partners: list[str]
    listen: str
    peers: list[str]
    map_size: int
    own_dumps: bool = False
    paced: bool = False
    fsync_log: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return it for the node's process."""
        return asdict(self)

    @property
    def transport_class(self) -> type[TCPTransport]:
        """How PySyncObj's messages go."""
        return TCPTransport if self.own_dumps else TicketTransport

    @property
    def lmdb_options(self) -> dict[str, Any]:
        """How the KV is opened: it is made from the snapshot and the log at each start, so no fsyncs."""
        return {"map_size": self.map_size, "sync": False, "metasync": False}


@contextmanager
def open_dumps(setup: Setup, throttle: Throttle) -> Iterator[Dumps]:
    """Open what a node has around its store, for a `with` block; its transfers share `throttle`."""
    os.makedirs(setup.directory, exist_ok=True)
    if setup.own_dumps:
        yield OwnDumps(setup)
        return
    with (
        SnapshotDir(os.path.join(setup.directory, "snapshots"), throttle=throttle) as snapshots,
        SnapshotServer(
            snapshots, setup.listen, on_offer=TicketDumps.refuse_offer, throttle=throttle
        ) as server,
        TicketDumps(
            snapshots,
            LmdbPlaces(setup.kv_directory, throttle=throttle, **setup.lmdb_options),
            dump_file=os.path.join(setup.directory, "dump"),
            url=server.url,
            peers=setup.peers,
        ) as dumps,
        Pacer([throttle], dumps.strain) if setup.paced else nullcontext(),
    ):
        yield dumps


class OwnDumps:
    """What users of PySyncObj write: the store is copied into its dump file, and out of it.

    Both on the tick thread, where PySyncObj calls them, and with no fsync, as it has none itself; the
    file travels inside of its messages.
    """

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._count = 0
        # A demo's nodes begin with an empty directory, or come back to none.
        self.kv = KvSlot(LmdbKV(self._new_place(), **setup.lmdb_options))

    def _new_place(self) -> Path:
        self._count += 1
        place = Path(self._setup.kv_directory, f"kv-{self._count}")
        place.mkdir(parents=True)
        return place

    @property
    def hooks(self) -> dict[str, Any]:
        """Settings for SyncObjConf."""
        return {
            "fullDumpFile": os.path.join(self._setup.directory, "dump"),
            "serializer": self._write,
            "deserializer": self._read,
            "connectionTimeout": OWN_CONNECTION_TIMEOUT_S,
        }

    def attach(self, _store: object) -> None:
        """Need nothing of it."""

    def _write(self, path: str, data: object) -> None:
        with self.kv.reading() as kv, open(path, "wb", buffering=0) as dump:
            kv.env.copyfd(dump.fileno())
            size = dump.seek(0, os.SEEK_END)
            dump.write(pickle.dumps(data) + _IMAGE_SIZE.pack(size))

    def _read(self, path: str) -> Any:
        with open(path, "rb") as dump:
            dump.seek(-_IMAGE_SIZE.size, os.SEEK_END)
            (size,) = _IMAGE_SIZE.unpack(dump.read())
            dump.seek(size)
            data = pickle.load(dump)
        place = self._new_place()
        shutil.copyfile(path, place / "data.mdb")
        os.truncate(place / "data.mdb", size)
        self.kv.swap(LmdbKV(place, **self._setup.lmdb_options))
        return data
