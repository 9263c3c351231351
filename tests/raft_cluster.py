"""Raft members on threads of their own, over real sockets and real files, for the tests of the exchange."""

from __future__ import annotations

import threading

from nodes import WAIT_S, wait_until
from raft_members import ListKV, Member
from snapstore.capture import CaptureQueue
from snapstore.clock import SystemClock
from snapstore.directory import SnapshotDir
from snapstore.raft import RetryPolicy
from snapstore.store import State
from snapstore.transport.http import SnapshotClient, SnapshotServer
from snapstore.transport.patience import Deadlines

#: Of a member that is never away for long.
QUICK = RetryPolicy(delay_s_first=0.01, delay_s_max=0.02)


def read_list(saved):
    return ListKV.read(saved.path.read_bytes())


class RunningMember:
    """A member with a loop thread, a directory and a server of its own. `members` finds the others.

    `life` is what a `Member` of the same name goes on with: its `log`, its `kv`.
    """

    def __init__(self, member, path, members, *, clock, retry=None, open_kv=read_list, **life):
        self.id = member
        self._members = members
        self._lock = threading.Condition()
        self._calls = []
        self._ending = False
        self._clock, self._retry, self._open_kv, self._life = clock, retry, open_kv, life
        self.captures = CaptureQueue(wake=self.wake)
        self.urls = {}
        self.directory = SnapshotDir(path)
        self.client = SnapshotClient(deadlines=Deadlines(connect_timeout_s=WAIT_S, idle_timeout_s=WAIT_S))
        self.failure = None
        self._made = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"member {member}")
        self._thread.start()
        assert self._made.wait(WAIT_S)
        self.server = SnapshotServer(
            self.directory,
            "127.0.0.1:0",
            on_offer=self.member.exchange.on_offer,
            on_saved=self.member.exchange.on_saved,
        )
        members[member] = self

    def do(self, call):
        """Have `call` made by the loop, with the member."""
        with self._lock:
            self._calls.append(call)
            self._lock.notify_all()

    def wake(self):
        self.do(lambda member: None)

    def ask(self, call):
        """The result of `call`, made by the loop."""
        answers = []
        self.do(lambda member: answers.append(call(member)))
        self.until(lambda member: answers)
        return answers[0]

    def until(self, reached):
        """Wait until `reached(member)` is true after a turn; the loop looks."""
        with self._lock:
            assert self._lock.wait_for(lambda: self.failure or reached(self.member), WAIT_S), "in vain"
        assert self.failure is None, self.failure

    def _run(self):
        peers = [2] if self.id == 1 else [1]
        try:
            self.member = Member(
                self.id,
                peers,
                self.client,
                clock=self._clock,
                raft=self.captures,
                open_kv=self._open_kv,
                url_of=lambda to: self.urls[to],
                wake=self.wake,
                retry=self._retry,
                **self._life,
            )
        finally:
            self._made.set()
        try:
            self._loop()
        except BaseException as error:
            self.failure = error
            raise
        finally:
            with self._lock:
                self._lock.notify_all()

    def _loop(self):
        while True:
            with self._lock:
                self._lock.wait_for(lambda: self._calls)
                calls, self._calls = self._calls, []
            for call in calls:
                call(self.member)
            if self._ending:
                self.member.close()
                return
            self.member.turn()
            if self.captures.pending:
                self.captures.serve(self.member.meta)
            outbox, self.member.outbox = self.member.outbox, []
            for to, raw in outbox:
                if to in self._members:
                    self._members[to].do(lambda member, raw=raw: member.take(raw))
            with self._lock:
                self._lock.notify_all()

    def close(self):
        self._ending = True
        self.wake()
        self._thread.join()
        self.captures.close()
        self.server.close()
        self.directory.close()


class Cluster:
    """A leader and a follower that has nothing, each on its own thread, over real sockets."""

    def __init__(self, path, **options):
        self.members = {}
        self.clock = SystemClock()
        self._path, self._options = path, options
        self.leader, self.follower = self.begin(1), self.begin(2)
        self.leader.do(lambda member: member.node.campaign())
        self.fall_behind()

    def fall_behind(self):
        """Nothing reaches the follower until the log is compacted."""
        del self.members[self.follower.id]
        applied = self.leader.ask(lambda member: member.kv.applied)
        for number in range(20):
            self.leader.do(lambda member, number=number: member.node.propose(b"%d" % number))
        self.leader.until(lambda member: member.kv.applied >= applied + 20)
        self.leader.ask(lambda member: member.compact(member.kv.applied))
        self.members[self.follower.id] = self.follower

    def begin(self, member, **life):
        """A member on its own thread; another one of the same name must have ended."""
        running = RunningMember(
            member, self._path / str(member), self.members, clock=self.clock, **self._options, **life
        )
        for other in self.members.values():
            other.urls[member], running.urls[other.id] = running.server.url, other.server.url
        return running

    def beat(self):
        self.leader.do(lambda member: member.node.tick())

    def lend(self):
        """Beat until the follower has asked, and a snapshot is on its way to it, or was."""
        reports = self.leader.ask(lambda member: len(member.reports))

        def lent(member):
            return member.store.state is State.IN_USE or len(member.reports) > reports

        wait_until(lambda: self.beat() or self.leader.ask(lent), WAIT_S)

    def is_reported(self, finished):
        self.leader.until(lambda member: (self.follower.id, finished) in member.reports)

    def is_equal(self):
        """Beat until the follower has all that the leader has."""

        def entries(member):
            return member.kv.entries

        wait_until(lambda: self.beat() or self.leader.ask(entries) == self.follower.ask(entries), WAIT_S)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.leader.close()
        self.follower.close()
        self.clock.close()
        assert self.leader.member.slot._tenure is None
