"""What a directory counts since it was opened, for its operators. It decides nothing by it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from snapstore.errors import KeptPrefixWrong, SnapshotCorrupt, SnapshotTruncated
from snapstore.metrics import FSYNC_BOUNDS_S, Counter, Histogram


class DirectoryCounts:
    """The counts of one SnapshotDir object. From any thread."""

    def __init__(self) -> None:
        #: What the fsyncs of each save took together, in seconds.
        self.fsync = Histogram(FSYNC_BOUNDS_S)
        #: Files of dead savers, and chunks that nobody asked for again, that were removed.
        self.leftovers_swept = Counter()
        #: Snapshots, stored or on their way in, whose bytes were not those of their digests.
        self.digest_failures = Counter()

    @contextmanager
    def judging(self) -> Iterator[None]:
        """Count the bytes that are found to be wrong inside.

        A source that ended early is no such case, nor is what an earlier attempt kept of another
        leader's snapshot: its bytes were right, and are not wanted any more.
        """
        try:
            yield
        except (SnapshotTruncated, KeptPrefixWrong):
            raise
        except SnapshotCorrupt:
            self.digest_failures.add()
            raise
