"""PySyncObj nodes in one process, ticked by hand: real logs, stores and servers, and a network of lists.

A node's name is its place in the network; nothing of PySyncObj listens. The first one leads, since the
others are in no hurry.
"""

from __future__ import annotations

import gc
import pickle
import shutil
import threading
import time
from functools import partial

from pysyncobj import SyncObj, SyncObjConf, replicated
from pysyncobj.node import TCPNode
from pysyncobj.transport import Transport

from nodes import WAIT_S
from snapstore.directory import SnapshotDir
from snapstore.raft import RetryPolicy
from snapstore.raft.pysyncobj import LmdbPlaces, TicketDumps
from snapstore.transport.http import SnapshotServer

#: So often may all nodes be ticked until something comes about that works.
APPEND_S = 0.002

#: Longer than a test: who waits so long for a leader does not become one.
PATIENT_S = 10_000.0

RETRY = RetryPolicy(delay_s_first=0.01, delay_s_max=0.05)


class Network:
    """Messages in the order in which they were sent, of those who can reach each other."""

    def __init__(self):
        self.lines, self.messages, self.cut = {}, [], set()

    def deliver(self):
        messages, self.messages = self.messages, []
        for sender, to, message in messages:
            line = self.lines.get(to)
            if line is not None and not {sender, to} & self.cut:
                line.take(sender, pickle.loads(message))


class Line(Transport):
    """One node's end of a network."""

    def __init__(self, sync_obj, self_node, other_nodes):
        super().__init__(sync_obj, self_node, other_nodes)
        self._name, self._network = self_node.id, sync_obj.network
        self._others = {node.id: node for node in other_nodes}
        self._connected = set()
        self._network.lines[self._name] = self

    def look(self):
        """Notice who can be reached."""
        network = self._network
        for name, node in self._others.items():
            there = name in network.lines and not {name, self._name} & network.cut
            if there and name not in self._connected:
                self._connected.add(name)
                self._onNodeConnected(node)
            elif not there and name in self._connected:
                self._connected.discard(name)
                self._onNodeDisconnected(node)

    def take(self, sender, message):
        if sender in self._connected:
            self._onMessageReceived(self._others[sender], message)

    def send(self, node, message):
        if node.id not in self._connected:
            return False
        self._network.messages.append((self._name, node.id, pickle.dumps(message)))
        return True

    def addNode(self, node):  # noqa: N802 - PySyncObj's name.
        self._others[node.id] = node

    def dropNode(self, node):  # noqa: N802 - PySyncObj's name.
        self._others.pop(node.id, None)

    def destroy(self):
        self._network.lines.pop(self._name, None)


class Store(SyncObj):
    """Keys and values in the KV of `dumps`."""

    def __init__(self, name, others, conf, dumps, network):
        self.dumps, self.network = dumps, network
        super().__init__(TCPNode(name), [TCPNode(other) for other in others], conf, transportClass=Line)
        dumps.attach(self)

    @replicated
    def put(self, key, value):
        with self.dumps.kv.reading() as kv, kv.env.begin(write=True) as txn:
            txn.put(key, value)

    @replicated
    def add(self, key):
        """Not the same when done twice."""
        with self.dumps.kv.reading() as kv, kv.env.begin(write=True) as txn:
            txn.put(key, b"%d" % (int(txn.get(key, b"0")) + 1))


class Member:
    """One node with all that belongs to it, at `path`."""

    def __init__(self, cluster, name, path, *, leads, peers=(), open_kv=None, journal=True, **options):
        self.name, self.path = name, path
        self.directory = SnapshotDir(path / "snapshots")
        self.serve("127.0.0.1:0")
        self.places = LmdbPlaces(path / "kv", map_size=64 * 1024**2, sync=False)
        self.dumps = self.node = None
        try:
            self.dumps = TicketDumps(
                self.directory,
                partial(open_kv, self.places) if open_kv else self.places,
                dump_file=path / "dump",
                url=options.pop("url", self.server.url),
                peers=peers,
                retry=RETRY,
                **options,
            )
            self.conf = SyncObjConf(
                autoTick=False,
                appendEntriesPeriod=APPEND_S,
                raftMinTimeout=4 * APPEND_S if leads else PATIENT_S,
                raftMaxTimeout=5 * APPEND_S if leads else 2 * PATIENT_S,
                connectionTimeout=2 * PATIENT_S,
                logCompactionMinEntries=10_000,
                logCompactionMinTime=PATIENT_S,
                journalFile=str(path / "journal") if journal else None,
                **self.dumps.hooks,
            )
            others = [other for other in cluster.names if other != name]
            self.node = Store(name, others, self.conf, self.dumps, cluster.network)
        except BaseException:
            self.close()
            raise

    def serve(self, address):
        self.server = SnapshotServer(self.directory, address, on_offer=TicketDumps.refuse_offer)

    @property
    def content(self):
        with self.dumps.kv.reading() as kv, kv.env.begin() as txn:
            return dict(txn.cursor())

    @property
    def applied(self):
        return self.node.raftLastApplied

    @property
    def indexes(self):
        return [saved.index for saved in self.directory.list()]

    @property
    def ticket(self):
        return self.dumps._file.read()

    def close(self):
        node, self.node = self.node, None  # It may hold a file that it was sending from.
        if node is not None:
            node.destroy()
        if self.dumps is not None:
            self.dumps.close()
        self.places.close()
        self.server.close()
        self.directory.close()


class Gate:
    """An `open_kv` that stops at a snapshot until it is let go."""

    def __init__(self):
        self.reached, self.go_on = threading.Event(), threading.Event()

    def __call__(self, places, saved):
        if saved is not None:
            self.reached.set()
            assert self.go_on.wait(WAIT_S)
        return places(saved)


class Cluster:
    """Members by their name; `start` one again after `stop`."""

    def __init__(self, path, names=("a:1", "b:2", "c:3")):
        self.path, self.names = path, names
        self.network, self.members = Network(), {}

    def path_of(self, name):
        return self.path / name.replace(":", "-")

    def start(self, name, **options):
        leads = options.pop("leads", name == self.names[0])
        member = self.members[name] = Member(self, name, self.path_of(name), leads=leads, **options)
        return member

    def stop(self, name):
        self.members.pop(name).close()

    def lose(self, name):
        """Stop it, and take all it had."""
        self.stop(name)
        shutil.rmtree(self.path_of(name))

    def tick(self):
        wait_s = APPEND_S / 4  # In the first only, for all of them.
        for member in list(self.members.values()):
            self.network.lines[member.name].look()
            member.node.doTick(wait_s)
            wait_s = 0.0
        self.network.deliver()

    def until(self, reached):
        deadline = time.monotonic() + WAIT_S
        while not reached():
            assert time.monotonic() < deadline, "waited in vain"
            self.tick()

    @property
    def leader(self):
        """The one of the newest term: one that is cut off may not know that it is none any more."""
        leaders = [member for member in self.members.values() if member.node._isLeader()]
        return max(leaders, key=lambda member: member.node.raftCurrentTerm)

    def elect(self, name):
        """Have another one lead; the one before stays without hope. Which one leads now."""
        before, member = self.leader, self.members[name]
        before.conf.raftMinTimeout, before.conf.raftMaxTimeout = PATIENT_S, 2 * PATIENT_S
        member.node._SyncObj__raftElectionDeadline = 0
        self.until(member.node._isLeader)
        return member

    def tick_often(self):
        """Let pass what is more than all messages that anybody has to send."""
        for _ in range(50):
            self.tick()

    def begin(self, **options):
        """Start all members, each with `options`, and tick until one leads: which one."""
        for name in self.names:
            self.start(name, **options)
        return self.lead()

    def lead(self):
        """Tick until there is a leader; which one."""
        self.until(lambda: any(member.node._isLeader() for member in self.members.values()))
        return self.leader

    def call(self, method, *args):
        """Have it applied by the leader; all of them wait for nobody else."""
        results = []
        getattr(self.leader.node, method)(*args, callback=lambda _result, error: results.append(error))
        self.until(lambda: results)
        assert results == [0]

    def fill(self, count=5):
        """Write so many values, and count them where counting twice would show."""
        for number in range(count):
            self.call("put", b"key %d" % number, b"value %d" % number)
            self.call("add", b"count")

    def settle(self):
        """Tick until all have applied what the leader has."""
        self.until(lambda: all(member.applied == self.leader.applied for member in self.members.values()))

    def compact(self, member):
        """Have `member` make a dump, and tick until its log is compacted."""
        size = member.node._getRaftLogSize()
        member.node.forceLogCompaction()
        self.until(lambda: member.node._getRaftLogSize() < size)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        for name in list(self.members):
            self.stop(name)
        gc.collect()  # PySyncObj's nodes are cycles, and hold files that they were sending from.
