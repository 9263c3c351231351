"""Durable saves against what people write in Python: `shutil.copyfileobj` and an fsync.

The floors only catch what is broken, on a machine that is doing other things besides; what is
reached on a quiet one stands in the README.
"""

import os
import shutil
import socket
import threading

from snapstore import SnapshotDir, SnapshotMeta, SnapshotStream
from snapstore.transport.http import SnapshotClient, SnapshotServer

#: Ours has a checksum of every chunk and a lasting name besides; below this something is wrong.
SAVE_FLOOR = 0.7
WALK_FLOOR = 0.7


def _copyfileobj(source, path):
    with open(path, "wb") as target:
        shutil.copyfileobj(source, target, 1024 * 1024)
        target.flush()
        os.fsync(target.fileno())
    os.unlink(path)


def _write(path, data):
    path.write_bytes(data)
    return path


def test_file_to_durable_file(pairs, neighbour, tmp_path, data):
    source = _write(tmp_path / "source", data)

    with SnapshotDir(tmp_path / "snapshots") as directory:

        def ours():
            with open(source, "rb") as file:
                saved = directory.save_from(file, 1)
            assert saved.size == len(data)
            os.unlink(saved.path)
            directory.remove_orphans()

        def baseline():
            with open(source, "rb") as file:
                _copyfileobj(file, tmp_path / "copy")

        assert pairs.run(ours, baseline, len(data)) > SAVE_FLOOR


def test_over_loopback_to_durable_file(pairs, neighbour, tmp_path, data):
    """A stored snapshot sent and saved, against sendfile into copyfileobj and an fsync."""
    with SnapshotDir(tmp_path / "leader") as leader, SnapshotDir(tmp_path / "follower") as follower:
        leader.save_from(data, SnapshotMeta(1, 1))
        source = leader.get_snap_file_path(1)
        with SnapshotServer(follower) as server, socket.create_server(("127.0.0.1", 0)) as listener:
            client = SnapshotClient()

            def ours():
                stored = leader.open(1, verify=False)
                with SnapshotStream(stored.meta, stored) as stream:
                    sent = client.send_snapshot(server.url, stream)
                assert not sent.existed
                os.unlink(follower.get_snap_file_path(1))
                follower.remove_orphans()

            def receive():
                connection, _ = listener.accept()
                with connection, connection.makefile("rb") as file:
                    _copyfileobj(file, tmp_path / "copy")

            def baseline():
                receiver = threading.Thread(target=receive)
                receiver.start()
                with (
                    socket.create_connection(listener.getsockname()) as connection,
                    open(source, "rb") as file,
                ):
                    connection.sendfile(file)
                receiver.join()

            assert pairs.run(ours, baseline, len(data)) > WALK_FLOOR
