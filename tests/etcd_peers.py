"""What an etcd leader says, made from its description; a member of ours to say it to.

Databases are as bbolt writes them out of one transaction: two meta pages, and pages that nobody reads.
"""

from __future__ import annotations

import json
import os
import struct

from nodes import WAIT_S, RawPeer
from snapstore.directory import SnapshotDir
from snapstore.etcd import bolt, messages
from snapstore.etcd.member import EtcdMember
from snapstore.meta import ConfState, SnapshotMeta
from snapstore.transport.http import SnapshotServer
from snapstore.transport.patience import Deadlines

CLUSTER = 0x8EDC744327887C91
SENDER = 0xBED7B5DAC636F795
OURS = 0x022914DE8007A9EA

META = SnapshotMeta(6505, 2, ConfState((OURS, SENDER)), b'{"Root":{"Path":"/"}}')

#: The head of a request as a leader of 3.4.23 sent it, but for the coding of its body.
HEADERS = {
    "Host": "127.0.0.1:22380",
    "User-Agent": "Go-http-client/1.1",
    "Content-Type": "application/octet-stream",
    "X-Etcd-Cluster-Id": "8edc744327887c91",
    "X-Min-Cluster-Version": "3.0.0",
    "X-Peerurls": "http://127.0.0.1:12380",
    "X-Server-From": "bed7b5dac636f795",
    "X-Server-Version": "3.4.23",
    "Accept-Encoding": "gzip",
}


def meta_record(
    number, *, page_size, page_count, txid, root=3, freelist=2**64 - 1, version=2, magic=0xED0CDAED
):
    """What there is of a meta page of bbolt's: its header, a meta record, its checksum."""
    record = struct.pack("<IIIIQQQQQ", magic, version, page_size, 0, root, 0, freelist, page_count, txid)
    return struct.pack("<QHHI", number, 4, 0, 0) + record + struct.pack("<Q", bolt.fnv1a64(record))


def meta_page(number, *, page_size, **fields):
    """All of it."""
    return meta_record(number, page_size=page_size, **fields).ljust(page_size, b"\0")


def database(pages=64, *, page_size=4096, txid=9, **changes):
    """The bytes of a database of so many pages."""
    fields = {"page_size": page_size, "page_count": pages, **changes}
    metas = meta_page(0, txid=txid, **fields) + meta_page(1, txid=txid - 1, **fields)
    return metas + os.urandom((pages - 2) * page_size)


def prefixed(message):
    """A message as it stands before a database."""
    return struct.pack(">Q", len(message)) + message


def snapshot(meta=META, *, to=OURS, term=2):
    """The message of a snapshot, prefixed."""
    return prefixed(messages.encode(messages.snapshot_message(meta, to=to, sender=SENDER, term=term)))


def piece(data):
    """A piece of a body in the chunked coding; an empty one is its end."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def chunked(*pieces):
    """A body in the chunked coding."""
    return b"".join(map(piece, (*pieces, b"")))


def head(target="/raft/snapshot", method="POST", *, length=None, **changes):
    """A request's head; `changes` are headers by name with `_` for `-`, None to leave one out."""
    coding = {"Transfer-Encoding": "chunked"} if length is None else {"Content-Length": str(length)}
    headers = HEADERS | coding | {name.replace("_", "-"): value for name, value in changes.items()}
    lines = [f"{name}: {value}" for name, value in headers.items() if value is not None]
    return "\r\n".join([f"{method} {target} HTTP/1.1", *lines, "", ""]).encode("latin-1")


#: A database, and the body that brings it.
DB = database()
BODY = snapshot() + DB


class Member:
    """A directory, and a server that is a member of an etcd cluster. Its refusals come at once."""

    def __init__(self, path, *, size_max=None, deadlines=None, **options):
        self.heard, self.delays_s = [], []
        options = {"on_saved": self._note, "delay": self._delay, "cluster_id": CLUSTER, **options}
        limits = {} if size_max is None else {"size_max": size_max}
        self.directory = SnapshotDir(path, **limits)
        self.member = EtcdMember(self.directory, **options)
        self.server = SnapshotServer(
            self.directory,
            "127.0.0.1:0",
            routes=self.member.routes,
            deadlines=deadlines or Deadlines(idle_timeout_s=WAIT_S),
        )
        self.url = self.server.url

    def _note(self, saved, message):
        self.heard.append((saved.index, getattr(message, "from"), message.term))

    def _delay(self, exchange, seconds):
        self.delays_s.append(seconds)

    def peer(self):
        return RawPeer(self.url)

    def put(self, body, **changes):
        """Send a snapshot of a length told beforehand on a line of its own; status, headers, body."""
        with self.peer() as peer:
            peer.say(head(length=len(body), **changes), body)
            return peer.hear("POST")

    def assert_nothing_saved(self):
        assert self.indexes == []
        assert self.heard == []

    @property
    def indexes(self):
        return [saved.index for saved in self.directory.list()]

    def bytes_of(self, index):
        return self.directory.get_snap_file_path(index).read_bytes()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.server.close()
        self.directory.close()


def status_of(answer):
    """The status and the text of an answer, without its headers."""
    return answer[0], answer[2].decode()


def probing(answer):
    return json.loads(answer[2])["OK"]
