"""The transport by its names: a server that saves, and a client that sends and fetches."""

from snapstore.transport.answers import SentSnapshot
from snapstore.transport.http_client import SnapshotClient
from snapstore.transport.http_server import SnapshotServer

__all__ = ["SentSnapshot", "SnapshotClient", "SnapshotServer"]
