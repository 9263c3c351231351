"""What goes out of a directory: old snapshots by a rule, and what savers that died have left.

The half of `SnapshotDir` that only takes away. Which snapshots may go is retention.py's, and how names
are removed disk.py's. Knows no savers that live.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from snapstore import disk
from snapstore.reception import sweep_partials
from snapstore.retention import Rule
from snapstore.shelf import Shelf

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from snapstore._fastpipe import Progress


class Housekeeping(Shelf):
    """What `SnapshotDir` removes. From any thread."""

    def __init__(
        self, path: str | os.PathLike[str], wall_clock: Callable[[], float], monotonic: Callable[[], float]
    ) -> None:
        """Open `path`; `wall_clock` gives seconds since the epoch, as the files' times do."""
        super().__init__(path, monotonic)
        self._wall_clock = wall_clock

    def purge(
        self,
        *,
        keep: int = 1,
        older_than_s: float | None = None,
        size_max: int | None = None,
        progress: Progress | None = None,
    ) -> Sequence[int]:
        """Remove what is older than the `keep` newest sound snapshots; the indexes that are gone.

        With `older_than_s` only those go of them that were saved longer ago, in seconds by the clock on
        the wall. With `size_max` those go that do not fit in so many bytes together with all newer ones
        that stay, and what is older than the first that does not. With both, either is enough to go.
        The `keep` newest stay in any case, however old and large.

        Nothing goes before one of those kept was read back from the disk and found good. Unless this
        object has done so already (`open`, `verify`, an earlier purge), the newest is read now, which
        takes as long as the disk needs for it; `progress` counts then. A broken one is set aside and
        not counted, and the next is read. Where nothing is to go, nothing is read.

        Leased ones stay, until their time is up. `keep` is at least 1: the only snapshot of a node is
        never purged. Those with a problem do not count, and go when they are older than the `keep`
        newest: nobody can restore them. Raises ValueError, OSError, also where what is kept cannot be
        read now, and DirectoryPoisoned; nothing was removed then.
        """
        rule = Rule(keep, older_than_s, size_max, self._wall_clock())
        self._check_usable()
        self.check_sound()
        self._leases.look()
        removed = self._retention.purge(
            self._fd, rule, stored=self.list, read_back=lambda index: self.verify(index, progress=progress)
        )
        if removed:
            self._sync()
        return removed

    def remove_orphans(self) -> Sequence[str]:
        """Remove what savers that were killed left; the names. Done at opening, too.

        What transfers that were cut left stays for a while, for the next attempt; see `receive`.
        """
        self._check_usable()
        self.check_sound()
        swept = disk.sweep(self._fd)
        self.counts.leftovers_swept.add(len(swept))
        removed = [*swept, *self._sweep_partials()]
        if removed:
            self._sync()
        return removed

    def _sweep_partials(self, coming: int | None = None) -> Sequence[str]:
        def wanted() -> int:
            newest = self.newest()
            return max(coming or 0, newest.index + 1 if newest else 0)

        swept = sweep_partials(self._fd, wanted, coming)
        self.counts.leftovers_swept.add(len(swept))
        return swept
