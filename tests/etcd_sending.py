"""What tests of `send_etcd` send: databases that are stored, and the messages before them."""

from __future__ import annotations

import contextlib
import socket

import pytest

import etcd_peers as etcd
from etcd_peers import CLUSTER, DB, META, OURS, SENDER
from nodes import WAIT_S
from snapstore.directory import SnapshotDir
from snapstore.etcd import messages
from snapstore.transport.http import SnapshotClient
from snapstore.transport.patience import Deadlines

#: More than a peer that does not read, and all buffers before it, can hold.
LARGE = etcd.database(16 * 256)


def message_of(meta=META):
    """What a leader of the term 2 says before the snapshot of `meta`."""
    return messages.snapshot_message(meta, to=OURS, sender=SENDER, term=2)


def send(url, source, *, message=None, client=None, **options):
    """Send `source` as that leader; `options` are those of `send_etcd`."""
    options = {"cluster_id": CLUSTER, **options}
    client = client or SnapshotClient(deadlines=Deadlines(idle_timeout_s=WAIT_S, fsync_timeout_s=WAIT_S))
    client.send_etcd(url, source, message or message_of(), **options)


class Stored:
    """Stores databases, each in a directory of its own, and opens them without a look at their bytes."""

    def __init__(self, path):
        self._path = path
        self._opened = contextlib.ExitStack()
        self._count = 0

    def __call__(self, database=DB, meta=META):
        self._count += 1
        with SnapshotDir(self._path / f"stored {self._count}") as directory:
            directory.save_from(database, meta)
            return self._opened.enter_context(directory.open(meta.index, verify=False))

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._opened.close()


@contextlib.contextmanager
def uncalled():
    """The URL of a listener that nobody connects to."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(BlockingIOError):
            listener.accept()
