"""Point-in-time snapshots of a raft node's key-value store, streamed and saved durably."""
