"""Power cuts at block level, for tests of anything that saves files on Linux.

Every write and flush of a real ext4, xfs or btrfs is recorded below the file system; the disk is
rebuilt as a power cut at any moment may leave it: what was flushed, and any part of what was not;
mounted, which replays the journal; and checked. Nothing here is imported by snapstore itself.

    def workload(path, mark):                  # `path` is the root of a new file system
        for index in range(20):
            mark.begin(index)
            my_save(path / f"{index}.data", content_of(index))
            mark.ok(index)                     # it returned: from here on it must be there

    def check(path, begun, reported):          # after the power cut; what is wrong
        return [f"{index} is lost" for index in reported if not my_load(path, index)]

    print(PowerCut("ext4", keep=Path("found")).run(workload, check, states=2000))

`python -m snapstore.testing.power_cut` does it with snapstore's own saver. Plan, from the bottom:
log (records) < states (what a cut leaves) < image (its bytes); kernel (mounts, loop devices) <
recorder (FUSE) < recording (a workload on it); both < examination < harness.
"""

from __future__ import annotations

from snapstore.testing.power_cut.errors import PowerCutUnavailable, WorkloadFailed
from snapstore.testing.power_cut.harness import PowerCut, PowerCutReport, Violation
from snapstore.testing.power_cut.recording import Marker
from snapstore.testing.power_cut.states import CrashState

__all__ = [
    "CrashState",
    "Marker",
    "PowerCut",
    "PowerCutReport",
    "PowerCutUnavailable",
    "Violation",
    "WorkloadFailed",
]
