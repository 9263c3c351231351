"""Raft engines around a snapshot store: the exchange that all of them need, and adapters to some.

Imported by nobody but who uses it; no engine is a dependency.
"""

from snapstore.raft.engine import Engine
from snapstore.raft.exchange import Exchange
from snapstore.raft.slot import KvSlot
from snapstore.retry import RetryPolicy

__all__ = ["Engine", "Exchange", "KvSlot", "RetryPolicy"]
